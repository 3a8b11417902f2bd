"""Labels drawn over a picture, and the preview: overlay and picture side by side, with what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medseg.picture import Picture
from medseg_pipelines.drawing import AMBER, EDGE, MUTED, TEXT, Caption, fitted, font, framed, outline
from medseg_pipelines.picture_statistics import Figure
from medseg_pipelines.recipe import Label

_PANEL = (760, 680)  # px, the largest that either picture may take
_GAP = 16
_LINE = 28
_COLUMN = 360  # px of one figure
_FILL = 0.35  # of the label colour inside; the outline is nearly opaque
_EDGE_FILL = 0.85
_FIELD_COLOR = (120, 200, 255)


def overlay(
    picture: Picture, labels: NDArray[np.uint8], field: NDArray[np.bool_], names: Sequence[Label], longest: int
) -> Image.Image:
    """The labels filled lightly and outlined over the picture; the border of the field as a thin line.

    Args:
        picture: As it was read.
        labels: Label ids, (H, W).
        field: Where the picture counts, (H, W).
        names: The labels with their colours.
        longest: px of the longer side at most.
    """
    height, width = picture.size
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    base = np.asarray(Image.fromarray(picture.eight_bit()).resize(size, Image.Resampling.BILINEAR), np.float32)
    ids = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    colors = np.zeros((256, 3), np.float32)
    for label in names:
        colors[label.id] = label.color
    strength = np.where(outline(ids), _EDGE_FILL, _FILL) * (ids > 0)
    drawn = base * (1 - strength[..., None]) + colors[ids] * strength[..., None]
    shown = np.asarray(Image.fromarray(field).resize(size, Image.Resampling.NEAREST))
    if not shown.all():
        drawn[outline(shown.astype(np.uint8))] = _FIELD_COLOR
    return Image.fromarray(drawn.round().astype(np.uint8))


def draw_picture(
    picture: Picture, drawn: Image.Image, figures: Sequence[Figure], names: Sequence[Label], caption: Caption
) -> Image.Image:
    """The preview of one result.

    Args:
        picture: As it was read.
        drawn: Its overlay.
        figures: What was measured.
        names: The labels with their colours.
        caption: Title, warnings, and whether the weights are trained.
    """
    height, width = picture.size
    scale = min(_PANEL[0] / width, _PANEL[1] / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    whole = max(2 * size[0] + _GAP, 2 * _COLUMN)
    per_row = whole // _COLUMN
    rows = -(-len(figures) // per_row) + len(caption.warnings) + 1
    canvas, top = framed(2 * EDGE + whole, size[1] + _GAP + _LINE * (rows + 1), caption)
    canvas.paste(drawn.resize(size, Image.Resampling.LANCZOS), (EDGE, top))
    plain = Image.fromarray(picture.eight_bit()).resize(size, Image.Resampling.LANCZOS)
    canvas.paste(plain, (EDGE + size[0] + _GAP, top))
    _draw_figures(ImageDraw.Draw(canvas), top + size[1] + _GAP, figures, names, caption, per_row)
    return canvas


def _draw_figures(
    draw: ImageDraw.ImageDraw,
    top: int,
    figures: Sequence[Figure],
    names: Sequence[Label],
    caption: Caption,
    per_row: int,
) -> None:
    """The labels with their colours, the figures in columns below, then the warnings."""
    x = EDGE
    for label in names:
        draw.rectangle((x, top + 4, x + 16, top + 20), fill=label.color)
        draw.text((x + 24, top + 2), label.name, font=font(18), fill=TEXT)
        x += 48 + round(font(18).getlength(label.name))
    for number, figure in enumerate(figures):
        at = (EDGE + _COLUMN * (number % per_row), top + _LINE * (number // per_row + 1))
        draw.text(at, figure.name if len(names) == 1 else f"{figure.label}: {figure.name}", font=font(17), fill=MUTED)
        text = f"{figure.number} {figure.unit}".strip()
        draw.text((at[0] + _COLUMN - 40, at[1]), text, font=font(17), fill=TEXT, anchor="ra")
    y = top + _LINE * (-(-len(figures) // per_row) + 1)
    for line, warning in enumerate(caption.warnings):
        fitted(draw, (EDGE, y + _LINE * line), f"! {warning}", 17, AMBER, 2 * _PANEL[0])
