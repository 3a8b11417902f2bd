"""Grey values to what a network expects."""

from __future__ import annotations

import numpy as np

_SAMPLES = 1 << 20  # a million voxels fix a percentile to far below the noise; more only costs time


def rescale_percentiles(voxels: np.ndarray, low: float, high: float, *, top: float = 1.5) -> np.ndarray:
    """Map the `low` percentile to 0 and the `high` percentile to 1, whatever the unit of the scanner.

    Args:
        voxels: Any shape, finite.
        low: Percentile that becomes 0, in [0, 100).
        high: Percentile that becomes 1, above `low`.
        top: Values above this are clipped to it (bright vessels, wrap-around); below 0 they are clipped to 0.

    Returns:
        float32, same shape, in [0, top]. Where the two percentiles coincide the whole range is mapped to [0, 1]; a
        constant image becomes 0.
    """
    step = max(1, voxels.size // _SAMPLES)
    bottom, ceiling = np.percentile(voxels.reshape(-1)[::step], [low, high])
    if ceiling <= bottom:  # fewer than (100 - high) % of the voxels differ: use the full range
        bottom, ceiling = float(voxels.min()), float(voxels.max())
    width = ceiling - bottom
    scaled = (voxels.astype(np.float32) - np.float32(bottom)) / np.float32(width if width > 0 else 1)
    return np.clip(scaled, 0, top, out=scaled)
