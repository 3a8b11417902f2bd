"""Which axes of a volume get finer voxels, where those lie, and what a network is told about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medseg.acquisition import Acquisition, kspace_axis, profile_axis
from medseg.errors import InputRefused
from medseg.volume import Grid

if TYPE_CHECKING:  # bundles have no recipes
    from medseg_pipelines.recipe import Upscaling

_CHANNELS = {"all": (1, 1), "slices": (2, 0)}  # without a guide, and doublings of the network
_REACH = 8.0  # finer voxels that the distance to the next slice is told in


def channels_and_doublings(upscaling: Upscaling) -> tuple[int, int]:
    """What the network of a recipe must have."""
    channels, doublings = _CHANNELS[upscaling.axes]
    return channels + int(upscaling.guide), doublings


@dataclass(frozen=True)
class FinerGrid:
    """A grid and the finer one that covers the same field of view.

    Attributes:
        before: Of the acquired volume.
        factors: Finer voxels per acquired one along each array axis.
    """

    before: Grid
    factors: tuple[int, int, int]

    @classmethod
    def of(cls, grid: Grid, upscaling: Upscaling) -> FinerGrid:
        """What a recipe makes of a grid.

        Raises:
            InputRefused: Slices are to be made thinner, and they are not thick.
        """
        if upscaling.axes == "all":
            return cls(grid, (2, 2, 2))
        spacing = np.asarray(grid.spacing)
        axis = int(spacing.argmax())
        factor = min(upscaling.largest_factor, round(spacing[axis] / float(np.delete(spacing, axis).min())))
        if factor < 2:
            steps = " x ".join(f"{step:.3g}" for step in spacing)
            raise InputRefused(
                f"image must have slices at least 1.5 times as thick as its voxels are wide, got voxels of {steps} mm; "
                "mr-superres doubles every axis"
            )
        x, y, z = (factor if i == axis else 1 for i in range(3))
        return cls(grid, (x, y, z))

    @property
    def after(self) -> Grid:
        """The finer grid; the outer corner of its first voxel lies where that of `before` lies."""
        steps = 1 / np.asarray(self.factors, np.float64)
        change = np.diag([*steps, 1.0])
        change[:3, 3] = (steps - 1) / 2  # the centre of a voxel lies half of it inside the corner
        x, y, z = (n * f for n, f in zip(self.before.shape, self.factors, strict=True))
        return Grid((x, y, z), self.before.affine @ change)

    @property
    def axis(self) -> int:
        """The array axis that is refined most; for all axes alike the last."""
        return max(range(3), key=lambda axis: (self.factors[axis], axis))

    def acquisition(self, upscaling: Upscaling) -> Acquisition:
        """How the recipe takes the acquired volume to have come about."""
        make = kspace_axis if upscaling.acquisition == "kspace" else profile_axis
        sizes = zip(self.after.shape, self.factors, strict=True)
        return Acquisition([None if factor == 1 else make(size, factor) for size, factor in sizes])


def slice_distance(size: int, factor: int) -> Tensor:
    """How far each finer voxel of a line lies from the centre of the slice around it, (size,), in units of `_REACH`."""
    place = (torch.arange(size) + 0.5) / factor
    return (place - place.floor() - 0.5).abs() * factor / _REACH
