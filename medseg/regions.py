"""Masks of any origin to a region map, and region maps on other grids.

A region map is a partition for attention: its ids mean nothing and have no order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def region_map(masks: Tensor) -> Tensor:
    """Paint masks over each other, largest first, so that small ones stay visible; the rest is one more region.

    Args:
        masks: (M, H, W), boolean or 0 and 1, in any order; may be none. Of equal areas the later one lies on top.

    Returns:
        (H, W), int64: i for the i-th largest mask, M + 1 where no mask is. A mask that others cover leaves a gap.

    Raises:
        ValueError: The masks do not form a stack.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks must be (M, H, W), got {tuple(masks.shape)}")
    masks = masks.bool()
    order = masks.flatten(1).sum(1).argsort(descending=True, stable=True)
    found = torch.full(masks.shape[1:], len(masks) + 1, dtype=torch.int64, device=masks.device)
    for number, index in enumerate(order.tolist(), start=1):
        found[masks[index]] = number
    return found


def downscale(regions: Tensor, factor: int) -> Tensor:
    """Region ids (..., H, W) at the upper left pixel of each cell of `factor` pixels, (..., H // factor, W // factor).

    Small regions may vanish; that is how the published weights were trained.
    """
    height, width = (side // factor * factor for side in regions.shape[-2:])
    return regions[..., :height:factor, :width:factor]


def checked(regions: Tensor) -> Tensor:
    """Region ids as int64.

    Args:
        regions: (B, H, W), integer or floating.

    Raises:
        ValueError: An id is negative or no whole number.
    """
    whole = regions.long()
    if bool((whole < 0).any()) or (regions.is_floating_point() and bool((regions != whole).any())):
        raise ValueError("region ids must be whole numbers from 0 on: number the regions before the network sees them")
    return whole


def pad_to_multiple(x: Tensor, multiple: int | Sequence[int]) -> Tensor:
    """Mirror an image or a region map at its lower and right border, up to multiples.

    Where a side is too short to be mirrored, its edge is repeated.

    Args:
        x: (B, C, H, W) or (B, H, W), any dtype.
        multiple: Of height and width.

    Returns:
        The same with sides that are multiples.
    """
    rows, columns = (multiple, multiple) if isinstance(multiple, int) else multiple
    for axis, wanted in ((-2, rows), (-1, columns)):
        x = _extended(x, axis, -x.shape[axis] % wanted)
    return x


def _extended(x: Tensor, axis: int, count: int) -> Tensor:
    """`x` with `count` more lines behind the last one of an axis."""
    size = x.shape[axis]
    if not count:
        return x
    lines = torch.arange(size + count, device=x.device)
    mirrored = size - 1 - (lines - (size - 1)).abs() if count < size else lines.clamp(max=size - 1)
    return x.index_select(axis, mirrored)


def region_mean(values: Tensor, regions: Tensor) -> Tensor:
    """Mean over all pixels of the same region of the same image, at every pixel.

    Args:
        values: (B, H, W), floating point.
        regions: Region ids, (B, H, W), any numbers.

    Returns:
        (B, H, W).
    """
    image = torch.arange(regions.shape[0], device=regions.device)[:, None].expand(-1, regions[0].numel())
    pairs = torch.stack((image.flatten(), regions.long().flatten()))
    _, number = pairs.unique(dim=1, return_inverse=True)
    flat = values.flatten()
    sums = flat.new_zeros(int(number.max()) + 1).index_add(0, number, flat)
    return (sums / number.bincount())[number].view_as(values)
