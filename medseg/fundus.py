"""Photographs of the back of the eye: the round field that shows it, and grey values freed of uneven light."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from skimage.morphology import convex_hull_image

from medseg.picture import Picture

_COARSE = 256  # pixels of the longer side on which the field is looked for
_CORNER = 12  # a corner is this part of a side
_RISE = 0.3  # of the way from the brightness of the corners to that of the middle
_NO_BORDER = 0.7  # corners brighter than this share of the middle: the field fills the picture
_NOTCH = 16  # what sticks out of the round field and is thinner than twice this part of a side is a mark, no field
_RIM = 1.5  # coarse pixels along the border of the field that are dark or bright for reasons of the camera
_FLOOR = 0.25  # of the mean local variance, so that places without structure do not become noise


def field_of_view(picture: Picture) -> NDArray[np.bool_]:
    """Where a fundus photograph shows the eye: one convex piece, the whole picture where no dark border is seen.

    Args:
        picture: Of any size.

    Returns:
        (H, W).
    """
    height, width = picture.size
    step = max(1, -(-max(height, width) // _COARSE))
    bright = _blurred(picture.pixels[::step, ::step].max(axis=2) / np.iinfo(picture.pixels.dtype).max, 1.5)
    rows, columns = bright.shape[0], bright.shape[1]
    y, x = max(1, rows // _CORNER), max(1, columns // _CORNER)
    corners = float(
        np.median([np.median(bright[a, b]) for a in (np.s_[:y], np.s_[-y:]) for b in (np.s_[:x], np.s_[-x:])])
    )
    middle = float(np.median(bright[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]))
    if corners > _NO_BORDER * middle:
        return np.ones((height, width), bool)
    radius = min(rows, columns) / _NOTCH
    shown = ~_opened(bright <= corners + _RISE * (middle - corners), radius)  # dark vessels do not cut it
    pieces = np.asarray(measure.label(_opened(shown, radius), connectivity=1))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(convex_hull_image(pieces == sizes.argmax()), 1)))
    return _enlarged(depth[1:-1, 1:-1], picture.size, step) > _RIM


def diameter(field: NDArray[np.bool_]) -> float:
    """Pixels across a field: the longer side of the box around it."""
    spans = [np.flatnonzero(field.any(axis=axis)) for axis in (0, 1)]
    return float(max((span[-1] - span[0] + 1 for span in spans if span.size), default=0))


def flatten_light(plane: NDArray[np.float32], field: NDArray[np.bool_], sigma: float) -> NDArray[np.float32]:
    """Grey values less their local mean, over their local deviation: what is left of light, film and camera is little.

    Args:
        plane: (H, W).
        field: (H, W); what lies outside has no say in means and becomes 0.
        sigma: Pixels; the standard deviation of the Gaussian that says what is local.

    Returns:
        (H, W), float32, cut off at -4 and 4.
    """
    inside = field.astype(np.float32)
    share = np.maximum(_blurred(inside, sigma), 1e-6)
    rest = (plane - _blurred(plane * inside, sigma) / share) * inside
    variance = _blurred(rest**2, sigma) / share
    floor = _FLOOR * float(variance[field].mean()) if field.any() else 0.0
    return np.clip(rest / np.sqrt(variance + floor + 1e-12), -4.0, 4.0).astype(np.float32)


def _enlarged(values: NDArray[np.floating], size: tuple[int, int], step: int) -> NDArray[np.float32]:
    """Values between every `step`-th pixel of a picture (H, W), linear from one to the next."""
    found = values.astype(np.float32)
    for axis in (0, 1):
        at = np.minimum(np.arange(size[axis]) / step, found.shape[axis] - 1)
        low = np.minimum(at.astype(int), max(0, found.shape[axis] - 2))
        share = np.expand_dims((at - low).astype(np.float32), 1 - axis)
        high = np.minimum(low + 1, found.shape[axis] - 1)
        found = found.take(low, axis=axis) * (1 - share) + found.take(high, axis=axis) * share
    return np.asarray(found, np.float32)


def _opened(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """What a disc of this radius can cover without leaving the mask; the picture goes on beyond its edge."""
    reach = int(radius) + 1
    wide = np.pad(mask, reach, mode="edge")
    core = np.asarray(ndimage.distance_transform_edt(wide)) > radius
    grown = np.asarray(ndimage.distance_transform_edt(~core)) <= radius
    return grown[reach:-reach, reach:-reach]


def _blurred(plane: NDArray[np.floating], sigma: float) -> NDArray[np.float32]:
    found = ndimage.gaussian_filter(plane.astype(np.float32, copy=False), sigma, truncate=3.0, mode="nearest")
    return np.asarray(found, np.float32)
