"""Restoration learned from good images that are degraded as a scanner would, or from pairs that a user has."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from medseg.degradation import add_rician_noise, low_dose_noise, smooth_field
from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras
from medseg.io import read
from medseg.losses import focal_region_loss
from medseg.networks.rat import RAT
from medseg.partition import partition
from medseg_pipelines.recipe import RestorationRecipe, Slices
from medseg_pipelines.regions import partitioner
from medseg_pipelines.slices import Scaling, channels_of, network_input, restored_channels, slice_axis, stacked
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation, Section, Trainer

_BODY = -300.0  # HU; the level of CT noise is stated inside the body
_TRIES = 4  # draws of a place until it holds more than background
_SOMETHING = 0.2  # of the scaled range between the darkest and the brightest pixel
_DRAWS = 4  # noise patterns drawn per slice of a CT; flips and places make many of each


class Source(Section):
    """One good image."""

    file: str  # below the data folder
    held_out: tuple[int, int] | None = None  # slices first to last - 1 that training never sees, from the feet up
    planes: Literal["slices", "all"] = "slices"  # "all": of an isotropic volume also those along the other two axes
    zooms: tuple[float, ...] = (1.0,)  # enlargements within the slices, each one more stack: finer pixels than scanned


class Noise(Section):
    """What is done to a good image."""

    kind: Literal["rician", "low-dose"]
    level: tuple[float, float]  # least and most: share of the scaled range (rician), HU inside the body (low-dose)


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


@dataclass(frozen=True)
class Batch:
    """Crops as the network sees them.

    Attributes:
        image: (B, C, H, W).
        target: (B, 1, H, W).
        regions: (B, H, W), int64.
    """

    image: Tensor
    target: Tensor
    regions: Tensor


@dataclass(frozen=True)
class Stack:
    """Slices to learn from, in units of the network.

    Attributes:
        target: (X, Y, S), good.
        degraded: (X, Y, S), where a pair says so.
        noise: Patterns of CT noise with standard deviation 1 inside the body, (draws, X, Y, S).
    """

    target: np.ndarray
    degraded: np.ndarray | None = None
    noise: np.ndarray | None = None


class Crops(Dataset[Batch]):
    """Batch number n of a training: drawn from the seed and n alone.

    Args:
        stacks: To draw from, each with the same chance.
        options: The training section.
        recipe: Whose slices and regions these are.
    """

    def __init__(self, stacks: list[Stack], options: RestorationOptions, recipe: RestorationRecipe) -> None:
        self.stacks, self.options, self.slices = stacks, options, recipe.slices
        self.how = partitioner(recipe.partition.kind, recipe.partition.options)
        width = 1.0 if recipe.slices.source is None else recipe.slices.source[1] - recipe.slices.source[0]
        self.unit = 1.0 if options.noise is None or options.noise.kind == "rician" else 1 / width

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        crops = [self._crop(generator) for _ in range(self.options.batch)]
        image, target, regions = (torch.stack(column) for column in zip(*crops, strict=True))
        return Batch(image, target, regions)

    def _crop(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        stack = self.stacks[_below(len(self.stacks), generator)]
        reach = self.slices.context // 2
        place = self._place(stack.target, generator)
        target = self._contrast(stack.target[place], generator)
        if stack.degraded is not None:
            degraded = stack.degraded[place]
        elif stack.noise is not None:
            degraded = (
                target + np.float32(self._level(generator)) * stack.noise[_below(len(stack.noise), generator)][place]
            )
        else:
            degraded = self._rician(target, generator)
        way = _below(8, generator)
        target, degraded = _turned(target, way), np.clip(_turned(degraded, way), *self.slices.limits)
        image = network_input(degraded, [reach], self.slices)[0]
        regions = partition(degraded[:, :, reach : reach + 1], self.how)[:, :, 0]
        return image, torch.from_numpy(target[None, :, :, reach].copy()), torch.from_numpy(regions).long()

    def _place(self, stack: np.ndarray, generator: torch.Generator) -> tuple[slice, slice, np.ndarray]:
        """A square in a slice that holds more than background, and the slices around it."""
        width, height, depth = stack.shape
        side, reach = self.options.crop, self.slices.context // 2
        middle = x = y = 0
        for _ in range(_TRIES):
            middle, x, y = (_below(n, generator) for n in (depth, width - side + 1, height - side + 1))
            if np.ptp(stack[x : x + side, y : y + side, middle]) > _SOMETHING:
                break
        around = np.clip(np.arange(middle - reach, middle + reach + 1), 0, depth - 1)
        return slice(x, x + side), slice(y, y + side), around

    def _level(self, generator: torch.Generator) -> float:
        """A noise level in units of the network, all magnitudes with the same chance."""
        assert self.options.noise is not None
        low, high = (np.log(v * self.unit) for v in self.options.noise.level)
        return float(np.exp(low + (high - low) * float(torch.rand((), generator=generator))))

    def _rician(self, target: np.ndarray, generator: torch.Generator) -> np.ndarray:
        level: Tensor | float = self._level(generator)
        if bool(torch.rand((), generator=generator) < 0.5):
            level = level * smooth_field((target.shape[0], target.shape[1]), 0.6, 1.8, generator)[:, :, None]
        return add_rician_noise(torch.from_numpy(target), level, generator).numpy()

    def _contrast(self, target: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """Other grey values for the same anatomy: bent, inverted inside the head, scaled."""
        chance, bend, scale = torch.rand(3, generator=generator).tolist()
        if chance >= self.options.contrast:
            return target
        positive = np.clip(target, 0, None)
        if chance < 0.3 * self.options.contrast:
            positive = np.clip(1.05 - positive, 0, None) * np.clip(positive / 0.1, 0, 1)
        return (positive ** np.float32(0.6 + 0.9 * bend) * np.float32(0.6 + 0.8 * scale)).astype(np.float32)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(max(1, count), (), generator=generator))


def _turned(crop: np.ndarray, way: int) -> np.ndarray:
    """One of the eight turns and flips of a square crop, (X, Y, S)."""
    turned = np.rot90(crop, way % 4)
    return np.ascontiguousarray(turned[::-1] if way >= 4 else turned)


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
        restored: Which outputs are the restored image; by default all.
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
        restored: slice = slice(None),
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
            restored = self.network(image, regions)
        return focal_region_loss(restored[:, self.restored].float(), target, regions, beta=self.beta)


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
            restored=restored_channels(recipe.slices),
            device=device,
        )

    def images(self, files: list[Path]) -> Crops:
        """Crops of all slices that training may see."""
        if self.options.pairs is None:
            pairs = zip(files, self.options.images, strict=True)
            stacks = [stack for path, source in pairs for stack in self._degradable(path, source)]
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
        parts = [scaled[:, :, start:stop] for start, stop in ((0, low), (high, volume.shape[2]))]
        stacks = []
        for part, axis, zoom in product(parts, axes, source.zooms):
            flat = stacked(part, axis)
            if part.size and min(flat.shape[:2]) * zoom >= self.options.crop:
                stack = np.ascontiguousarray(_enlarged(flat, zoom))
                stacks.append(self._with_noise(stack, volume.spacing[0] / zoom))
        return stacks

    def _with_noise(self, stack: np.ndarray, spacing: float) -> Stack:
        """Noise patterns where they take longer to draw than a step may last."""
        if self.options.noise is None or self.options.noise.kind == "rician":
            return Stack(stack)
        return Stack(stack, noise=_ct_noise(stack, self._recipe().slices, spacing, self.options.seed))

    def _pair(self, degraded: Path, target: Path) -> Stack:
        """One pair on one grid, both scaled alike."""
        first, second = to_ras(read(degraded))[0], to_ras(read(target))[0]
        if not first.grid.equals(second.grid, tolerance=1e-3):
            raise InputRefused(f"'{degraded.name}' and '{target.name}' must lie on one grid, they do not; resample one")
        scaling, axis = Scaling.of(first.voxels, self._recipe().slices), slice_axis(first)
        a, b = (np.ascontiguousarray(stacked(scaling.apply(v.voxels), axis)) for v in (first, second))
        return Stack(b, degraded=a)


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
