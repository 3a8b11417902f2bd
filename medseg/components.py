"""Keep the one connected body that an organ is, drop what lies apart from it, and drop specks of thin structures."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
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


def without_specks(
    labels: NDArray[np.uint8], field: NDArray[np.bool_], *, least: float, rim: float
) -> NDArray[np.uint8]:
    """A label map of a picture without small pieces, and without pieces that lie along the border of the field.

    Args:
        labels: Label ids, (H, W), 0 outside the field.
        field: Where the picture shows something, (H, W).
        least: Pixels that a piece must have.
        rim: Pixels; a piece must have one that is farther than this from what lies outside the field. A vessel that
            runs into the border does, the border itself taken for a vessel does not.

    Returns:
        Same shape and dtype. Pixels that touch at a corner belong together.
    """
    inner = np.ones_like(field)
    if rim > 0:
        inner = np.asarray(ndimage.distance_transform_edt(np.pad(field, 1)))[1:-1, 1:-1] > rim
    kept = labels.copy()
    for number in np.unique(labels[labels > 0]):
        mask = labels == number
        pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)
        reaching = np.bincount(pieces[inner], minlength=count + 1)
        kept[mask & ((sizes < least) | (reaching == 0))[pieces]] = 0
    return kept
