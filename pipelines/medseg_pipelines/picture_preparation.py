"""A picture as a network sees it: its field of view, its size, its channels freed of uneven light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medseg.fundus import diameter, field_of_view, flatten_light
from medseg.picture import Picture

if TYPE_CHECKING:  # bundles have no recipes
    from medseg_pipelines.sections import PicturePreparation


@dataclass(frozen=True)
class Prepared:
    """Planes for the network, and where they count.

    Attributes:
        planes: (C, h, w), float32; 0 outside the field.
        inside: (h, w), where the field lies.
        field: (H, W), the field on the pixels of the picture.
    """

    planes: NDArray[np.float32]
    inside: NDArray[np.bool_]
    field: NDArray[np.bool_]


def field_of(picture: Picture, options: PicturePreparation) -> NDArray[np.bool_]:
    """(H, W): the part of a picture that the model looks at."""
    return field_of_view(picture) if options.field == "fundus" else np.ones(picture.size, bool)


def prepare_picture(picture: Picture, options: PicturePreparation, field: NDArray[np.bool_] | None = None) -> Prepared:
    """The channels that the recipe asks for, at the size it asks for.

    Args:
        picture: As it was read.
        options: Of the recipe.
        field: Where the picture shows something, (H, W); found where it is not given.
    """
    field = field_of(picture, options) if field is None else field
    factor = options.zoom if options.diameter is None else options.diameter / diameter(field)
    size = scaled_size(picture.size, factor)
    planes, inside = colour_planes(picture, field, size, options)
    return Prepared(np.ascontiguousarray(_channels(planes, options) * inside), inside, field)


def prepare_window(
    picture: Picture,
    place: tuple[slice, slice],
    options: PicturePreparation,
    limits: tuple[float, float] | None,
    zoom: float,
) -> NDArray[np.float32]:
    """The channels of one window of a picture, enlarged.

    Args:
        picture: The whole of it.
        place: Rows and columns.
        options: Of the recipe.
        limits: Of the whole picture, from `unit_limits`, where the recipe stretches.
        zoom: Pixels of the result per pixel.

    Returns:
        (C, h, w).
    """
    part = Picture(picture.pixels[place])
    planes = resized(part.unit_planes(), scaled_size(part.size, zoom))
    return np.ascontiguousarray(_channels(planes if limits is None else stretched(planes, limits), options))


def _channels(planes: NDArray[np.float32], options: PicturePreparation) -> NDArray[np.float32]:
    """Red, green and blue, (3, h, w), to what the network takes, (C, h, w)."""
    mixed = np.tensordot(np.asarray(options.mix, np.float32), planes, axes=1)
    shift, scale = (np.asarray(v, np.float32)[:, None, None] for v in (options.mean, options.deviation))
    return (mixed - shift) / scale


def colour_planes(
    picture: Picture, field: NDArray[np.bool_], size: tuple[int, int], options: PicturePreparation
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Red, green and blue at a size, stretched and freed of uneven light where the recipe says so, and the field there.

    Returns:
        (3, h, w) and (h, w).
    """
    inside = resized(field[None].astype(np.float32), size)[0] > 0.5
    planes = resized(picture.unit_planes(), size)
    if options.stretch is not None:
        planes = stretched(planes, unit_limits(picture, options.stretch))
    if options.flatten is not None:
        sigma = options.flatten * diameter(inside)
        if picture.channels == 1:
            return np.repeat(flatten_light(planes[0], inside, sigma)[None], 3, axis=0), inside
        planes = np.stack([flatten_light(plane, inside, sigma) for plane in planes])
    return planes, inside


def unit_limits(picture: Picture, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Values, 0 to 1 over the range of the type, below which two percentages of a picture lie; of about a million."""
    step = max(1, round((picture.pixels[..., 0].size / 1e6) ** 0.5))
    low, high = np.percentile(picture.pixels[::step, ::step], percentiles) / np.iinfo(picture.pixels.dtype).max
    return float(low), max(float(high), float(low) + 1e-3)


def stretched(planes: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.float32]:
    """Values with two of them at 0 and 1, cut off well beyond."""
    low, high = limits
    return ((planes - low) / (high - low)).clip(-0.5, 1.5).astype(np.float32)


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Height and width times a factor, at least one pixel."""
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resized(planes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """(C, H, W) to (C, *size): linear between pixels, averaged over what is left out."""
    if planes.shape[1:] == tuple(size):
        return planes
    smaller = size[0] < planes.shape[1]
    source = torch.from_numpy(np.ascontiguousarray(planes))[None]
    return F.interpolate(source, size=size, mode="bilinear", align_corners=False, antialias=smaller)[0].numpy()
