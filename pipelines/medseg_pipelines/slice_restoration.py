"""A volume restored slice by slice; plain values in, so that it also travels in bundles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medseg.errors import InputRefused
from medseg.guide import MARGIN, flat_noise, repeated, tissue_noise
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
_RUN = 32  # slices whose guide or structure is found at once: each run reads MARGIN more on both sides


@dataclass(frozen=True, eq=False)
class SliceStack:
    """The slices of a volume as a network sees them.

    Attributes:
        volume: Whose slices these are.
        axis: The array axis along which they are stacked.
        scaling: From grey values to units of the network.
        voxels: (X, Y, S), in those units, cut off at the limits.
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
    guides = _Guides(stack.voxels, chosen, level) if options.guide else None
    structure = None
    if options.alike and len(chosen) == stack.count:  # a few slices lack their neighbours
        known = guides.level if guides else level
        known = flat_noise(torch.from_numpy(stack.voxels)) if known is None else known
        structure = _Structure(stack.voxels, residual, options, known)
    for start in range(0, len(chosen), options.batch):
        part = chosen[start : start + options.batch]
        place = slice(start, start + len(part))
        guide = guides.of(part) if guides else None
        image = network_input(stack.voxels, part, options, level, guide).to(device)
        ids = torch.from_numpy(np.ascontiguousarray(np.moveaxis(regions[:, :, place], 2, 0))).long().to(device)
        with torch.inference_mode():
            restored = restore(image, ids)[:, 0]
        found = np.clip(np.moveaxis(restored.float().cpu().numpy(), 0, 2), *options.limits)
        residual[:, :, place] = found - stack.voxels[:, :, part]
        if structure:
            structure.follow(place.stop)
        if progress:
            progress(place.stop, len(chosen))
    return structure.kept if structure else residual


class _Guides:
    """The guides of slices that are asked for in order, found many at a time."""

    def __init__(self, voxels: np.ndarray, chosen: list[int], level: float | None) -> None:
        self.voxels, self.waiting = voxels, list(chosen)
        self.level = tissue_noise(torch.from_numpy(voxels)) if level is None else level
        self.found: dict[int, np.ndarray] = {}

    def of(self, part: list[int]) -> np.ndarray:
        """(X, Y, part)."""
        while not self.found.keys() >= set(part):
            run, self.waiting = self.waiting[:_RUN], self.waiting[_RUN:]
            guide = find_guide(self.voxels, run, self.level)
            self.found |= {number: guide[:, :, place] for place, number in enumerate(run)}
        return np.stack([self.found.pop(number) for number in part], axis=2)


class _Structure:
    """A residual without what look-alike voxels have in common in it, found many slices at a time behind the network.

    Attributes:
        kept: The residual that is left, (X, Y, S).
    """

    def __init__(self, voxels: np.ndarray, residual: np.ndarray, options: SliceOptions, level: float) -> None:
        self.voxels, self.residual, self.options, self.level = voxels, residual, options, level
        self.kept = np.empty_like(residual)
        self.done = 0

    def follow(self, restored: int) -> None:
        """Go on as far as so many restored slices allow."""
        count = self.voxels.shape[2]
        while self.done < count and restored >= min(self.done + _RUN + MARGIN, count):
            first, last = max(0, self.done - MARGIN), min(self.done + _RUN + MARGIN, count)
            inner = slice(self.done - first, min(self.done + _RUN, count) - first)
            seen, taken = self.voxels[:, :, first:last], self.residual[:, :, first:last]
            given_back = self._shared(seen + taken, -taken)
            clean = np.clip((seen + taken + given_back)[:, :, inner], *self.options.limits)
            self.kept[:, :, self.done : self.done + _RUN] = clean - seen[:, :, inner]
            self.done += _RUN

    def _shared(self, clean: np.ndarray, taken: np.ndarray) -> np.ndarray:
        residual, left = torch.from_numpy(np.ascontiguousarray(taken)), torch.from_numpy(np.ascontiguousarray(clean))
        magnitudes = holds_magnitudes(self.options)
        return repeated(residual, left, self.level, self.options.alike, magnitudes=magnitudes).numpy()
