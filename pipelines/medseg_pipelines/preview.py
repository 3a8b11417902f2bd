"""The preview: three planes with and without the label map, legend with ml, and what must be said beside a result."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from medseg_pipelines.drawing import (
    AMBER,
    EDGE,
    MUTED,
    PANEL,
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
from medseg_pipelines.recipe import Label
from medseg_pipelines.statistics import Structure

_CELL = (440, 420)  # px, the largest that a plane may take
_GAP = 14
_LEGEND = 500
_LINE = 30
_FILL = 0.36  # of the label colour over the grey value; the outline is opaque


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
    scale = min(limit / size for plane in planes for limit, size in zip(_CELL, extent(plane), strict=True) if size > 0)
    widths = [round(extent(plane)[0] * scale) for plane in planes]
    rows = [max(round(extent(plane)[1] * scale) for plane in planes)] * 2
    body = max(sum(rows) + 2 * _LINE + _GAP, _legend_height(labels, caption))
    canvas, top = framed(2 * EDGE + sum(widths) + _GAP * len(widths) + _LEGEND, body, caption)
    _draw_planes(canvas, planes, labels, scale, widths, rows[0], top)
    legend = (EDGE + sum(widths) + _GAP * len(widths), top)
    _draw_legend(ImageDraw.Draw(canvas), legend, labels, structures, caption)
    return canvas


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
    low, high = display_range(planes)
    left = EDGE
    for plane, width in zip(planes, widths, strict=True):
        size = (width, min(height, round(extent(plane)[1] * scale)))
        grey = grey_picture(plane, size, low, high)
        draw.text((left, top), f"{plane.name}  {position_text(plane)}", font=font(17), fill=MUTED)
        for row, picture in enumerate((_overlay(grey, plane, labels), grey)):
            y = top + _LINE + row * (height + _GAP)
            draw.rectangle((left, y, left + width - 1, y + height - 1), fill=(0, 0, 0))
            canvas.paste(picture, (left, y + (height - size[1]) // 2))
            draw_letters(draw, (left, y, width, height), plane.letters)
        left += width + _GAP
    draw_scale(draw, (EDGE, top + _LINE + 2 * height + _GAP + 8), scale)


def _overlay(grey: Image.Image, plane: Plane, labels: Sequence[Label]) -> Image.Image:
    """The labels over the grey picture: a light fill, and an opaque outline that stays legible without colour."""
    enlarged = Image.fromarray(plane.labels.astype(np.int32)).resize(grey.size, Image.Resampling.NEAREST)
    ids = np.asarray(enlarged)
    colors = np.zeros((max((label.id for label in labels), default=0) + 1, 3), np.float32)
    for label in labels:
        colors[label.id] = label.color
    picture = np.asarray(grey, np.float32)
    color = colors[np.minimum(ids, len(colors) - 1)]
    alpha = np.where(outline(ids), 0.9, _FILL)[..., None] * (ids > 0)[..., None]
    return Image.fromarray((picture * (1 - alpha) + color * alpha).round().astype(np.uint8))


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
    draw.text((x + 12, y), "Volume in ml", font=font(17), fill=MUTED)
    draw.text((columns["right"], y), "right", font=font(17), fill=MUTED, anchor="ra")
    draw.text((columns["left"], y), "left", font=font(17), fill=MUTED, anchor="ra")
    for number, (name, members) in enumerate(_legend_rows(labels).items()):
        row = y + _LINE * (number + 1)
        if number % 2 == 0:
            draw.rectangle((x, row - 3, right, row + _LINE - 4), fill=PANEL)
        draw.rectangle((x + 12, row + 4, x + 28, row + 20), fill=members[0].color)
        fitted(draw, (x + 38, row + 2), name, 18, TEXT, columns[members[0].side] - x - 100)
        for member in members:
            text, color = _amount(by_id[member.id])
            draw.text((columns[member.side], row + 2), text, font=font(18), fill=color, anchor="ra")
    y += _LINE * (len(_legend_rows(labels)) + 1) + 10
    for line in _notes(structures, caption):
        draw.text((x + 12, y), line, font=font(16), fill=AMBER)
        y += 24


def _amount(structure: Structure) -> tuple[str, tuple[int, int, int]]:
    """The volume as it is shown, and its colour; a cut structure is starred, a missing one never a plain zero."""
    if structure.ml is None:
        return "n. a.", AMBER
    if structure.status == "not found":
        return "none", AMBER
    return (f"{structure.ml:.1f} *", AMBER) if structure.status == "cut" else (f"{structure.ml:.1f}", TEXT)


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
        if font(16).getlength(f"{lines[-1]} {word}") > _LEGEND - 24:
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1].strip() else f"{lines[-1]}{word}"
    return lines
