"""What a training run leaves behind: weights, recipe and card, so that the folder of the run is a model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from medseg import __version__
from medseg.weights import save_weights, sha256_of
from medseg_pipelines.recipe import RECIPE_FILE, Recipe
from medseg_pipelines.training.loop import Trainer
from medseg_pipelines.words import RESEARCH_USE

WEIGHTS = "weights.safetensors"
CARD = "CARD.md"


def write_model(recipe: Recipe, trainer: Trainer, out: Path) -> Path:
    """Write the weights and the recipe of a run, so that its folder is a model that `-m` takes; returns the weights.

    Args:
        recipe: That was trained.
        trainer: At its last step.
        out: Folder of the run.
    """
    weights = save_weights(trainer.result(), out / WEIGHTS, half=recipe.weights.dtype == "float16")
    content: dict[str, Any] = recipe.model_dump(mode="json", exclude_none=True)
    content["weights"] |= {
        "file": WEIGHTS,
        "sha256": sha256_of(weights),
        "trained": True,
        "parameters": sum(parameter.numel() for parameter in trainer.network.parameters()),
    }
    write_recipe(content, out)
    return weights


def write_recipe(content: dict[str, Any], out: Path) -> None:
    """The recipe of a run, plain data."""
    (out / RECIPE_FILE).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def write_card(
    recipe: Recipe, trainer: Trainer, out: Path, *, files: int, loss: float, judged: Sequence[str] = ()
) -> None:
    """Write the card of a run.

    Args:
        recipe: That was trained.
        trainer: At its last step.
        out: Folder of the run.
        files: How many were learned from; their names may tell of patients and stay out.
        loss: Mean of the last hundred steps.
        judged: Lines on how well it did on images that it did not learn from.
    """
    (out / CARD).write_text(_card(recipe, trainer, files, loss, judged), encoding="utf-8")


def _card(recipe: Recipe, trainer: Trainer, files: int, loss: float, judged: Sequence[str]) -> str:
    state = "to its end" if trainer.step == trainer.total else f"and stopped before its end of {trainer.total} steps"
    if trainer.validation is not None and trainer.validation.done:
        state = f"until {trainer.validation.patience} looks at the held-back images brought nothing better"
    folder = str(recipe.training.get("kind", "")).startswith("folder-")
    what = recipe.network.name if folder else recipe.name  # a plan of its own has no name that others know
    none = "None yet. Judge it on cases that training never saw: `medseg evaluate RESULT REFERENCE`."
    scores = "\n".join(judged) if judged else none
    return f"""# {recipe.title}

{recipe.summary}

## Training data

{files} file{"s" if files != 1 else ""} of whoever ran the training; their terms apply to these weights.

## Training

`medseg train {what} --data FOLDER --out RUN`, medseg {__version__}, {datetime.now(UTC):%Y-%m-%d}: \
{trainer.step} steps {state}, mean loss of the last hundred {loss:.4f}. Every other option stands in `{RECIPE_FILE}`.

## Scores

{scores}

## Limits

Made for what it was trained on, and for nothing else. {RESEARCH_USE}
"""
