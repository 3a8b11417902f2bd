"""Size, place and form of separate things on a picture, found in one pass over its rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROWS = 512  # at once: memory is bounded whatever the picture


@dataclass(frozen=True, eq=False)
class Things:
    """One entry per thing, in the order of their numbers.

    Attributes:
        area: Pixels.
        row: Of the centre, from 0.
        column: Of the centre, from 0.
        top, bottom, left, right: First and last row and column.
        long: Length in pixels of the longer axis of the ellipse with the same second moments.
        short: Of its shorter axis.
        at_border: Whether it touches the border of the picture, and so may be cut.
    """

    area: NDArray[np.int64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    top: NDArray[np.int64]
    bottom: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    long: NDArray[np.float64]
    short: NDArray[np.float64]
    at_border: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.area)


def measure_things(ids: NDArray[np.integer]) -> Things:
    """Measure things numbered 1 to n without gaps, (H, W)."""
    height, width = ids.shape
    n = int(ids.max())
    sums = np.zeros((6, n + 1))  # of 1, y, x, y^2, x^2, y x
    extent = np.array([[height], [-1], [width], [-1]]).repeat(n + 1, axis=1)
    for start in range(0, height, _ROWS):
        strip = ids[start : start + _ROWS]
        y, x = np.nonzero(strip)
        which, y = strip[y, x], (y + start).astype(np.float64)
        for total, weight in zip(sums, (None, y, x, y * y, x * x.astype(np.float64), y * x), strict=True):
            total += np.bincount(which, weight, minlength=n + 1)
        for axis, place in ((0, y), (2, x)):
            np.minimum.at(extent[axis], which, place.astype(np.int64))
            np.maximum.at(extent[axis + 1], which, place.astype(np.int64))
    area, *moments = sums[:, 1:]
    y, x, yy, xx, yx = (moment / area for moment in moments)
    long, short = _axes(yy - y * y + 1 / 12, xx - x * x + 1 / 12, yx - y * x)
    top, bottom, left, right = extent[:, 1:]
    at_border = (top == 0) | (left == 0) | (bottom == height - 1) | (right == width - 1)
    return Things(area.astype(np.int64), y, x, top, bottom, left, right, long, short, at_border)


def _axes(
    yy: NDArray[np.float64], xx: NDArray[np.float64], yx: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Axes of ellipses with given central moments."""
    middle, spread = (yy + xx) / 2, np.sqrt(((yy - xx) / 2) ** 2 + yx**2)
    return 4 * np.sqrt(middle + spread), 4 * np.sqrt(np.maximum(middle - spread, 0))
