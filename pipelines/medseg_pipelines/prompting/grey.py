"""Grey values of a volume to the 8 bit of a picture, as medical images are prepared for SAM."""

from __future__ import annotations

import numpy as np

from medseg_pipelines.sections import PromptOptions

_SAMPLES = 1 << 20
_AIR = -200.0  # HU; MR has no values this far below zero
_SHARE = 0.01


def grey_range(voxels: np.ndarray, options: PromptOptions) -> tuple[float, float]:
    """What becomes black and white: the range of the recipe for CT, else percentiles of the voxels above 0.

    Args:
        voxels: Any shape.
        options: Of the recipe.
    """
    sample = voxels.reshape(-1)[:: max(1, voxels.size // _SAMPLES)]
    if float(np.mean(sample < _AIR)) >= _SHARE:
        return options.hounsfield
    shown = sample[sample > 0]
    if not len(shown):
        return float(voxels.min()), float(voxels.max())
    low, high = np.percentile(shown, options.percentiles)
    return float(low), float(high)


def to_eight_bit(slice_: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """A slice, (rows, columns), between black and white; 8 bit stays as it is where the window is all of it."""
    if slice_.dtype == np.uint8 and window == (0.0, 255.0):
        return np.ascontiguousarray(slice_)
    low, high = window
    scaled = (slice_.astype(np.float32) - np.float32(low)) * np.float32(255 / max(high - low, 1e-6))
    return np.rint(scaled.clip(0, 255)).astype(np.uint8)
