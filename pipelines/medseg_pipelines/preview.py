"""The preview: three planes with and without the label map, legend with ml, and what must be said beside a result."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medseg_pipelines.planes import Plane
from medseg_pipelines.recipe import Label
from medseg_pipelines.statistics import Structure
from medseg_pipelines.words import RADIOLOGICAL, RESEARCH_USE, UNTRAINED_BANNER

_CELL = (440, 420)  # px, the largest that a plane may take
_GAP = 14
_EDGE = 28
_LEGEND = 500
_HEAD = 92
_FOOT = 56
_LINE = 30
_BACKGROUND = (16, 18, 22)
_PANEL = (26, 29, 35)
_TEXT = (236, 239, 244)
_MUTED = (170, 178, 190)
_AMBER = (255, 196, 84)
_RED = (196, 30, 40)
_FILL = 0.36  # of the label colour over the grey value; the outline is opaque


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The words around the picture."""

    title: str
    subtitle: str
    warnings: tuple[str, ...] = ()
    trained: bool = True


def draw_preview(
    planes: Sequence[Plane], labels: Sequence[Label], structures: Sequence[Structure], caption: Caption
) -> Image.Image:
    """The picture of one result, dark for reading rooms.

    Args:
        planes: Axial, coronal and sagittal, shown at one scale in mm.
        labels: The labels with their colours.
        structures: The same labels, measured.
        caption: Title, warnings, and whether the weights are trained.
    """
    scale = min(
        limit / extent for plane in planes for limit, extent in zip(_CELL, _extent(plane), strict=True) if extent > 0
    )
    widths = [round(_extent(plane)[0] * scale) for plane in planes]
    rows = [max(round(_extent(plane)[1] * scale) for plane in planes)] * 2
    legend_height = _legend_height(labels, caption)
    banner = 0 if caption.trained else 52
    body = max(sum(rows) + 2 * _LINE + _GAP, legend_height)
    width = 2 * _EDGE + sum(widths) + _GAP * len(widths) + _LEGEND
    canvas = Image.new("RGB", (width, banner + _HEAD + body + _FOOT), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if banner:
        draw.rectangle((0, 0, width, banner), fill=_RED)
        draw.text((width / 2, banner / 2), UNTRAINED_BANNER, font=_font(24), fill=(255, 255, 255), anchor="mm")
    _fitted(draw, (_EDGE, banner + 20), caption.title, 28, _TEXT, width - 2 * _EDGE)
    _fitted(draw, (_EDGE, banner + 58), f"{caption.subtitle}  {RADIOLOGICAL}", 17, _MUTED, width - 2 * _EDGE)
    top = banner + _HEAD
    _draw_planes(canvas, planes, labels, scale, widths, rows[0], top)
    _draw_legend(draw, (_EDGE + sum(widths) + _GAP * len(widths), top), labels, structures, caption)
    _fitted(draw, (_EDGE, canvas.height - 36), RESEARCH_USE, 18, _AMBER, width - 2 * _EDGE)
    return canvas


def _extent(plane: Plane) -> tuple[float, float]:
    """Width and height in mm."""
    rows, columns = plane.image.shape
    return columns * plane.spacing[1], rows * plane.spacing[0]


def _draw_planes(
    canvas: Image.Image,
    planes: Sequence[Plane],
    labels: Sequence[Label],
    scale: float,
    widths: Sequence[int],
    height: int,
    top: int,
) -> None:
    """Each plane twice, with the label map above and bare below, centred in a cell of the common height."""
    draw = ImageDraw.Draw(canvas)
    low, high = _display_range(planes)
    left = _EDGE
    for plane, width in zip(planes, widths, strict=True):
        size = (width, min(height, round(_extent(plane)[1] * scale)))
        grey = _grey(plane, size, low, high)
        draw.text((left, top), f"{plane.name}  {_signed(plane)}", font=_font(17), fill=_MUTED)
        for row, picture in enumerate((_overlay(grey, plane, labels), grey)):
            y = top + _LINE + row * (height + _GAP)
            draw.rectangle((left, y, left + width - 1, y + height - 1), fill=(0, 0, 0))
            canvas.paste(picture, (left, y + (height - size[1]) // 2))
            _draw_letters(draw, (left, y, width, height), plane.letters)
        left += width + _GAP
    _draw_scale(draw, (_EDGE, top + _LINE + 2 * height + _GAP + 8), scale)


def _signed(plane: Plane) -> str:
    positive, negative = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}[plane.name]
    return f"{abs(plane.position):.0f} mm {positive if plane.position >= 0 else negative}"


def _display_range(planes: Sequence[Plane]) -> tuple[float, float]:
    """Grey values that become black and white: robust against the empty surroundings and single bright voxels."""
    values = np.concatenate([plane.image.ravel() for plane in planes])
    tissue = values[values > values.min()]
    if tissue.size == 0:
        return float(values.min()), float(values.min()) + 1.0
    low, high = np.percentile(tissue, (1.0, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _grey(plane: Plane, size: tuple[int, int], low: float, high: float) -> Image.Image:
    shown = np.clip((plane.image - low) / (high - low), 0.0, 1.0)
    picture = Image.fromarray((shown * 255).astype(np.uint8))
    return picture.resize(size, Image.Resampling.BICUBIC).convert("RGB")


def _overlay(grey: Image.Image, plane: Plane, labels: Sequence[Label]) -> Image.Image:
    """The labels over the grey picture: a light fill, and an opaque outline that stays legible without colour."""
    enlarged = Image.fromarray(plane.labels.astype(np.int32)).resize(grey.size, Image.Resampling.NEAREST)
    ids = np.asarray(enlarged)
    colors = np.zeros((max((label.id for label in labels), default=0) + 1, 3), np.float32)
    for label in labels:
        colors[label.id] = label.color
    picture = np.asarray(grey, np.float32)
    color = colors[np.minimum(ids, len(colors) - 1)]
    alpha = np.where(_outline(ids), 0.9, _FILL)[..., None] * (ids > 0)[..., None]
    return Image.fromarray((picture * (1 - alpha) + color * alpha).round().astype(np.uint8))


def _outline(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour, or upper or left one, belongs to something else."""
    edge = np.zeros(ids.shape, bool)
    down, right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    edge[1:] |= down
    edge[:, 1:] |= right
    return edge | (np.pad(down, ((0, 1), (0, 0))) & (np.pad(ids[1:], ((0, 1), (0, 0))) == 0))


def _draw_letters(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], letters: tuple[str, str, str, str]
) -> None:
    x, y, width, height = box
    places = (
        (x + 6, y + height // 2, "lm"),
        (x + width - 6, y + height // 2, "rm"),
        (x + width // 2, y + 5, "mt"),
        (x + width // 2, y + height - 5, "mb"),
    )
    for letter, (at_x, at_y, anchor) in zip(letters, places, strict=True):
        draw.text(
            (at_x, at_y), letter, font=_font(20), fill=_TEXT, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0)
        )


def _draw_scale(draw: ImageDraw.ImageDraw, at: tuple[int, int], scale: float) -> None:
    x, y = at
    length = round(50 * scale)
    draw.line((x, y + 8, x + length, y + 8), fill=_TEXT, width=3)
    for end in (x, x + length):
        draw.line((end, y + 2, end, y + 14), fill=_TEXT, width=2)
    draw.text((x + length + 10, y + 8), "50 mm", font=_font(16), fill=_MUTED, anchor="lm")


def _legend_rows(labels: Sequence[Label]) -> dict[str, list[Label]]:
    """Left and right of one structure share a row."""
    rows: dict[str, list[Label]] = {}
    for label in labels:
        rows.setdefault(label.structure, []).append(label)
    return rows


def _legend_height(labels: Sequence[Label], caption: Caption) -> int:
    notes = sum(len(_wrapped(warning)) for warning in caption.warnings)
    return _LINE * (len(_legend_rows(labels)) + 4) + 24 * (notes + 2)


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    labels: Sequence[Label],
    structures: Sequence[Structure],
    caption: Caption,
) -> None:
    """Colour, name and ml of each structure, left and right of the patient in their own columns, then the warnings."""
    x, y = at
    right = x + _LEGEND
    by_id = {structure.id: structure for structure in structures}
    columns = {"right": right - 110, "left": right - 12, None: right - 61}
    draw.text((x + 12, y), "Volume in ml", font=_font(17), fill=_MUTED)
    draw.text((columns["right"], y), "right", font=_font(17), fill=_MUTED, anchor="ra")
    draw.text((columns["left"], y), "left", font=_font(17), fill=_MUTED, anchor="ra")
    for number, (name, members) in enumerate(_legend_rows(labels).items()):
        row = y + _LINE * (number + 1)
        if number % 2 == 0:
            draw.rectangle((x, row - 3, right, row + _LINE - 4), fill=_PANEL)
        draw.rectangle((x + 12, row + 4, x + 28, row + 20), fill=members[0].color)
        _fitted(draw, (x + 38, row + 2), name, 18, _TEXT, columns[members[0].side] - x - 100)
        for member in members:
            text, color = _amount(by_id[member.id])
            draw.text((columns[member.side], row + 2), text, font=_font(18), fill=color, anchor="ra")
    y += _LINE * (len(_legend_rows(labels)) + 1) + 10
    for line in _notes(structures, caption):
        draw.text((x + 12, y), line, font=_font(16), fill=_AMBER)
        y += 24


def _amount(structure: Structure) -> tuple[str, tuple[int, int, int]]:
    """The volume as it is shown, and its colour; a cut structure is starred, a missing one never a plain zero."""
    if structure.ml is None:
        return "n. a.", _AMBER
    if structure.status == "not found":
        return "none", _AMBER
    return (f"{structure.ml:.1f} *", _AMBER) if structure.status == "cut" else (f"{structure.ml:.1f}", _TEXT)


def _notes(structures: Sequence[Structure], caption: Caption) -> list[str]:
    states = {structure.status for structure in structures}
    notes = []
    if "cut" in states:
        notes.append("* cut by the image edge: at least this much")
    if "not assessed" in states:
        notes.append("n. a. = not assessed: outside the image")
    for warning in caption.warnings:
        notes.extend(_wrapped(warning))
    return notes


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in f"! {text}".split():
        if _font(16).getlength(f"{lines[-1]} {word}") > _LEGEND - 24:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1].strip() else f"{lines[-1]}{word}"
    return lines


def _fitted(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int
) -> None:
    """Text at `size`, or as much smaller as it needs to stay within `width` px."""
    while size > 10 and _font(size).getlength(text) > width:
        size -= 1
    draw.text(at, text, font=_font(size), fill=color)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font inside Pillow: the picture looks the same on every machine."""
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow must be built with FreeType to draw the preview; reinstall Pillow from its wheel")
    return font
