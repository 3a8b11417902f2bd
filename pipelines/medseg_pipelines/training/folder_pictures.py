"""Training on a folder of pictures and masks, for every network that maps a picture to one logit per label."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.io.pictures import read_picture
from medseg_pipelines.picture_preparation import colour_planes, field_of, resized, scaled_size
from medseg_pipelines.recipe import PictureRecipe
from medseg_pipelines.training.folder_course import FolderSection, LabelCourse, classes_of, counted
from medseg_pipelines.training.folder_pairs import Pair
from medseg_pipelines.training.folder_plan import mask_ids, require_size
from medseg_pipelines.training.patches import (
    Augmentation,
    Patches,
    PatchOptions,
    PatchSampler,
    PatchSource,
    PatchTrainer,
    patch_source,
)

_PLAIN = Augmentation(
    turn=0,
    mirror=False,
    zoom=(1, 1),
    squeeze=0,
    mix=0,
    contrast=(1, 1),
    brightness=0,
    bend=(0, 0),
    blur=(0, 0),
    noise=(0, 0),
)


class FolderPictureSection(FolderSection, PatchOptions):
    """The `training` section of a recipe that learns from a folder of pictures."""

    steps: int = Field(default=3000, ge=1)
    crop: int = Field(default=256, ge=32)
    batch: int = Field(default=6, ge=1)
    augmentation: Augmentation = Augmentation(zoom=(0.8, 1.25), brightness=0.2, noise=(0.0, 0.15))


class FolderPictureCourse(LabelCourse[FolderPictureSection]):
    """Training on pictures."""

    OPTIONS: ClassVar = FolderPictureSection

    def plain_trainer(self, device: str) -> PatchTrainer:
        """The network must take three channels and give a logit per label, which its first step shows."""
        return PatchTrainer(self.network(), self.options, device=device)

    def images(self, files: list[Any]) -> PatchSampler:
        """Varied patches of all pictures."""
        half = len(files) // 2
        pairs = [Pair(image, mask, "") for image, mask in zip(files[:half], files[half:], strict=True)]
        return PatchSampler([self._source(pair) for pair in pairs], self.options, self._recipe().preparation)

    def validation_batches(self, pairs: list[Pair]) -> list[Patches]:
        """Unvaried patches of the held-back pictures."""
        options = self.options
        count = -(-options.judged // options.batch)
        plain = options.model_copy(update={"augmentation": _PLAIN, "steps": count, "seed": options.seed + 1})
        sampler = PatchSampler([self._source(pair) for pair in pairs], plain, self._recipe().preparation)
        return [sampler[number] for number in range(count)]

    def judged(self, network: nn.Module, batch: Patches, device: str) -> Tensor:
        """Pixels above the threshold of the recipe."""
        found = network(batch.image.to(device)).sigmoid() > self._recipe().inference.threshold
        return counted(found, batch.target.to(device) > 0.5)

    def drawn(self, model: Any, pair: Pair) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """On the pixels of the picture."""
        masks, ids = self._masks(pair), np.array([label.id for label in self.labels()])
        return model(pair.image, force_scope=True).labels, np.where(masks.any(0), ids[masks.argmax(0)], 0)

    def _source(self, pair: Pair) -> PatchSource:
        picture, options = read_picture(pair.image), self._recipe().preparation
        masks = self._masks(pair)
        require_size(pair, picture.size, masks.shape[1:])
        field, size = field_of(picture, options), scaled_size(picture.size, options.zoom)
        planes, inside = colour_planes(picture, field, size, options)
        return patch_source(planes, resized(masks.astype(np.float32), size), inside)

    def _masks(self, pair: Pair) -> NDArray[np.bool_]:
        """(K, H, W)."""
        ids = mask_ids(pair.mask, half=self.options.masks == "half")
        return classes_of(ids, self.labels(), self.options.masks)

    def _recipe(self) -> PictureRecipe:
        if not isinstance(self.recipe, PictureRecipe):
            raise UsageError(f"training 'folder-pictures' needs a recipe of pictures, its task is {self.recipe.task}")
        return self.recipe
