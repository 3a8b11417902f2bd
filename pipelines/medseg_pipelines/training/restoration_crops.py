"""Crops that restoration is learned from: places in good images, degraded as by a scanner, and what is seen of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medseg.blank import blank_voxels, carried_on
from medseg.degradation import add_rician_noise, smooth_field
from medseg.guide import MARGIN, tissue_noise
from medseg.noise import noise_map
from medseg.partition import partition
from medseg.turns import TURNS, turned
from medseg_pipelines.recipe import RestorationRecipe
from medseg_pipelines.regions import partitioner
from medseg_pipelines.slices import find_guide, network_input

if TYPE_CHECKING:  # which imports this module
    from medseg_pipelines.training.restoration import RestorationOptions

_TRIES = 4  # draws of a place until it holds more than background
_SOMETHING = 0.2  # of the scaled range between the darkest and the brightest pixel
_SLABS = 8  # slabs with a guide that crops are drawn from
_KEPT = 2  # steps until one of them gives way to a new one
_DEPTH = 16  # slices of a slab
_APART = 2_000_000_011  # between the seeds of steps and those of slabs


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
        level: Least and most noise to add, where it is not as in the other stacks.
    """

    target: np.ndarray
    degraded: np.ndarray | None = None
    noise: np.ndarray | None = None
    level: tuple[float, float] | None = None


@dataclass(frozen=True)
class Slab:
    """A part of a stack as training draws it, in units of the network.

    Attributes:
        target: (X, Y, S), good.
        degraded: (X, Y, S).
        acquired: (X, Y, S), degraded before it was carried on into what was cut away; noise is estimated from it.
        guide: (X, Y, S), where the network sees one.
    """

    target: np.ndarray
    degraded: np.ndarray
    acquired: np.ndarray
    guide: np.ndarray | None = None


