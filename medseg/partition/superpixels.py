"""Connected patches of similar grey value, by scikit-image's SLIC."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from skimage.segmentation import slic

from medseg.intensity import rescale_percentiles
from medseg.partition.description import Superpixels

_RANGE = (0.1, 99.9)  # percentiles of the whole volume that span the grey scale


def cut(
    slices: np.ndarray,
    how: Superpixels,
    spacing: tuple[float, float, float],
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Ids 1, 2, ... of each slice, or of the volume where patches reach through slices, (X, Y, S), int32."""
    levels = rescale_percentiles(slices, *_RANGE, top=1.0)
    finest = min(spacing[:2])
    steps = [step / finest for step in spacing]
    if how.through_slices:
        found = _patches(levels, how, steps)
        if progress:
            progress(slices.shape[2], slices.shape[2])
        return found
    found = np.empty(slices.shape, np.int32)
    for index in range(slices.shape[2]):
        found[:, :, index] = _patches(np.ascontiguousarray(levels[:, :, index]), how, steps[:2])
        if progress:
            progress(index + 1, slices.shape[2])
    return found


def _patches(levels: np.ndarray, how: Superpixels, steps: list[float]) -> np.ndarray:
    """Patches of a slice or a volume with grey values in [0, 1] of the volume's scale."""
    contrast = float(np.ptp(levels))
    if contrast == 0:
        return np.ones(levels.shape, np.int32)
    found = slic(
        levels,
        n_segments=how.count,
        compactness=how.compactness / contrast,  # SLIC stretches each image by itself: air would show its noise
        max_num_iter=how.iterations,
        sigma=how.smoothing / np.asarray(steps),
        spacing=steps,
        channel_axis=None,
    )
    return found.astype(np.int32, copy=False)
