"""One class per task: what of it goes into a bundle, and how the bundle is judged."""

from __future__ import annotations

from typing import Any

from medseg.errors import UsageError
from medseg_pipelines.bundle.kinds.instances import InstanceKind
from medseg_pipelines.bundle.kinds.kind import Kind
from medseg_pipelines.bundle.kinds.picture_restoration import PictureRestorationKind
from medseg_pipelines.bundle.kinds.pictures import PictureKind
from medseg_pipelines.bundle.kinds.restoration import RestorationKind
from medseg_pipelines.bundle.kinds.segmentation import SegmentationKind
from medseg_pipelines.bundle.kinds.superresolution import SuperResolutionKind
from medseg_pipelines.load import PRETRAINED
from medseg_pipelines.recipe import (
    PictureRecipe,
    PictureRestorationRecipe,
    PretrainingRecipe,
    PromptRecipe,
    Recipe,
    RestorationRecipe,
    SegmentationRecipe,
    SuperResolutionRecipe,
    SupportRecipe,
)

__all__ = ["Kind", "kind_of"]

_KINDS: dict[type, type[Kind[Any]]] = {
    SegmentationRecipe: SegmentationKind,
    RestorationRecipe: RestorationKind,
    PictureRecipe: PictureKind,
    PictureRestorationRecipe: PictureRestorationKind,
    SuperResolutionRecipe: SuperResolutionKind,
}

_REASONS: dict[type, str] = {
    PretrainingRecipe: f"it {PRETRAINED}",
    PromptRecipe: "it segments what points, boxes or masks mark, and a bundle runs on images alone; run it with "
    "`medseg infer --box` or `--prompts`, or train a model without prompts on its results (`medseg train her-seg`)",
    SupportRecipe: "it segments what a support set outlines, whose images would have to travel with it; run it with "
    "`medseg infer --support`, or train a model without examples on its results (`medseg train her-seg`)",
}


def kind_of(recipe: Recipe) -> Kind[Any]:
    """What knows bundles of the task of a recipe.

    Raises:
        UsageError: There are no bundles of that task.
    """
    if isinstance(recipe, PictureRecipe) and recipe.instances is not None:
        return InstanceKind(recipe)
    kind = _KINDS.get(type(recipe))
    if kind is None:
        raise UsageError(f"model '{recipe.name}' cannot be a bundle: {_REASONS[type(recipe)]}")
    return kind(recipe)
