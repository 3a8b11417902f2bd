"""How sure a model was of each structure, as far as its result tells."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from medseg.errors import MedsegError
from medseg_pipelines.recipe import PromptRecipe, load_recipe


class Confidence(BaseModel):
    """Of one structure."""

    id: int = Field(description="Of the label.")
    kind: Literal["agreement", "presence"] = Field(
        description="agreement: mean Dice between runs without one of the examples. presence: how likely the structure "
        "is there on the slice where it is least likely. Neither is a probability of being right."
    )
    score: float | None = Field(description="0 to 1; null where there was one run only.")
    sure: bool | None = Field(description="null where nothing can be said.")


def confidence(manifest: dict[str, Any]) -> list[Confidence]:
    """What the manifest of a result says about it; empty where the model tells nothing."""
    agreed = manifest.get("support", {}).get("agreement", [])
    if agreed:
        return [Confidence(id=a["id"], kind="agreement", score=a["agreement"], sure=a["sure"]) for a in agreed]
    told = manifest.get("prompting", {}).get("presence", {})
    least = _least_presence(manifest["model"]["name"]) if told else 0.0
    found = []
    for label, by_slice in told.items():
        drawn = [score for score in by_slice.values() if score >= least]  # below it the model ended the structure
        found.append(Confidence(id=int(label), kind="presence", score=min(drawn, default=0.0), sure=None))
    return found


def _least_presence(model: str) -> float:
    """Below which a slice is taken not to show a structure."""
    try:
        recipe = load_recipe(model)
    except MedsegError:  # it was removed since
        return 0.0
    return recipe.prompting.presence if isinstance(recipe, PromptRecipe) else 0.0
