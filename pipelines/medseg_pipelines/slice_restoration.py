"""A volume restored slice by slice; plain values in, so that it also travels in bundles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from medseg.blank import blank_voxels, carried_on
from medseg.errors import InputRefused
from medseg.guide import MARGIN, REPEATED_MARGIN, flat_noise, repeated, tissue_noise
from medseg.noise import noise_map
from medseg.partition import Partitioner, partition
from medseg.volume import Volume
from medseg_pipelines.slices import (
    Scaling,
    SliceOptions,
    find_guide,
    holds_magnitudes,
    network_input,
    slice_axis,
    stacked,
    unstacked,
)

Restore = Callable[[Tensor, Tensor], Tensor]
"""What the network sees (B, C, X, Y) and region ids (B, X, Y) to restored slices (B, 1, X, Y)."""
_SMALLEST = 10  # pixels along both sides of a slice; less holds no block to estimate noise from
_RUN = 32  # slices that are worked on at once


@dataclass(frozen=True, eq=False)
class SliceStack:
    """The slices of a volume as a network sees them.

    Attributes:
        volume: Whose slices these are.
        axis: The array axis along which they are stacked.
        scaling: From grey values to units of the network.
        voxels: (X, Y, S), in those units, cut off at the limits.
        blank: Where there is no image, same shape, bool.
        seen: The voxels carried on into what is blank.
    """

    volume: Volume
    axis: int
    scaling: Scaling
    voxels: np.ndarray

    @classmethod
    def of(cls, volume: Volume, options: SliceOptions) -> SliceStack:
        """The slices of a volume.

        Raises:
            InputRefused: They are too small to estimate noise from.
        """
        axis = slice_axis(volume)
        scaling = Scaling.of(volume.voxels, options)
        stack = np.ascontiguousarray(stacked(volume.voxels, axis))
        if min(stack.shape[:2]) < _SMALLEST:
            raise InputRefused(
                f"slices must have {_SMALLEST} voxels along both sides, got {stack.shape[:2]}; crop less"
            )
        return cls(volume, axis, scaling, np.clip(scaling.apply(stack), *options.limits))

    @cached_property
    def blank(self) -> Tensor:
        """See the attributes."""
        return blank_voxels(torch.from_numpy(self.voxels))

    @cached_property
    def seen(self) -> np.ndarray:
        """See the attributes; as far as means over neighbours reach."""
        if not bool(self.blank.any()):
            return self.voxels
        seen, voxels = np.empty_like(self.voxels), torch.from_numpy(self.voxels)
        for run, part, inner in _runs(self.count, MARGIN):
            seen[:, :, run] = carried_on(voxels[:, :, part], self.blank[:, :, part], MARGIN).numpy()[:, :, inner]
        return seen

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.voxels.shape[2]

    def regions(
        self,
        how: Partitioner,
        chosen: list[int] | None = None,
        *,
        device: str = "cpu",
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Region ids of all slices or of chosen ones, (X, Y, S); see `medseg.partition.partition`."""
        first, second = (step for axis, step in enumerate(self.volume.spacing) if axis != self.axis)
        voxels = self.voxels if chosen is None else self.voxels[:, :, chosen]
        spacing = (first, second, self.volume.spacing[self.axis])
        return partition(voxels, how, spacing=spacing, device=device, progress=progress)

    def restored(self, residual: np.ndarray) -> np.ndarray:
        """The voxels of the volume with a residual from `find_residual` added, float32."""
        change = residual * np.float32(self.scaling.width)
        return self.volume.voxels.astype(np.float32) + unstacked(change, self.axis)


