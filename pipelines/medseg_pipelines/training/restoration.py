"""Restoration learned from good images that are degraded as a scanner would, or from pairs that a user has."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.degradation import low_dose_noise
from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras
from medseg.io import read
from medseg.losses import focal_region_loss
from medseg.networks.rat import RAT
from medseg_pipelines.recipe import RestorationRecipe, Slices
from medseg_pipelines.slices import (
    Scaling,
    channels_of,
    restored_slice,
    slice_axis,
    stacked,
)
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation, Section, Trainer
from medseg_pipelines.training.restoration_crops import Batch, Crops, Stack

_BODY = -300.0  # HU; the level of CT noise is stated inside the body
_DRAWS = 4  # noise patterns drawn per slice of a CT; flips and places make many of each


class Source(Section):
    """One good image."""

    file: str  # below the data folder
    held_out: tuple[int, int] | None = None  # slices first to last - 1 that training never sees, from the feet up
    planes: Literal["slices", "all"] = "slices"  # "all": of an isotropic volume also those along the other two axes
    repeat: int = Field(default=1, ge=1)  # times that it is among the images to draw from
    zooms: tuple[float, ...] = (1.0,)  # enlargements within the slices, each one more stack: finer pixels than scanned
    binned: int = Field(default=1, ge=1)  # so many voxels along each axis become their mean, with less noise of its own
    level: tuple[float, float] | None = None  # of this image, instead of the noise section's


class Noise(Section):
    """What is done to a good image."""

    kind: Literal["rician", "low-dose"]
    level: tuple[float, float]  # least and most: share of the scaled range (rician), HU inside the body (low-dose)
    cut_out: float = Field(default=0.0, ge=0, le=1)  # rician: share of the images that are cut out after the scan


class Pairs(Section):
    """Degraded and good files whose names sort into the same order."""

    degraded: str  # pattern below the data folder
    target: str


class RestorationOptions(Optimisation):
    """The `training` section of a recipe that learns to restore slices."""

    images: tuple[Source, ...] = ()
    noise: Noise | None = None
    pairs: Pairs | None = None
    steps: int = Field(ge=1)
    crop: int = Field(default=64, ge=16)  # pixels along both sides
    batch: int = Field(default=8, ge=1)
    contrast: float = Field(default=0.0, ge=0, le=1)  # share of images whose grey values are bent or inverted
    beta: float = 1e-3  # of the focal region loss

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> RestorationOptions:
        if bool(self.images) == bool(self.pairs) or bool(self.images) != bool(self.noise):
            raise ValueError("give either images with noise, or pairs")
        return self


def paired_files(data: Path, pairs: Pairs) -> list[Path]:
    """First all degraded files, then their targets in the same order.

    Raises:
        UsageError: There are none, or not as many of both.
    """
    degraded, target = (sorted(data.glob(pattern)) for pattern in (pairs.degraded, pairs.target))
    if not degraded or len(degraded) != len(target):
        raise UsageError(
            f"data folder '{data}' must hold as many files like {pairs.degraded} as like {pairs.target}, "
            f"found {len(degraded)} and {len(target)}; see --data"
        )
    return [*degraded, *target]


class RestorationTrainer(Trainer):
    """Learns the middle slice of a context, errors weighed up in the worst regions.

    Args:
        network: Starts as the identity; whatever it adds is learned.
        options: Of the optimiser.
        steps: Of the whole run.
        beta: Of the focal region loss.
        restored: From what the network sees and what it gives to the restored image; by default the latter.
        device: A torch device.
    """

    network: RAT

    def __init__(
        self,
        network: RAT,
        options: Optimisation,
        *,
        steps: int,
        beta: float,
        restored: Callable[[Tensor, Tensor], Tensor] | None = None,
        device: str = "cpu",
    ) -> None:
        for parameter in network.ending.parameters():
            nn.init.zeros_(parameter)  # the start is the identity: what the network finds wrong is added to the image
        super().__init__(network, options, total=steps, device=device)
        self.beta, self.restored = beta, restored

    def loss(self, sample: Batch) -> Tensor:
        """The focal region loss of RAT, section 4 of its training."""
        image, target, regions = (x.to(self.device) for x in (sample.image, sample.target, sample.regions))
        with self.autocast():
            found = self.network(image, regions)
            restored = found if self.restored is None else self.restored(image, found)
        return focal_region_loss(restored.float(), target, regions, beta=self.beta)


class RestorationCourse(Course[RestorationOptions]):
    """Training of a RAT network."""

    OPTIONS: ClassVar = RestorationOptions

    def files(self, data: Path) -> list[Path]:
        """The good images, or the pairs: first all degraded ones, then their targets."""
        if self.options.pairs is None:
            paths = [data / source.file for source in self.options.images]
            missing = [path.name for path in paths if not path.is_file()]
            if missing:
                raise UsageError(f"data folder '{data}' must hold {', '.join(missing)}, found none; see --data")
            return paths
        return paired_files(data, self.options.pairs)

    def trainer(self, device: str) -> RestorationTrainer:
        """The network must be a RAT that takes the slices of the recipe."""
        network, recipe = self.network(), self._recipe()
        if not isinstance(network, RAT):
            raise UsageError(f"training 'restoration' needs the network rat, got '{recipe.network.name}'")
        wanted = channels_of(recipe.slices)
        if network.intro.in_channels != wanted:
            raise UsageError(f"network.options.in_channels must be {wanted}, got {network.intro.in_channels}")
        if self.options.crop % network.multiple:
            raise UsageError(f"training.crop must be a multiple of {network.multiple}, got {self.options.crop}")
        return RestorationTrainer(
            network,
            self.options,
            steps=self.options.steps,
            beta=self.options.beta,
            restored=partial(restored_slice, context=recipe.slices.context, guide=recipe.slices.guide),
            device=device,
        )

    def images(self, files: list[Path]) -> Crops:
        """Crops of all slices that training may see."""
        if self.options.pairs is None:
            pairs = zip(files, self.options.images, strict=True)
            stacks = [stack for path, source in pairs for stack in self._degradable(path, source) * source.repeat]
        else:
            half = len(files) // 2
            stacks = [self._pair(a, b) for a, b in zip(files[:half], files[half:], strict=True)]
        small = [s for s in stacks if min(s.target.shape[:2]) < self.options.crop]
        if small:
            raise InputRefused(f"images must have at least {self.options.crop} pixels along both sides of a slice")
        return Crops(stacks, self.options, self._recipe())

    def _recipe(self) -> RestorationRecipe:
        if not isinstance(self.recipe, RestorationRecipe):
            raise UsageError(f"training 'restoration' needs a recipe that restores, got task {self.recipe.task}")
        return self.recipe

    def _degradable(self, path: Path, source: Source) -> list[Stack]:
        """The parts of a good image below and above what is held out."""
        volume = to_ras(read(path))[0]
        slices: Slices = self._recipe().slices
        scaled = Scaling.of(volume.voxels, slices).apply(volume.voxels)
        axes = range(3) if source.planes == "all" else [slice_axis(volume)]
        low, high = source.held_out or (0, 0)
        ends = ((0, low), (high, volume.shape[2]))
        parts = [_binned(scaled[:, :, start:stop], source.binned) for start, stop in ends]
        stacks = []
        for part, axis, zoom in product(parts, axes, source.zooms):
            flat = stacked(part, axis)
            if part.size and min(flat.shape[:2]) * zoom >= self.options.crop:
                stack = np.ascontiguousarray(_enlarged(flat, zoom))
                stacks.append(self._with_noise(stack, volume.spacing[0] * source.binned / zoom, source.level))
        return stacks

    def _with_noise(self, stack: np.ndarray, spacing: float, level: tuple[float, float] | None) -> Stack:
        """Noise patterns where they take longer to draw than a step may last."""
        if self.options.noise is None or self.options.noise.kind == "rician":
            return Stack(stack, level=level)
        return Stack(stack, noise=_ct_noise(stack, self._recipe().slices, spacing, self.options.seed), level=level)

    def _pair(self, degraded: Path, target: Path) -> Stack:
        """One pair on one grid, both scaled alike."""
        first, second = to_ras(read(degraded))[0], to_ras(read(target))[0]
        if not first.grid.equals(second.grid, tolerance=1e-3):
            raise InputRefused(f"'{degraded.name}' and '{target.name}' must lie on one grid, they do not; resample one")
        scaling, axis = Scaling.of(first.voxels, self._recipe().slices), slice_axis(first)
        a, b = (np.ascontiguousarray(stacked(scaling.apply(v.voxels), axis)) for v in (first, second))
        return Stack(b, degraded=a)


def _binned(voxels: np.ndarray, count: int) -> np.ndarray:
    """Means of cubes of `count` voxels; what is left over at the ends is dropped."""
    x, y, z = (size // count for size in voxels.shape)
    cubes = voxels[: x * count, : y * count, : z * count].reshape(x, count, y, count, z, count)
    return voxels if count == 1 else cubes.mean(axis=(1, 3, 5))


def _enlarged(stack: np.ndarray, zoom: float) -> np.ndarray:
    """(X, Y, S) with `zoom` times as many pixels along X and Y, linear between them."""
    if zoom == 1:
        return stack
    slices = torch.from_numpy(np.moveaxis(stack, 2, 0).copy())[:, None]
    enlarged = F.interpolate(slices, scale_factor=zoom, mode="bilinear", align_corners=False)
    return np.moveaxis(enlarged[:, 0].numpy(), 0, 2)


def _ct_noise(part: np.ndarray, slices: Slices, spacing: float, seed: int) -> np.ndarray:
    """Noise patterns of every slice, scaled to standard deviation 1 inside the body; (draws, X, Y, S)."""
    if slices.source is None:
        raise UsageError("training.noise low-dose needs slices.source, the HU that become 0 and 1")
    low, high = slices.source
    generator = torch.Generator().manual_seed(seed)
    patterns = np.empty((_DRAWS, *part.shape), np.float32)
    for index in range(part.shape[2]):
        hounsfield = torch.from_numpy(part[:, :, index].copy()) * (high - low) + low
        body = hounsfield > _BODY
        for draw in range(_DRAWS):
            cutoff = 0.6 + 0.4 * float(torch.rand((), generator=generator))
            noise = low_dose_noise(hounsfield, spacing, generator, cutoff=cutoff)
            patterns[draw, :, :, index] = (noise / noise[body if bool(body.any()) else ...].std()).numpy()
    return patterns
