"""The models that a server offers: those whose weights are here."""

from __future__ import annotations

from pathlib import Path

from medseg.io.pictures import is_picture
from medseg_pipelines.recipe import (
    PromptRecipe,
    Recipe,
    SupportRecipe,
    brought_names,
    imported_names,
    load_recipe,
    recipe_names,
)
from medseg_pipelines.sections import PictureScope
from medseg_pipelines.weights.cache import WEIGHTS_FILE, weights_folder

PROMPTING, BY_EXAMPLE = "prompting", "support-segmentation"  # tasks of models that take volumes and pictures alike


def offered_names() -> list[str]:
    """Models that ship with weights, those that were imported, and those whose weights somebody brought."""
    brought = [name for name in brought_names() if _has_weights(load_recipe(name))]
    return [*recipe_names(), *brought, *imported_names()]


def takes(recipe: Recipe, *, picture: bool) -> bool:
    """Whether a model is for pictures, or for volumes."""
    return recipe.task in (PROMPTING, BY_EXAMPLE) or isinstance(recipe.scope, PictureScope) == picture


def runs_on_picture(recipe: Recipe, image: Path) -> bool:
    """Whether an image is given to a model as a picture."""
    return isinstance(recipe.scope, PictureScope) or (takes(recipe, picture=True) and is_picture(image))


def _has_weights(recipe: Recipe) -> bool:
    checkpoint = recipe.checkpoint if isinstance(recipe, PromptRecipe | SupportRecipe) else None
    return checkpoint is not None and (weights_folder() / checkpoint / WEIGHTS_FILE).is_file()
