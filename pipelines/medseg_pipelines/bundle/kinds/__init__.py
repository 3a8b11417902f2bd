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
from medseg_pipelines.bundle.kinds.support import SupportKind
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
from medseg_pipelines.support_store import SupportSet

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
}


def kind_of(recipe: Recipe, *, support: SupportSet | None = None) -> Kind[Any]:
    """What knows bundles of the task of a recipe.

    Args:
        recipe: Of the model.
        support: What a model that segments by example will follow.

    Raises:
        UsageError: There are no bundles of that task, or it wants a support set, or knows none.
    """
    if isinstance(recipe, SupportRecipe):
        return SupportKind(recipe, support)
    if support is not None:
        raise UsageError(f"model '{recipe.name}' follows no examples: drop --support, or export support-set")
    if isinstance(recipe, PictureRecipe) and recipe.instances is not None:
        return InstanceKind(recipe)
    kind = _KINDS.get(type(recipe))
    if kind is None:
        raise UsageError(f"model '{recipe.name}' cannot be a bundle: {_REASONS[type(recipe)]}")
    return kind(recipe)