def find_residual(
    stack: SliceStack,
    regions: np.ndarray,
    options: SliceOptions,
    restore: Restore,
    *,
    chosen: list[int] | None = None,
    level: float | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """What the network adds to the slices, batch by batch, less the structure that is found in it.

    Where there is no image nothing is added, and the network sees the image carried on there: its border is no edge.

    Args:
        stack: The slices.
        regions: Region ids of the slices to restore, (X, Y, S) or as many as are chosen.
        options: Of the recipe.
        restore: The network; what it gives is cut off at the limits, as its input was.
        chosen: Indices of the slices to restore; all if not given.
        level: Noise level in units of the network; None to estimate it around every pixel.
        device: Where `restore` wants its input.
        progress: Called with the slices done and all slices; may raise to stop.

    Returns:
        Restored minus seen, in units of the network, the shape of `regions`, float32.
    """
    chosen = list(range(stack.count)) if chosen is None else chosen
    residual = np.empty(regions.shape, np.float32)
    guides = _Guides(stack, chosen, level) if options.guide else None
    structure = None
    if options.alike and len(chosen) == stack.count:  # a few slices lack their neighbours
        known = guides.level if guides else level
        known = flat_noise(torch.from_numpy(stack.voxels)) if known is None else known
        structure = _Structure(stack, residual, options, known)
    for start in range(0, len(chosen), options.batch):
        part = chosen[start : start + options.batch]
        place = slice(start, start + len(part))
        guide = guides.of(part) if guides else None
        noise = noise_map(stack.voxels[:, :, part]) if level is None and options.noise_map else None
        image = network_input(stack.seen, part, options, level, guide, noise).to(device)
        ids = torch.from_numpy(np.ascontiguousarray(np.moveaxis(regions[:, :, place], 2, 0))).long().to(device)
        with torch.inference_mode():
            restored = restore(image, ids)[:, 0]
        found = np.clip(np.moveaxis(restored.float().cpu().numpy(), 0, 2), *options.limits)
        residual[:, :, place] = found - stack.seen[:, :, part]
        if structure:
            structure.follow(place.stop)
        if progress:
            progress(place.stop, len(chosen))
    kept = structure.kept if structure else residual
    kept[stack.blank[:, :, chosen].numpy()] = 0
    return kept


class _Guides:
    """The guides of slices that are asked for in order, found many at a time."""

    def __init__(self, stack: SliceStack, chosen: list[int], level: float | None) -> None:
        self.seen, self.waiting = stack.seen, list(chosen)
        self.level = tissue_noise(torch.from_numpy(stack.voxels)) if level is None else level
        self.found: dict[int, np.ndarray] = {}

    def of(self, part: list[int]) -> np.ndarray:
        """(X, Y, part)."""
        while not self.found.keys() >= set(part):
            run, self.waiting = self.waiting[:_RUN], self.waiting[_RUN:]
            guide = find_guide(self.seen, run, self.level)
            self.found |= {number: guide[:, :, place] for place, number in enumerate(run)}
        return np.stack([self.found.pop(number) for number in part], axis=2)


class _Structure:
    """A residual without what look-alike voxels have in common in it, found many slices at a time behind the network.

    Attributes:
        kept: The residual that is left, (X, Y, S).
    """

    def __init__(self, stack: SliceStack, residual: np.ndarray, options: SliceOptions, level: float) -> None:
        self.stack, self.residual, self.options, self.level = stack, residual, options, level
        self.kept = np.empty_like(residual)
        self.waiting = list(_runs(stack.count, REPEATED_MARGIN))

    def follow(self, restored: int) -> None:
        """Go on as far as so many restored slices allow."""
        while self.waiting and restored >= self.waiting[0][1].stop:
            run, part, inner = self.waiting.pop(0)
            seen, taken = self.stack.seen[:, :, part], self.residual[:, :, part]
            given_back = self._shared(seen + taken, -taken, self.stack.blank[:, :, part])
            clean = np.clip((seen + taken + given_back)[:, :, inner], *self.options.limits)
            self.kept[:, :, run] = clean - seen[:, :, inner]

    def _shared(self, clean: np.ndarray, taken: np.ndarray, blank: Tensor) -> np.ndarray:
        residual, left = torch.from_numpy(np.ascontiguousarray(taken)), torch.from_numpy(np.ascontiguousarray(clean))
        magnitudes = holds_magnitudes(self.options)
        alike = self.options.alike
        return repeated(residual, left, self.level, alike, magnitudes=magnitudes, blank=blank).numpy()


def _runs(count: int, margin: int) -> Iterator[tuple[slice, slice, slice]]:
    """Runs of slices, each with `margin` more on both sides, and where in that it lies."""
    for start in range(0, count, _RUN):
        stop, first = min(start + _RUN, count), max(0, start - margin)
        yield slice(start, stop), slice(first, min(stop + margin, count)), slice(start - first, stop - first)
