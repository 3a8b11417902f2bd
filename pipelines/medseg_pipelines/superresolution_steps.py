"""What a network does for a volume with finer voxels: which windows it sees, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medseg.acquisition import along_axes, lanczos_axis
from medseg.guide import MARGIN, non_local_means, tissue_noise
from medseg_pipelines import inferers
from medseg_pipelines.blending import Predict, blended
from medseg_pipelines.superresolution_grid import FinerGrid, slice_distance

if TYPE_CHECKING:  # bundles have no recipes
    from medseg_pipelines.recipe import Upscaling

_FAINT = 0.0125  # of the brightest tissue; what would be lost with noise as weak as this is worth more
_PLANES = 40  # of the volume whose guide is found at once


def finer_plan(finer: FinerGrid, upscaling: Upscaling) -> inferers.Plan:
    """The windows, on the acquired grid or, of slices, on the finer one with the slice axis last."""
    shape = list(finer.before.shape)
    if upscaling.axes == "slices":
        shape = list(finer.after.shape)
        shape.append(shape.pop(finer.axis))
    return inferers.plan(
        shape, upscaling.window, upscaling.overlap, outputs=1, bytes_per_voxel=upscaling.bytes_per_voxel
    )


def refined(
    predict: Predict,
    acquired: Tensor,
    finer: FinerGrid,
    layout: inferers.Plan,
    upscaling: Upscaling,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Finer voxels.

    Args:
        predict: (1, C, *window) to (1, 1, *window), or twice as many along every axis.
        acquired: (X, Y, Z), in units of the network.
        finer: Of the volume.
        layout: From `finer_plan`.
        upscaling: Of the recipe.
        device: Where `predict` wants its input.
        progress: Called with the windows done and all windows; may raise to stop.

    Returns:
        (X, Y, Z) on the finer grid, in units of the network.
    """
    tick = None if progress is None else partial(progress, 0, layout.tiles)
    seen = with_guide(acquired, tick) if upscaling.guide else acquired[None]
    if upscaling.axes == "all":
        return blended(
            predict,
            lambda place: seen[(slice(None), *place)],
            layout,
            acquired.shape,
            scale=2,
            device=device,
            progress=progress,
        )
    axis = finer.axis
    operators = [
        None if f == 1 else lanczos_axis(n, f).float() for n, f in zip(acquired.shape, finer.factors, strict=True)
    ]
    stacks = torch.stack([along_axes(volume, operators).movedim(axis, 2) for volume in seen])
    distance = slice_distance(stacks.shape[3], finer.factors[axis])

    def see(place: tuple[slice, ...]) -> Tensor:
        blocks = stacks[(slice(None), *place)]
        return torch.cat((blocks, distance[place[2]].expand(1, *blocks.shape[1:])))

    fine = blended(predict, see, layout, stacks.shape[1:], device=device, progress=progress)
    return np.ascontiguousarray(np.moveaxis(fine, 2, axis))


def with_guide(acquired: Tensor, tick: Callable[[], None] | None = None) -> Tensor:
    """What a network with a guide sees.

    Args:
        acquired: (X, Y, Z) magnitudes, in units of the network.
        tick: Called every few seconds; may raise to stop.

    Returns:
        (2, X, Y, Z): by non-local means, and as they are.
    """
    level = max(tissue_noise(acquired, air=True) ** 2 - _FAINT**2, 0.0) ** 0.5
    parts = []
    for first in range(0, acquired.shape[0], _PLANES):
        if tick:
            tick()
        before = min(first, MARGIN)
        part = non_local_means(acquired[first - before : first + _PLANES + MARGIN], level)
        parts.append(part[before : before + _PLANES])
    return torch.stack((torch.cat(parts), acquired))
