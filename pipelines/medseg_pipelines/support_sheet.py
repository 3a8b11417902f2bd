"""The contact sheet of a support set: every case in a row, its structures outlined."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medseg_pipelines.drawing import EDGE, MUTED, PANEL, TEXT, Caption, fitted, font, framed, outline
from medseg_pipelines.support_store import SupportCase, SupportSet
from medseg_pipelines.words import RADIOLOGICAL

_TILE = 176  # px
_GAP = 10
_MOST = 6  # slices shown of a case
_LEGEND = 34


def contact_sheet(support: SupportSet) -> Image.Image:
    """All cases with at most six slices each, and what the colours mean."""
    card, columns = support.card, min(_MOST, max(len(case.labels) for case in support.cases))
    width = max(720, 2 * EDGE + columns * (_TILE + _GAP) + 70)
    body = len(support.cases) * (_TILE + _GAP) + _LEGEND * (1 + len(card.labels) // 4)
    volumes = card.kind == "volumes"
    what = f"{card.plane} slices" if volumes else "pictures"
    kind = f"{card.modality}, " if card.modality else ""
    caption = Caption(
        title=f"Support set {card.name}",
        subtitle=f"{kind}{card.cases} cases, {card.slices} {what}, {card.sha256[:12]}.",
        convention=RADIOLOGICAL if volumes and card.plane != "sagittal" else "",
    )
    canvas, top = framed(width, body, caption)
    draw = ImageDraw.Draw(canvas)
    for number, case in enumerate(support.cases):
        y = top + number * (_TILE + _GAP)
        draw.text((EDGE, y + _TILE / 2), f"case {number + 1}", font=font(16), fill=MUTED, anchor="lm")
        shown = np.unique(np.linspace(0, len(case.labels) - 1, columns).round().astype(int))
        for column, at in enumerate(shown):
            x = EDGE + 70 + column * (_TILE + _GAP)
            draw.rectangle((x, y, x + _TILE, y + _TILE), fill=PANEL)
            tile = _tile(case, int(at), support)
            canvas.paste(tile, (x + (_TILE - tile.width) // 2, y + (_TILE - tile.height) // 2))
    _legend(draw, support, top + len(support.cases) * (_TILE + _GAP) + 6, width)
    return canvas


def _legend(draw: ImageDraw.ImageDraw, support: SupportSet, top: int, width: int) -> None:
    step = (width - 2 * EDGE) // 4
    for number, label in enumerate(support.card.labels):
        x, y = EDGE + number % 4 * step, top + number // 4 * _LEGEND
        draw.rectangle((x, y + 4, x + 16, y + 20), fill=label.color)
        fitted(draw, (x + 24, y + 2), label.name, 16, TEXT, step - 30)


def _tile(case: SupportCase, at: int, support: SupportSet) -> Image.Image:
    """One slice with its outlines, as large as fits."""
    grey, ids = case.images[at].astype(np.float32), case.labels[at]
    spacing = case.spacing
    if support.card.kind == "volumes":  # X to the left as radiologists look at it, the other axis upward
        grey, ids, spacing = grey.swapaxes(0, 1)[::-1, ::-1], ids.T[::-1, ::-1], spacing[::-1]
    height, width = (size * step for size, step in zip(ids.shape, spacing, strict=True))
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.broadcast_to((grey.clip(0, 1) * 255).astype(np.uint8), (*ids.shape, 3))
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)
    enlarged = np.asarray(Image.fromarray(np.ascontiguousarray(ids)).resize(size, Image.Resampling.NEAREST))
    return Image.fromarray(_outlined(np.array(picture), enlarged, support))


def _outlined(pixels: NDArray[np.uint8], ids: NDArray[np.uint8], support: SupportSet) -> NDArray[np.uint8]:
    """Outlines drawn into a picture, in place."""
    for label in support.card.labels:
        pixels[outline((ids == label.id).astype(np.uint8))] = label.color
    return pixels
