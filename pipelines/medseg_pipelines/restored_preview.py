"""The pictures of a restored volume: before, after, what was changed, and the regions inside which pixels attended."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medseg.volume import Volume
from medseg_pipelines.drawing import (
    AMBER,
    EDGE,
    MUTED,
    TEXT,
    Caption,
    display_range,
    draw_letters,
    draw_scale,
    extent,
    fitted,
    font,
    framed,
    grey_picture,
    outline,
    position_text,
)
from medseg_pipelines.planes import Plane
from medseg_pipelines.words import RESTORED

_CELL = (380, 360)  # px, the largest that a plane may take
_GAP = 14
_LINE = 28
_REGION_SIDE = 900  # px of the longer side of the picture of the regions
_FILL = 0.4
_GOLDEN = 0.61803398875  # steps of hue that never come near each other


@dataclass(frozen=True)
class Column:
    """One volume of the picture: three planes, and what their values are."""

    planes: Sequence[Plane]
    kind: Literal["image", "difference", "regions"] = "image"


def draw_restored(columns: Mapping[str, Sequence[Plane]], lines: Sequence[str], caption: Caption) -> Image.Image:
    """Original, restored, residual and regions, three planes each at the same places, under their titles."""
    kinds: tuple[Literal["image", "difference", "regions"], ...] = ("image", "image", "difference", "regions")
    named = {title: Column(planes, kind) for (title, planes), kind in zip(columns.items(), kinds, strict=True)}
    return draw_columns(named, lines, caption)


def draw_columns(columns: Mapping[str, Column], lines: Sequence[str], caption: Caption) -> Image.Image:
    """A row per plane and a column per volume, dark for reading rooms.

    Args:
        columns: By title, all at the same places; the first is the original, whose grey range all images are shown in.
        lines: Figures below the planes.
        caption: Title, warnings, and whether the weights are trained.
    """
    original = next(iter(columns.values())).planes
    scale = min(limit / size for plane in original for limit, size in zip(_CELL, extent(plane), strict=True))
    sizes = [(max(1, round(w * scale)), max(1, round(h * scale))) for w, h in map(extent, original)]
    cell = max(width for width, _ in sizes)
    notes = [*lines, *(f"! {warning}" for warning in (RESTORED, *caption.warnings))]
    body = sum(height for _, height in sizes) + _LINE * (len(sizes) + 2) + 26 * len(notes)
    canvas, top = framed(2 * EDGE + len(columns) * (cell + _GAP) - _GAP, body, caption)
    draw = ImageDraw.Draw(canvas)
    for number, title in enumerate(columns):
        draw.text((EDGE + number * (cell + _GAP), top), title, font=font(19), fill=TEXT)
    y = top + _LINE
    for row, size in enumerate(sizes):
        draw.text((EDGE, y), f"{original[row].name}  {position_text(original[row])}", font=font(16), fill=MUTED)
        y += _LINE
        for number, column in enumerate(columns.values()):
            x = EDGE + number * (cell + _GAP)
            canvas.paste(_picture(column, row, size, original), (x, y))
            draw_letters(draw, (x, y, *size), original[row].letters)
        y += size[1]
    draw_scale(draw, (EDGE, y + 8), scale)
    for number, column in enumerate(columns.values()):
        if column.kind == "difference":
            shown = f"shown from {-_reach(column.planes):.3g} to {_reach(column.planes):.3g}"
            draw.text((EDGE + number * (cell + _GAP), y + 8), shown, font=font(16), fill=MUTED)
    for number, note in enumerate(notes):
        color = AMBER if note.startswith("!") else TEXT
        fitted(draw, (EDGE, y + _LINE + 12 + 26 * number), note, 17, color, canvas.width - 2 * EDGE)
    return canvas


def _picture(column: Column, row: int, size: tuple[int, int], original: Sequence[Plane]) -> Image.Image:
    """One plane of a column as its kind wants it."""
    low, high = display_range(original)
    if column.kind == "difference":
        low, high = -_reach(column.planes), _reach(column.planes)
    if column.kind == "regions":
        grey = grey_picture(original[row], size, low, high)
        return coloured_regions(grey, column.planes[row].image.astype(np.int64))
    return grey_picture(column.planes[row], size, low, high)


def region_picture(image: Volume, regions: Volume) -> Image.Image:
    """The middle slice along the axis that regions were found across, enlarged, each region in a colour of its own."""
    axis = (
        int(np.argmax(image.spacing)) if max(image.spacing) > 1.1 * min(image.spacing) else image.grid.axes[0].index(2)
    )
    at = image.shape[axis] // 2
    grey, ids = (np.take(v.voxels, at, axis).T[::-1] for v in (image, regions))
    step = [s for i, s in enumerate(image.spacing) if i != axis]
    size = grey.shape[1] * step[0], grey.shape[0] * step[1]
    scale = _REGION_SIDE / max(size)
    plane = Plane(
        name="axial",
        position=0.0,
        image=grey.astype(np.float32),
        labels=ids,
        spacing=(step[1], step[0]),
        letters=("", "", "", ""),
    )
    low, high = display_range([plane])
    shown = grey_picture(plane, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), low, high)
    return coloured_regions(shown, ids.astype(np.int64))


def coloured_regions(grey: Image.Image, ids: NDArray[np.int64]) -> Image.Image:
    """Region ids over a grey picture: a light fill per region and a line between two of them."""
    names, places = np.unique(ids, return_inverse=True)
    hues = [colorsys.hsv_to_rgb((number * _GOLDEN) % 1.0, 0.65, 1.0) for number in range(len(names))]
    enlarged = Image.fromarray(places.reshape(ids.shape).astype(np.int32)).resize(grey.size, Image.Resampling.NEAREST)
    index = np.asarray(enlarged)
    alpha = np.where(outline(index), 0.85, _FILL)[..., None]
    mixed = np.asarray(grey, np.float32) * (1 - alpha) + np.asarray(hues)[index] * 255 * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))


def _reach(planes: Sequence[Plane]) -> float:
    """What the residual is shown from and to, symmetric about 0."""
    values = np.abs(np.concatenate([plane.image.ravel() for plane in planes]))
    return float(max(np.percentile(values, 99.5), 1e-6))
