"""The eight ways in which a square can lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TURNS = 8  # quarter turns, and those of the mirrored square


def turned(image: NDArray, way: int, axes: tuple[int, int] = (0, 1)) -> NDArray:
    """An image after some quarter turns, from the fifth way on mirrored as well.

    Args:
        image: Any array.
        way: 0 to 7; 0 leaves it as it is.
        axes: Its rows and columns.

    Returns:
        A contiguous array of the same values; a rectangle has its sides exchanged by every odd way.
    """
    found = np.rot90(image, way % 4, axes=axes)
    return np.ascontiguousarray(np.flip(found, axes[0]) if way >= TURNS // 2 else found)
