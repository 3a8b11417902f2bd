"""Training of a model that tells apart things on pictures: it learns their masks and cores (`medseg.instances`)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from medseg.errors import InputRefused, UsageError
from medseg.instances import instance_targets
from medseg.io.pictures import read_ids, read_picture
from medseg.losses import dice_and_binary_entropy
from medseg_pipelines.picture_preparation import colour_planes, field_of
from medseg_pipelines.recipe import PictureRecipe
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.folder_pairs import find_pairs, split
from medseg_pipelines.training.patches import (
    Patches,
    PatchOptions,
    PatchSampler,
    PatchSource,
    PatchTrainer,
    patch_source,
)


class InstanceOptions(PatchOptions):
    """The `training` section of a recipe that learns from pictures and numbered things."""

    hold_back: float = Field(default=0.2, gt=0, lt=1)  # share of the patients that training never sees
    split_seed: int = 0


class InstanceTrainer(PatchTrainer):
    """Learns things and cores, each with a Dice of its own: cores are much the smaller."""

    def loss(self, sample: Patches) -> Tensor:
        """Mean over both masks of cross entropy and 1 - Dice."""
        image, target = sample.image.to(self.device), sample.target.to(self.device)
        with self.autocast():
            found = self.network(image).float()
        masks = range(target.shape[1])
        losses = [dice_and_binary_entropy(found[:, k], target[:, k], from_logits=True) for k in masks]
        return torch.stack(losses).mean()


class InstanceCourse(Course[InstanceOptions]):
    """Training of a network that maps a picture to two logits."""

    OPTIONS: ClassVar = InstanceOptions

    def files(self, data: Path) -> list[Path]:
        """Images that are not held back, then their masks in the same order."""
        learned, _ = split(find_pairs(data), self.options.hold_back, self.options.split_seed)
        return [pair.image for pair in learned] + [pair.mask for pair in learned]

    def trainer(self, device: str) -> InstanceTrainer:
        """The network must take the channels of the recipe and give two masks, which its first step shows."""
        return InstanceTrainer(self.network(), self.options, device=device)

    def images(self, files: list[Path]) -> PatchSampler:
        """Patches of all pictures at the size they have; the recipe's zoom is one of the ranges they vary in."""
        half = len(files) // 2
        sources = [self._source(image, mask) for image, mask in zip(files[:half], files[half:], strict=True)]
        return PatchSampler(sources, self.options, self._recipe().preparation)

    def _source(self, image: Path, mask: Path) -> PatchSource:
        picture, ids = read_picture(image), read_ids(mask)
        if ids.shape != picture.size:
            raise InputRefused(
                f"{mask.name}: must be {picture.size[1]} x {picture.size[0]} pixels like '{image.name}', "
                f"got {ids.shape[1]} x {ids.shape[0]}"
            )
        options = self._recipe().preparation
        planes, inside = colour_planes(picture, field_of(picture, options), picture.size, options)
        return patch_source(planes, instance_targets(ids), inside)

    def _recipe(self) -> PictureRecipe:
        if not isinstance(self.recipe, PictureRecipe) or self.recipe.instances is None:
            raise UsageError("training 'instances' needs a recipe of pictures with a section 'instances'")
        return self.recipe
