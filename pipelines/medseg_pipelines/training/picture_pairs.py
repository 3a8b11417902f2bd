"""Restoration of pictures learned from pairs: degraded or small ones, and what they should become."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from medseg.errors import InputRefused, UsageError
from medseg.io.pictures import read_picture
from medseg.networks.rat import RAT
from medseg.turns import TURNS, turned
from medseg_pipelines.picture_blending import enlarged_regions, picture_regions
from medseg_pipelines.recipe import PictureRestorationRecipe
from medseg_pipelines.regions import partitioner
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation
from medseg_pipelines.training.restoration import Batch, Pairs, RestorationTrainer, paired_files


class PicturePairOptions(Optimisation):
    """The `training` section of a recipe that learns to restore pictures."""

    pairs: Pairs
    steps: int = Field(ge=1)
    crop: int = Field(default=64, ge=16)  # pixels of the degraded picture along both sides
    batch: int = Field(default=8, ge=1)
    beta: float = 1e-3  # of the focal region loss


class PictureCrops(Dataset[Batch]):
    """Batch number n of a training: drawn from the seed and n alone.

    Args:
        pairs: Degraded (C, h, w) and good (C, scale h, scale w), 0 to 1.
        options: The training section.
        recipe: Whose scale and regions these are.
    """

    def __init__(
        self, pairs: list[tuple[np.ndarray, np.ndarray]], options: PicturePairOptions, recipe: PictureRestorationRecipe
    ) -> None:
        self.pairs, self.options, self.recipe = pairs, options, recipe

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        crops = [self._crop(generator) for _ in range(self.options.batch)]
        image, target, regions = (torch.stack(column) for column in zip(*crops, strict=True))
        return Batch(image, target, regions)

    def _crop(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        def below(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        degraded, target = self.pairs[below(len(self.pairs))]
        side, scale = self.options.crop, self.recipe.scale
        y, x, way = below(degraded.shape[1] - side + 1), below(degraded.shape[2] - side + 1), below(TURNS)
        small = turned(degraded[:, y : y + side, x : x + side], way, axes=(1, 2))
        large = turned(target[:, y * scale : (y + side) * scale, x * scale : (x + side) * scale], way, axes=(1, 2))
        if not self.recipe.colour:
            channel = below(len(small))
            small, large = small[channel : channel + 1], large[channel : channel + 1]
        section = self.recipe.partition
        regions = enlarged_regions(picture_regions(small, partitioner(section.kind, section.options)), scale)
        return torch.from_numpy(small), torch.from_numpy(large), torch.from_numpy(regions)


class PicturePairCourse(Course[PicturePairOptions]):
    """Training of a RAT network on pairs of pictures."""

    OPTIONS: ClassVar = PicturePairOptions

    def files(self, data: Path) -> list[Path]:
        """First all degraded pictures, then their targets."""
        return paired_files(data, self.options.pairs)

    def trainer(self, device: str) -> RestorationTrainer:
        """The network must be a RAT of the scale and the channels of the recipe."""
        network, recipe = self.network(), self._recipe()
        if not isinstance(network, RAT):
            raise UsageError(f"training 'picture-pairs' needs the network rat, got '{recipe.network.name}'")
        channels = 3 if recipe.colour else 1
        if (network.scale, network.intro.in_channels) != (recipe.scale, channels):
            raise UsageError(
                f"network.options must say scale {recipe.scale} and in_channels {channels}, "
                f"got {network.scale} and {network.intro.in_channels}"
            )
        if self.options.crop * recipe.scale % network.multiple:
            raise UsageError(
                f"training.crop times scale must be a multiple of {network.multiple}, "
                f"got {self.options.crop * recipe.scale}"
            )
        return RestorationTrainer(
            network, self.options, steps=self.options.steps, beta=self.options.beta, device=device
        )

    def images(self, files: list[Path]) -> PictureCrops:
        """Crops of all pairs."""
        half, recipe = len(files) // 2, self._recipe()
        pairs = [self._pair(a, b) for a, b in zip(files[:half], files[half:], strict=True)]
        return PictureCrops(pairs, self.options, recipe)

    def _pair(self, degraded: Path, target: Path) -> tuple[np.ndarray, np.ndarray]:
        small, large = read_picture(degraded), read_picture(target)
        scale = self._recipe().scale
        if large.size != (small.size[0] * scale, small.size[1] * scale):
            raise InputRefused(
                f"'{target.name}' must have {scale} x the pixels of '{degraded.name}' along both sides, "
                f"got {large.size[1]} x {large.size[0]} for {small.size[1]} x {small.size[0]}"
            )
        if min(small.size) < self.options.crop:
            raise InputRefused(f"pictures must have at least {self.options.crop} pixels along both sides")
        return small.unit_planes(), large.unit_planes()

    def _recipe(self) -> PictureRestorationRecipe:
        if not isinstance(self.recipe, PictureRestorationRecipe):
            raise UsageError(
                f"training 'picture-pairs' needs a recipe of task picture-restoration, got {self.recipe.task}"
            )
        return self.recipe
