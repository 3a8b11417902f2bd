"""Keep the one connected body that an organ is, drop what lies apart from it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy import ndimage


def keep_largest(labels: np.ndarray, *, loose: Collection[int] = (), reach: int = 0) -> np.ndarray:
    """A label map without the islands that grey values alike put into face, neck and scalp.

    Args:
        labels: (X, Y, Z) integers, 0 is background.
        loose: Labels of what surrounds the body, such as fluid: they neither join two bodies nor need to be joined,
            but stay only near the body.
        reach: How many voxels from the body they may lie.

    Returns:
        Same shape and dtype; islands and far fluid are 0. Unchanged where nothing but background and fluid was found.
    """
    body = (labels > 0) & ~np.isin(labels, list(loose))
    if not body.any():
        return labels
    parts = np.empty(labels.shape, np.int32)
    ndimage.label(body, output=parts)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    body = parts == sizes.argmax()
    near = np.asarray(ndimage.distance_transform_edt(~body)) <= reach if reach else body
    return np.where(body | (near & np.isin(labels, list(loose))), labels, 0).astype(labels.dtype)