class Crops(Dataset[Batch]):
    """Batch number n of a training: drawn from the seed and n alone.

    Args:
        stacks: To draw from, each with the same chance.
        options: The training section.
        recipe: Whose slices and regions these are.
    """

    def __init__(self, stacks: list[Stack], options: RestorationOptions, recipe: RestorationRecipe) -> None:
        self.stacks, self.options, self.slices = stacks, options, recipe.slices
        self.slabs: dict[int, Slab] = {}
        self.how = partitioner(recipe.partition.kind, recipe.partition.options)
        width = 1.0 if recipe.slices.source is None else recipe.slices.source[1] - recipe.slices.source[0]
        self.unit = 1.0 if options.noise is None or options.noise.kind == "rician" else 1 / width

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        draw = self._from_slab if self.slices.guide else self._crop
        crops = [draw(step, generator) for _ in range(self.options.batch)]
        image, target, regions = (torch.stack(column) for column in zip(*crops, strict=True))
        return Batch(image, target, regions)

    def _crop(self, _step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        stack = self.stacks[_below(len(self.stacks), generator)]
        side = self.options.crop
        slab = self._degraded(stack, self._place(stack.target, side, self.slices.context, generator), generator)
        return self._seen(slab, (slice(None), slice(None)), list(range(self.slices.context)), generator)

    def _from_slab(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A crop of one of the latest slabs: a guide takes too long to be found for each crop alone."""
        newest = step // _KEPT
        slab = self._slab(max(0, newest - _below(_SLABS, generator)))
        width, height, depth = slab.target.shape
        side = self.options.crop
        x, y, middle = (_below(n, generator) for n in (width - side + 1, height - side + 1, depth))
        return self._seen(slab, (slice(x, x + side), slice(y, y + side)), self._around(middle, depth), generator)

    def _slab(self, number: int) -> Slab:
        """Slab number n of the run, drawn from the seed and n alone."""
        if number not in self.slabs:
            generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + _APART + number)
            stack = self.stacks[_below(len(self.stacks), generator)]
            side = min(self.options.crop * 3 // 2, *stack.target.shape[:2])
            slab = self._degraded(stack, self._place(stack.target, side, _DEPTH, generator), generator)
            level = tissue_noise(torch.from_numpy(slab.acquired))
            guide = find_guide(slab.degraded, list(range(slab.degraded.shape[2])), level)
            self.slabs = {n: kept for n, kept in self.slabs.items() if abs(n - number) < _SLABS}
            self.slabs[number] = replace(slab, guide=guide)
        return self.slabs[number]

    def _degraded(self, stack: Stack, place: tuple[Any, ...], generator: torch.Generator) -> Slab:
        """A part of a stack, cut off where the network sees no further values."""
        target = self._contrast(stack.target[place], generator)
        if stack.degraded is not None:
            degraded = stack.degraded[place]
        elif stack.noise is not None:
            pattern = stack.noise[_below(len(stack.noise), generator)][place]
            degraded = target + np.float32(self._level(stack, generator)) * pattern
        else:
            return self._magnitudes(stack, target, generator)
        degraded = np.clip(degraded, *self.slices.limits)
        return Slab(target, degraded, degraded)

    def _magnitudes(self, stack: Stack, target: np.ndarray, generator: torch.Generator) -> Slab:
        """A scan with Rician noise, and sometimes without what lies around the anatomy, as restoration then sees it."""
        assert self.options.noise is not None
        degraded = np.clip(self._rician(target, self._level(stack, generator), generator), *self.slices.limits)
        if self.options.noise.cut_out and float(torch.rand((), generator=generator)) < self.options.noise.cut_out:
            good = torch.from_numpy(target)
            blank = blank_voxels(good)
            acquired = torch.from_numpy(degraded).masked_fill(blank, float(good.min()))
            target, degraded = (carried_on(part, blank, MARGIN).numpy() for part in (good, acquired))
            return Slab(target, degraded, acquired.numpy())
        return Slab(target, degraded, degraded)

    def _seen(
        self, slab: Slab, square: tuple[slice, slice], around: list[int], generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees of a square and what it should give, in one of eight orientations."""
        reach, way = self.slices.context // 2, _below(TURNS, generator)
        target, degraded = (turned(part[*square, around], way) for part in (slab.target, slab.degraded))
        middle = around[reach : reach + 1]
        guide = None if slab.guide is None else turned(slab.guide[*square, middle], way)
        acquired = turned(slab.acquired[*square, middle], way)
        noise = noise_map(acquired) if self.slices.noise_map else None
        image = network_input(degraded, [reach], self.slices, guide=guide, noise=noise)[0]
        regions = partition(acquired, self.how)[:, :, 0]
        return image, torch.from_numpy(target[None, :, :, reach].copy()), torch.from_numpy(regions).long()

    def _around(self, middle: int, depth: int) -> list[int]:
        reach = self.slices.context // 2
        return np.clip(np.arange(middle - reach, middle + reach + 1), 0, depth - 1).tolist()

    def _place(self, stack: np.ndarray, side: int, slices: int, generator: torch.Generator) -> tuple[Any, ...]:
        """A square in a slice that holds more than background, and the slices around it."""
        width, height, depth = stack.shape
        middle = x = y = 0
        for _ in range(_TRIES):
            middle, x, y = (_below(n, generator) for n in (depth, width - side + 1, height - side + 1))
            if np.ptp(stack[x : x + side, y : y + side, middle]) > _SOMETHING:
                break
        first = middle - slices // 2
        return slice(x, x + side), slice(y, y + side), np.clip(np.arange(first, first + slices), 0, depth - 1)

    def _level(self, stack: Stack, generator: torch.Generator) -> float:
        """A noise level in units of the network, all magnitudes with the same chance."""
        assert self.options.noise is not None
        low, high = (np.log(v * self.unit) for v in stack.level or self.options.noise.level)
        return float(np.exp(low + (high - low) * float(torch.rand((), generator=generator))))

    def _rician(self, target: np.ndarray, level: Tensor | float, generator: torch.Generator) -> np.ndarray:
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
