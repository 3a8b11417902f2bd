"""A picture restored window by window, blended; regions were found once for the whole of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import InputRefused
from medseg.networks.rat import RAT, restore
from medseg.partition import Partitioner, partition
from medseg.picture import Picture
from medseg_pipelines import inferers


def planes_of(picture: Picture, *, colour: bool) -> NDArray[np.float32]:
    """(C, H, W), 0 to 1, as many channels as the picture has or, for a network of colours, three.

    Raises:
        InputRefused: Its colours have 16 bit, which the result could not hold.
    """
    if picture.channels == 3 and picture.pixels.dtype != np.uint8:
        raise InputRefused("picture must have 8 bit per colour or be grey, got colours of 16 bit; save it with 8")
    planes = picture.unit_planes()
    return planes if colour else planes[: picture.channels]


def picture_regions(planes: NDArray[np.float32], how: Partitioner) -> NDArray[np.int32]:
    """Region ids (H, W) of a picture (C, H, W), found in its brightness."""
    return partition(planes.mean(0)[:, :, None], how)[:, :, 0]


def window_plan(
    size: tuple[int, int], window: int, overlap: float, *, scale: int, bytes_per_pixel: int = 0
) -> inferers.Plan:
    """Windows over a picture (H, W), in its own pixels."""
    shape, sides = (*size, 1), (window, window, 1)
    return inferers.plan(shape, sides, overlap, outputs=3 * scale**2, bytes_per_voxel=bytes_per_pixel)


def restored_planes(
    network: RAT,
    planes: NDArray[np.float32],
    regions: NDArray[np.int32],
    layout: inferers.Plan,
    *,
    colour: bool,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Windows with weights that fall towards their borders.

    Args:
        network: In evaluation mode, on the device.
        planes: (C, H, W), 0 to 1.
        regions: Region ids, (H, W).
        layout: From `window_plan`.
        colour: Whether the network sees all channels at once; else each for itself.
        device: Of the network.
        progress: Called with the windows done and all windows; may raise to stop.

    Returns:
        (C, scale H, scale W).
    """
    scale = network.scale
    height, width = (side * scale for side in planes.shape[1:])
    total, weights = np.zeros((len(planes), height, width), np.float32), np.zeros((height, width), np.float32)
    sides = (layout.window[0] * scale, layout.window[1] * scale, 1)
    weight = inferers.blend_weights(sides)[..., 0].numpy()
    for done, (row, column) in enumerate(product(*layout.starts[:2]), start=1):
        seen = (slice(row, row + layout.window[0]), slice(column, column + layout.window[1]))
        place = (slice(row * scale, row * scale + sides[0]), slice(column * scale, column * scale + sides[1]))
        found = restored_window(network, planes[(slice(None), *seen)], regions[seen], colour=colour, device=device)
        total[(slice(None), *place)] += found * weight
        weights[place] += weight
        if progress:
            progress(done, layout.tiles)
    return total / weights


def restored_window(
    network: RAT,
    planes: NDArray[np.float32],
    regions: NDArray[np.int32],
    *,
    colour: bool,
    device: torch.device | str = "cpu",
) -> NDArray[np.float32]:
    """(C, h, w) and region ids (h, w) to (C, scale h, scale w)."""
    image = torch.from_numpy(np.ascontiguousarray(planes)).to(device)
    ids = torch.from_numpy(enlarged_regions(regions, network.scale)).to(device)
    with torch.inference_mode():
        restored = restore(network, image[None] if colour else image[:, None], ids)
    return restored.reshape(len(planes), *restored.shape[2:]).float().cpu().numpy()


def as_pixels(restored: NDArray[np.float32], like: Picture) -> NDArray[np.integer]:
    """(C, H, W), 0 to 1, as pixels (H, W, channels) in the type of a picture."""
    depth = like.pixels.dtype
    found = np.moveaxis(restored.clip(0, 1) * np.iinfo(depth).max, 0, 2).round().astype(depth)
    return found if like.channels == found.shape[2] else found.mean(2, keepdims=True).astype(depth)


def enlarged_regions(regions: NDArray[np.integer], scale: int) -> NDArray[np.int64]:
    """Region ids at the size of the restored picture."""
    return np.repeat(np.repeat(regions, scale, 0), scale, 1).astype(np.int64)
