"""What a network does for a volume with finer voxels: which windows it sees, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medseg.acquisition import along_axes, lanczos_axis
from medseg_pipelines import inferers
from medseg_pipelines.blending import Predict, blended
from medseg_pipelines.superresolution_grid import FinerGrid, slice_distance

if TYPE_CHECKING:  # bundles have no recipes
    from medseg_pipelines.recipe import Upscaling


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
    *,
    axes: str,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Finer voxels.

    Args:
        predict: (1, C, *window) to (1, 1, *window), or twice as many along every axis.
        acquired: (X, Y, Z), in units of the network.
        finer: Of the volume.
        layout: From `finer_plan`.
        axes: "all" or "slices".
        device: Where `predict` wants its input.
        progress: Called with the windows done and all windows; may raise to stop.

    Returns:
        (X, Y, Z) on the finer grid, in units of the network.
    """
    if axes == "all":
        shape = acquired.shape
        return blended(
            predict, lambda place: acquired[place][None], layout, shape, scale=2, device=device, progress=progress
        )
    axis = finer.axis
    operators = [
        None if f == 1 else lanczos_axis(n, f).float() for n, f in zip(acquired.shape, finer.factors, strict=True)
    ]
    stack = along_axes(acquired, operators).movedim(axis, 2)
    distance = slice_distance(stack.shape[2], finer.factors[axis])

    def see(place: tuple[slice, ...]) -> Tensor:
        block = stack[place]
        return torch.stack((block, distance[place[2]].expand(block.shape)))

    fine = blended(predict, see, layout, stack.shape, device=device, progress=progress)
    return np.ascontiguousarray(np.moveaxis(fine, 2, axis))
