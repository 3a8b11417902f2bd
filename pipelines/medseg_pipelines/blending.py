"""Sliding windows whose grey values are blended, on a grid that may be finer than the one the windows lie on.

The windows advance along the first axis; besides the result only the planes that later windows still reach are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from medseg_pipelines.inferers import Plan, blend_weights

Predict = Callable[[Tensor], Tensor]
See = Callable[[tuple[slice, ...]], Tensor]


def blended(
    predict: Predict,
    see: See,
    layout: Plan,
    shape: Sequence[int],
    *,
    scale: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Grey values of every voxel, windows blended with weights that fall towards their borders.

    Args:
        predict: (1, C, *window) float32 to (1, 1, *(scale window)).
        see: The channels of a window, (C, *window), from its place.
        layout: From `inferers.plan` for this shape.
        shape: Voxels that the windows lie on, (X, Y, Z); no window is larger.
        scale: Finer voxels per voxel along each axis.
        device: Where `predict` wants its input.
        progress: Called with the windows done and all windows; may raise to stop.

    Returns:
        (scale X, scale Y, scale Z) float32.
    """
    depth, done = scale * layout.window[0], 0
    weight = blend_weights([scale * side for side in layout.window])
    out = np.empty([scale * side for side in shape], np.float32)
    total = torch.zeros(2, depth, *out.shape[1:])  # weighted values, and the weights
    firsts = [*layout.starts[0], shape[0]]
    for row, first in enumerate(layout.starts[0]):
        for start in product((first,), *layout.starts[1:]):
            place = tuple(slice(at, at + side) for at, side in zip(start, layout.window, strict=True))
            fine = (slice(None), *(slice(scale * p.start, scale * p.stop) for p in place[1:]))
            total[0][fine].addcmul_(_values(predict, see(place), scale, device), weight)
            total[1][fine].add_(weight)
            done += 1
            if progress:
                progress(done, layout.tiles)
        closed = scale * (min(firsts[row + 1], first + layout.window[0]) - first)
        torch.div(
            total[0, :closed], total[1, :closed], out=torch.from_numpy(out[scale * first : scale * first + closed])
        )
        if closed < depth:
            total[:, : depth - closed] = total[:, closed:].clone()
        total[:, depth - closed :] = 0
    return out


def _values(predict: Predict, seen: Tensor, scale: int, device: torch.device | str) -> Tensor:
    """(scale window) values; a window of one value, as around a cut-out brain, needs no network."""
    if bool((seen[0] == seen[0, 0, 0, 0]).all()):
        return seen[0, 0, 0, 0].expand([scale * side for side in seen.shape[1:]])
    with torch.inference_mode():
        return predict(seen[None].to(device))[0, 0].float().cpu()
