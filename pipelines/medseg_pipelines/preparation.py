"""Grey values as the network sees them: the same few lines for training and for use."""

import numpy as np
from numpy.typing import NDArray

_SAMPLE = 2_000_000  # voxels; a percentile needs no more, and sorting a whole volume would double its memory


def normalise(voxels: NDArray[np.floating], percentiles: tuple[float, float]) -> NDArray[np.float32]:
    """Grey values with the given percentiles at 0 and 1, clipped to that range.

    The percentiles are taken over the voxels above the smallest value: the empty surroundings of a brain whose skull
    was removed must not decide what is bright.

    Args:
        voxels: Grey values of any unit, finite, any shape; not written to.
        percentiles: The lower and the upper one, 0 to 100.

    Returns:
        float32 of the same shape within 0 to 1; all zero where the image is constant.
    """
    flat = voxels.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)]
    tissue = sample[sample > flat.min()]
    if tissue.size == 0:
        return np.zeros(voxels.shape, np.float32)
    low, high = (float(value) for value in np.percentile(tissue, percentiles))
    if high <= low:  # a mask: two grey values only
        low = float(flat.min())
    scaled = voxels.astype(np.float32)
    scaled -= low
    scaled /= high - low
    return np.clip(scaled, 0.0, 1.0, out=scaled)
