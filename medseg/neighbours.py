"""What lies around the voxels of a volume: sums, means, and what is near; beyond its ends a volume is mirrored.

PyTorch alone and within what TorchScript compiles.
"""

from __future__ import annotations

import torch
from torch import Tensor


def neighbour_means(x: Tensor, reach: int) -> Tensor:
    """Means over cubes of `reach` voxels to each side."""
    x = with_mirrored_ends(x, reach)
    for axis in range(3):
        x = line_sums(x, axis, 2 * reach + 1) / (2 * reach + 1)
    return x


def with_mirrored_ends(x: Tensor, margin: int) -> Tensor:
    """`margin` voxels more on all six sides."""
    for axis in range(3):
        x = x.index_select(axis, mirrored(x.shape[axis], margin).to(x.device))
    return x


def mirrored(size: int, margin: int) -> Tensor:
    """Indices of a line that goes on as its mirror image at both ends, (size + 2 margin,)."""
    at = torch.arange(-margin, size + margin) % (2 * size)
    return torch.where(at < size, at, 2 * size - 1 - at)


def line_sums(x: Tensor, axis: int, length: int) -> Tensor:
    """Sums of `length` neighbours along an axis, at least 2; as many fewer values."""
    count = x.shape[axis] - length + 1
    summed = x.narrow(axis, 0, count) + x.narrow(axis, 1, count)
    for number in range(2, length):
        summed.add_(x.narrow(axis, number, count))
    return summed


def near(places: Tensor, reach: int) -> Tensor:
    """Where a place lies within `reach` voxels along every axis; bool, as the places are."""
    for axis in range(3):
        wide = places.index_select(axis, mirrored(places.shape[axis], reach).to(places.device))
        for step in range(2 * reach + 1):
            places = places | wide.narrow(axis, step, places.shape[axis])
    return places
