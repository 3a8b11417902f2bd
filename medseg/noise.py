"""How strong the noise of an image is, found from the image itself; NumPy and SciPy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

_BLOCK = 8  # pixels: 64 of them fix a median to about 8 %, and anatomy rarely fills a block with edges
_REACH = 2.0  # blocks over which the level is smoothed
_MEDIAN = 0.6745  # of the absolute value of a normal variable with standard deviation 1
_EMPTY = 0.5  # share of a block's pixels that may equal the smallest value: a cut-out background holds no noise


def detail(slices: np.ndarray) -> np.ndarray:
    """The part of each slice that white noise passes with unchanged strength and smooth anatomy hardly at all.

    The difference of two Laplacians of Immerkaer (1996, eq. 1), divided by its gain of 6.

    Args:
        slices: (X, Y, S), floating point, at least 3 pixels along X and Y.

    Returns:
        (X - 2, Y - 2, S), float32.
    """
    x = slices.astype(np.float32, copy=False)
    across = x[:-2] - 2 * x[1:-1] + x[2:]
    return (across[:, :-2] - 2 * across[:, 1:-1] + across[:, 2:]) / 6


def noise_level(slices: np.ndarray) -> float:
    """One noise level for all slices: the median of `detail` where there is an image at all, no padding.

    Too high by about the share of the pixels that strong edges cover, commonly a tenth.

    Args:
        slices: (X, Y, S), at least 3 pixels along X and Y.

    Returns:
        Standard deviation in grey values; 0 where there is nothing but background.
    """
    high = np.abs(detail(slices))
    filled = ~_padding(slices)
    return float(np.median(high[filled]) / _MEDIAN) if filled.any() else 0.0


def noise_map(slices: np.ndarray) -> np.ndarray:
    """The noise level around every pixel, each slice for itself.

    Medians of `detail` over blocks of 8 x 8 pixels, smoothed over their neighbours; blocks that are mostly padding
    or cut-out background take the level of the others.

    Args:
        slices: (X, Y, S), floating point, at least 10 pixels along X and Y.

    Returns:
        (X, Y, S), float32, standard deviation in grey values.

    Raises:
        ValueError: A slice is too small to hold one block.
    """
    width, height, _ = slices.shape
    if min(width, height) < _BLOCK + 2:
        raise ValueError(f"slices must have at least {_BLOCK + 2} pixels along both axes, got {width} x {height}")
    levels = _blocks(np.abs(detail(slices)), np.median) / _MEDIAN
    empty = _blocks(_padding(slices).astype(np.float32), np.mean)
    weight = (empty <= _EMPTY).astype(np.float32) + 1e-6
    sigma = (_REACH, _REACH, 0)
    smooth = ndimage.gaussian_filter(levels * weight, sigma, mode="nearest")
    smooth /= ndimage.gaussian_filter(weight, sigma, mode="nearest")
    return _enlarged(smooth, width, height)


def _padding(slices: np.ndarray) -> np.ndarray:
    """Where there is no image, (X - 2, Y - 2, S): at the smallest value, or as constant as a corner of the slice.

    Scanners fill what lies outside of their circle, and resampling what it has no data for, with another value each.
    """
    inner, least = (slice(1, -1), slice(1, -1)), slices.min()
    found = slices[inner] <= least
    for corner in slices[[0, 0, -1, -1], [0, -1, 0, -1]]:
        if (corner > least).any():
            same = slices == corner
            along, across = same[:-2] & same[2:], same[:, :-2] & same[:, 2:]
            found |= same[inner] & along[:, 1:-1] & across[1:-1]
    return found


def _blocks(values: np.ndarray, reduce: Callable[..., np.ndarray]) -> np.ndarray:
    """(X, Y, S) to one number per whole block and slice, (X // 8, Y // 8, S)."""
    columns, rows = (size // _BLOCK for size in values.shape[:2])
    cut = values[: columns * _BLOCK, : rows * _BLOCK]
    blocks = cut.reshape(columns, _BLOCK, rows, _BLOCK, -1).transpose(0, 2, 4, 1, 3)
    return reduce(blocks.reshape(columns, rows, -1, _BLOCK * _BLOCK), axis=-1).astype(np.float32)


def _enlarged(blocks: np.ndarray, width: int, height: int) -> np.ndarray:
    """Linear between the centres of the blocks, constant beyond the outer ones."""
    for axis, size in enumerate((width, height)):
        at = np.clip((np.arange(size) - 1 - (_BLOCK - 1) / 2) / _BLOCK, 0, blocks.shape[axis] - 1)
        low = at.astype(int)
        share = (at - low).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(3)])
        high = np.minimum(low + 1, blocks.shape[axis] - 1)
        blocks = blocks.take(low, axis) * (1 - share) + blocks.take(high, axis) * share
    return blocks
