"""One class per task: what of it goes into a bundle, and how the bundle is judged."""

from __future__ import annotations

from typing import Any

from medseg.errors import UsageError
from medseg_pipelines.bundle.kinds.kind import Kind
from medseg_pipelines.bundle.kinds.pictures import PictureKind
from medseg_pipelines.bundle.kinds.restoration import RestorationKind
from medseg_pipelines.bundle.kinds.segmentation import SegmentationKind
from medseg_pipelines.bundle.kinds.superresolution import SuperResolutionKind
from medseg_pipelines.recipe import PictureRecipe, Recipe, RestorationRecipe, SegmentationRecipe, SuperResolutionRecipe

__all__ = ["Kind", "kind_of"]

_KINDS: dict[type, type[Kind[Any]]] = {
    SegmentationRecipe: SegmentationKind,
    RestorationRecipe: RestorationKind,
    PictureRecipe: PictureKind,
    SuperResolutionRecipe: SuperResolutionKind,
}


def kind_of(recipe: Recipe) -> Kind[Any]:
    """What knows bundles of the task of a recipe.

    Raises:
        UsageError: There are no bundles of that task.
    """
    kind = _KINDS.get(type(recipe))
    if kind is None:
        raise UsageError(
            f"model '{recipe.name}' must restore or segment volumes, or segment pictures, to be a bundle; its task is "
            f"{recipe.task}, which `medseg infer` alone can do"
        )
    return kind(recipe)
