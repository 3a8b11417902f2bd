"""What bundles of RAT share, of volumes and of pictures: the regions that it attends in."""

from __future__ import annotations

from medseg.errors import UsageError
from medseg_pipelines.recipe import PictureRestorationRecipe, RestorationRecipe

_UNUSED = {"intensity": ("superpixels", "automatic_masks"), "superpixels": ("automatic_masks",)}


def require_portable(recipe: RestorationRecipe | PictureRestorationRecipe) -> None:
    """Refuse a network, or regions, that no bundle can have.

    Raises:
        UsageError: Says which.
    """
    if recipe.network.name != "rat" or recipe.partition.kind not in _UNUSED:
        raise UsageError(
            f"model '{recipe.name}' must be of the network rat with regions of grey values or superpixels to be a "
            f"bundle, it has {recipe.network.name} and {recipe.partition.kind}"
        )


def unused_partitioners(kind: str) -> frozenset[str]:
    """Modules of the partitioners that a model with regions of one kind never reaches."""
    return frozenset(f"medseg.partition.{name}" for name in _UNUSED[kind])
