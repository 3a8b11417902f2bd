"""An image as the slices that a network of pictures sees: turned as a radiologist looks at them, with the way back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg.picture import Picture
from medseg.volume import Grid, Volume


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of a volume across one of its axes, or a picture as the only one.

    Attributes:
        slices: (S, rows, columns) grey values, or (1, rows, columns, 3) colours of 8 bit.
        grid: Of the image; of a picture one whose indices are (column, row, 0).
        order: The array axis of slices, of rows and of columns.
        flips: Whether rows and columns run against their array axis.
    """

    slices: np.ndarray
    grid: Grid
    order: tuple[int, int, int]
    flips: tuple[bool, bool] = (False, False)

    @classmethod
    def of_volume(cls, volume: Volume, axis: int) -> Stack:
        """Slices across an array axis: anterior or superior at the top, the patient's right or front at the left."""
        world, signs = volume.grid.axes
        row, column = sorted((a for a in range(3) if a != axis), key=lambda a: world[a], reverse=True)
        order, flips = (axis, row, column), (signs[row] > 0, signs[column] > 0)
        return cls(_arranged(volume.voxels, order, flips), volume.grid, order, flips)

    @classmethod
    def of_picture(cls, picture: Picture) -> Stack:
        """The picture as it is looked at."""
        height, width = picture.size
        return cls(picture.eight_bit()[None], Grid((width, height, 1), np.eye(4)), (2, 1, 0))

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.slices.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.slices.shape[1], self.slices.shape[2]

    @property
    def spacing(self) -> tuple[float, float]:
        """From row to row and from column to column, mm; 1 for a picture."""
        return self.grid.spacing[self.order[1]], self.grid.spacing[self.order[2]]

    def find(self, index: np.ndarray) -> np.ndarray:
        """A voxel index, (..., 3), as (column, row, slice)."""
        found = np.asarray(index, float)[..., list(self.order[::-1])].copy()
        for place, flipped, size in ((0, self.flips[1], self.size[1]), (1, self.flips[0], self.size[0])):
            if flipped:
                found[..., place] = size - 1 - found[..., place]
        return found

    def arranged(self, voxels: np.ndarray) -> np.ndarray:
        """Other values on the grid of the volume as slices, (S, rows, columns), a view."""
        return _arranged(voxels, self.order, self.flips)

    def restored(self, slices: np.ndarray) -> np.ndarray:
        """Slices, (S, rows, columns), in the order of the volume's own axes, a view."""
        turned = slices[:, :: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]
        return turned.transpose(np.argsort(self.order))


def _arranged(voxels: np.ndarray, order: tuple[int, int, int], flips: tuple[bool, bool]) -> np.ndarray:
    return voxels.transpose(order)[:, :: -1 if flips[0] else 1, :: -1 if flips[1] else 1]
