"""Slices that slide sideways or lie unevenly, resampled to a right-angled even grid, and the way back to the slices.

All slices are parallel and share their axes, so along rows and columns each is only shifted; along the normal two
neighbours are mixed. Interpolation is linear; nothing is invented beyond the slices, and gaps of more than four steps
are not bridged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_WIDEST_GAP = 4.05  # usual steps; beyond it interpolation would show what nobody measured
_ON_SLICE = 1e-2  # share of a step within which a slice of the grid is a slice of the series
_WHOLE = 1e-4  # voxels


@dataclass(frozen=True, eq=False)
class Correction:
    """From N slices to a grid of their own axes, and back.

    Attributes:
        origin: (3,) first voxel of the grid along the axes of the slices, mm.
        spacing: mm along rows, columns and the normal.
        shape: Of the grid: voxels along rows, columns and the normal.
        size: Columns and rows of a slice.
        starts: (N, 3) index on the grid of the first pixel of each slice.
    """

    origin: np.ndarray
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    size: tuple[int, int]
    starts: np.ndarray

    @classmethod
    def plan(
        cls, positions: np.ndarray, size: tuple[int, int], *, spacing: tuple[float, float], usual: float
    ) -> Correction | None:
        """The grid over all slices, or None where a gap is too wide.

        Args:
            positions: (N, 3) first pixel of each slice along rows, columns and the normal, mm, rising along the normal.
            size: Columns and rows.
            spacing: mm along a row, and down a column.
            usual: mm between most slices, the spacing of the grid along the normal.
        """
        if np.diff(positions[:, 2]).max() > _WIDEST_GAP * usual:
            return None
        origin = positions.min(axis=0)
        steps = np.array([*spacing, usual])
        starts = (positions - origin) / steps
        starts = np.where(np.abs(starts - np.rint(starts)) < _WHOLE, np.rint(starts), starts)
        reach = starts.max(axis=0)
        x, y = (int(np.ceil(reach[axis])) + size[axis] for axis in range(2))
        z = int(np.floor(reach[2] + 0.5)) + 1  # the last slice is never further than half a step from the grid
        return cls(origin, (spacing[0], spacing[1], usual), (x, y, z), size, starts)

    @property
    def words(self) -> str:
        """What was done, for the record."""
        count = sum(1 for _, _, share in map(self._neighbours, range(self.shape[2])) if share)
        x, y, z = self.shape
        return (
            f"{len(self.starts)} slices were resampled linearly to a grid of {x} x {y} x {z} voxels, "
            f"{self.spacing[2]:.4g} mm between slices; {count} of its slices lie between measured ones"
        )

    def apply(self, read: Callable[[int], np.ndarray], fill: float) -> np.ndarray:
        """(X, Y, Z) values on the grid, float32.

        Args:
            read: The (rows, columns) values of a slice by its index; asked for each slice in rising order, and at most
                once but for neighbours.
            fill: What voxels hold that no slice covers.
        """
        grid = np.full((self.shape[2], self.shape[1], self.shape[0]), fill, np.float32)
        kept: dict[int, tuple[np.ndarray, tuple[slice, slice]]] = {}
        for z in range(self.shape[2]):
            below, above, share = self._neighbours(z)
            wanted = {below: 1 - share} | ({above: share} if share else {})
            kept = {index: kept[index] if index in kept else self._shifted(read(index), index) for index in wanted}
            weight = np.zeros(grid.shape[1:], np.float32)
            total = np.zeros(grid.shape[1:], np.float32)
            for index, part in wanted.items():
                values, place = kept[index]
                total[place] += np.float32(part) * values
                weight[place] += np.float32(part)
            np.divide(total, weight, out=grid[z], where=weight > 0)
        return grid.transpose()

    def to_slices(self, voxels: np.ndarray) -> np.ndarray:
        """(X, Y, N) values of the slices as they were taken: of each pixel, the nearest voxel of the grid.

        Args:
            voxels: (X, Y, Z) on the grid.

        Raises:
            ValueError: They have another shape.
        """
        if voxels.shape != self.shape:
            raise ValueError(f"voxels must have the shape of the corrected grid {self.shape}, got {voxels.shape}")
        columns, rows = self.size
        slices = np.empty((columns, rows, len(self.starts)), voxels.dtype)
        for index, start in enumerate(self.starts):
            x, y = (np.floor(start[axis] + np.arange(self.size[axis]) + 0.5).astype(int) for axis in range(2))
            z = int(np.clip(np.floor(start[2] + 0.5), 0, self.shape[2] - 1))
            x, y = x.clip(0, self.shape[0] - 1), y.clip(0, self.shape[1] - 1)
            slices[..., index] = voxels[:, :, z][np.ix_(x, y)]
        return slices

    def _neighbours(self, z: int) -> tuple[int, int, float]:
        """The slices below and above a slice of the grid, and the share of the upper one."""
        heights = self.starts[:, 2]
        nearest = int(np.argmin(np.abs(heights - z)))
        if abs(heights[nearest] - z) < _ON_SLICE or z > heights[-1]:
            return nearest, nearest, 0.0
        above = int(np.searchsorted(heights, z))
        low, high = heights[above - 1], heights[above]
        return above - 1, above, float((z - low) / (high - low))

    def _shifted(self, values: np.ndarray, index: int) -> tuple[np.ndarray, tuple[slice, slice]]:
        """A slice interpolated at whole voxels of the grid, and where it lies there (rows, columns)."""
        places = []
        moved = values.astype(np.float32)
        for axis, start in ((0, self.starts[index, 1]), (1, self.starts[index, 0])):
            first = int(np.ceil(start - _WHOLE))
            part = first - start
            if part > _WHOLE:
                before, after = (np.take(moved, range(at, moved.shape[axis] - 1 + at), axis=axis) for at in (0, 1))
                moved = before * np.float32(1 - part) + after * np.float32(part)
            places.append(slice(first, first + moved.shape[axis]))
        return moved, (places[0], places[1])
