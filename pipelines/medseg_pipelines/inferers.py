"""Sliding windows whose class scores become labels as soon as no later window can change them.

The usual way holds the scores of every class for the whole volume, then takes the best: 1.5 GB for a 256^3 head and
twelve classes, at float16. Here the windows advance along one axis, and only the planes that are still open are held.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.components import keep_largest

Predict = Callable[[Tensor], Tensor]
_CHUNK = 1 << 20  # voxels labelled at once


@dataclass(frozen=True)
class Plan:
    """Where the windows lie and what they cost.

    Attributes:
        window: Voxels per axis, never more than the volume rounded up to what the network takes.
        starts: First voxel of the windows along each axis.
        peak_bytes: Expected memory of image, open scores, labels and one window of network features.
    """

    window: tuple[int, int, int]
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    peak_bytes: int

    @property
    def tiles(self) -> int:
        """Number of windows."""
        return prod(len(axis) for axis in self.starts)


def plan(
    shape: Sequence[int],
    window: Sequence[int],
    overlap: float,
    *,
    outputs: int,
    multiple: int = 1,
    bytes_per_voxel: int = 0,
) -> Plan:
    """Lay windows over a volume.

    Args:
        shape: Voxels of the volume, (X, Y, Z).
        window: The largest window, multiples of `multiple`.
        overlap: Least share of a window that its neighbour repeats, in [0, 1).
        outputs: Scores per voxel.
        multiple: What the network wants every side to be a multiple of.
        bytes_per_voxel: Memory that the network takes per voxel of a window.
    """
    sides = [min(side, ceil(size / multiple) * multiple) for side, size in zip(window, shape, strict=True)]
    starts = [_starts(size, side, overlap) for size, side in zip(shape, sides, strict=True)]
    tiles = prod(len(axis) for axis in starts)
    padded = [max(size, side) for size, side in zip(shape, sides, strict=True)]
    open_planes = sides[0] * padded[1] * padded[2] if tiles > 1 else 0
    peak = 5 * prod(padded) + 4 * outputs * open_planes + (bytes_per_voxel + 8 * outputs) * prod(sides)
    return Plan((sides[0], sides[1], sides[2]), (starts[0], starts[1], starts[2]), peak)


def _starts(size: int, side: int, overlap: float) -> tuple[int, ...]:
    """First voxel of each window along one axis: as few as the overlap allows, evenly spread."""
    if size <= side:
        return (0,)
    count = ceil((size - side) / max(1.0, side * (1 - overlap))) + 1
    return tuple(round(i * (size - side) / (count - 1)) for i in range(count))


def through_slices(predict: Predict) -> Predict:
    """What a network of slices makes of windows one voxel deep: (B, C, X, Y, 1) to (B, K, X, Y, 1)."""

    def of_window(window: Tensor) -> Tensor:
        return predict(window[..., 0])[..., None]

    return of_window


def label_volume(
    predict: Predict,
    image: np.ndarray,
    *,
    layout: Plan,
    table: np.ndarray,
    body: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The best label of every voxel, windows blended with weights that fall towards their borders.

    Args:
        predict: (1, 1, *window) float32 to scores (1, K, *window): one per class, then the side if the table has any.
        image: (X, Y, Z) float32, as the network expects it.
        layout: From `plan` for this shape.
        table: (C, 2) label ids per class: on the right, on the left of the patient. K is C, or C + 1 if they differ.
        body: Arguments of `keep_largest` where the structures are one connected body.
        device: Where `predict` wants its input.
        progress: Called with the windows done and all windows; may raise to stop.

    Returns:
        (X, Y, Z) uint8, or uint16 where an id needs it.
    """
    dtype = np.uint8 if int(table.max()) < 256 else np.uint16
    padded = np.pad(image, [(0, max(0, w - n)) for w, n in zip(layout.window, image.shape, strict=True)])
    labels = np.zeros(padded.shape, dtype)
    lookup = torch.from_numpy(table.astype(np.int64))
    source = torch.from_numpy(padded)
    if layout.tiles == 1:
        scores = _scores(predict, source, (0, 0, 0), layout.window, device)
        labels[...] = _decode(scores, lookup).numpy()
        if progress:
            progress(1, 1)
    else:
        _slide(predict, source, labels, layout, lookup, device, progress)
    labels = np.ascontiguousarray(labels[tuple(slice(n) for n in image.shape)])
    return labels if body is None else keep_largest(labels, **body)


def _slide(
    predict: Predict,
    source: Tensor,
    labels: np.ndarray,
    layout: Plan,
    lookup: Tensor,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill `labels` window by window, closing the planes that no later window reaches."""
    outputs = lookup.shape[0] + int(bool((lookup[:, 0] != lookup[:, 1]).any()))
    depth, done = layout.window[0], 0
    weight = blend_weights(layout.window)
    total = torch.zeros(outputs, depth, *source.shape[1:])
    firsts = [*layout.starts[0], source.shape[0]]
    for row, first in enumerate(layout.starts[0]):
        for start in product((first,), *layout.starts[1:]):
            scores = _scores(predict, source, start, layout.window, device)
            place = (slice(None), *(slice(at, at + n) for at, n in zip(start[1:], layout.window[1:], strict=True)))
            total[(slice(None), *place)].addcmul_(scores, weight)
            done += 1
            if progress:
                progress(done, layout.tiles)
        closed = min(firsts[row + 1], first + depth) - first
        # dividing by the sum of weights would change no argmax and no sign, so the scores stay as they are
        labels[first : first + closed] = _decode(total[:, :closed], lookup).numpy()
        if closed < depth:
            total[:, : depth - closed] = total[:, closed:].clone()
        total[:, depth - closed :] = 0


def _scores(
    predict: Predict, source: Tensor, start: tuple[int, ...], window: Sequence[int], device: torch.device | str
) -> Tensor:
    place = tuple(slice(at, at + n) for at, n in zip(start, window, strict=True))
    with torch.inference_mode():
        return predict(source[place][None, None].to(device))[0].float().cpu()


def blend_weights(window: Sequence[int]) -> Tensor:
    """Gaussian of an eighth of the window, at least 1e-3, so that every voxel counts somewhere."""
    lines = []
    for side in window:
        at = (torch.arange(side) - (side - 1) / 2) / (side / 8)
        lines.append(torch.exp(-0.5 * at.square()))
    x, y, z = lines
    return (x[:, None, None] * y[None, :, None] * z[None, None, :]).clamp_(min=1e-3)


def _decode(scores: Tensor, lookup: Tensor) -> Tensor:
    """(K, X, Y, Z) scores to (X, Y, Z) label ids, a chunk at a time."""
    classes = lookup.shape[0]
    flat = scores.flatten(1)
    out = torch.empty(flat.shape[1], dtype=torch.uint8 if int(lookup.max()) < 256 else torch.int32)
    for at in range(0, flat.shape[1], _CHUNK):
        part = flat[:, at : at + _CHUNK]
        best = part[:classes].argmax(0)
        side = (part[classes] > 0).long() if part.shape[0] > classes else torch.zeros_like(best)
        out[at : at + _CHUNK] = lookup[best, side]
    return out.view(scores.shape[1:])
