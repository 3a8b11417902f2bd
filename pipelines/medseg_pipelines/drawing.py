"""What every picture shares: palette, font, fitted text, and one plane with its letters and its scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medseg_pipelines.planes import Plane
from medseg_pipelines.words import RADIOLOGICAL, RESEARCH_USE, UNTRAINED_BANNER

EDGE = 28  # px around everything
HEAD = 92
FOOT = 56
BACKGROUND = (16, 18, 22)  # dark, for reading rooms
PANEL = (26, 29, 35)
TEXT = (236, 239, 244)
MUTED = (170, 178, 190)
AMBER = (255, 196, 84)
RED = (196, 30, 40)
_BANNER = 52


@dataclass(frozen=True, kw_only=True)
class Caption:
    """The words around the picture."""

    title: str
    subtitle: str
    warnings: tuple[str, ...] = ()
    trained: bool = True
    convention: str = RADIOLOGICAL


def framed(width: int, body: int, caption: Caption) -> tuple[Image.Image, int]:
    """An empty picture with its title, what must be said beside a result, and a banner where weights are untrained.

    Args:
        width: px, of the whole picture.
        body: px of height between title and foot.
        caption: The words.

    Returns:
        The picture, and where its body begins.
    """
    banner = 0 if caption.trained else _BANNER
    canvas = Image.new("RGB", (width, banner + HEAD + body + FOOT), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    if banner:
        draw.rectangle((0, 0, width, banner), fill=RED)
        draw.text((width / 2, banner / 2), UNTRAINED_BANNER, font=font(24), fill=(255, 255, 255), anchor="mm")
    inside = width - 2 * EDGE
    fitted(draw, (EDGE, banner + 20), caption.title, 28, TEXT, inside)
    fitted(draw, (EDGE, banner + 58), f"{caption.subtitle}  {caption.convention}", 17, MUTED, inside)
    fitted(draw, (EDGE, canvas.height - 36), RESEARCH_USE, 18, AMBER, inside)
    return canvas, banner + HEAD


def extent(plane: Plane) -> tuple[float, float]:
    """Width and height in mm."""
    rows, columns = plane.image.shape
    return columns * plane.spacing[1], rows * plane.spacing[0]


def position_text(plane: Plane) -> str:
    """Where a plane lies, as "12 mm S"."""
    positive, negative = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}[plane.name]
    return f"{abs(plane.position):.0f} mm {positive if plane.position >= 0 else negative}"


def display_range(planes: Sequence[Plane]) -> tuple[float, float]:
    """Grey values that become black and white: robust against the empty surroundings and single bright voxels."""
    values = np.concatenate([plane.image.ravel() for plane in planes])
    tissue = values[values > values.min()]
    if tissue.size == 0:
        return float(values.min()), float(values.min()) + 1.0
    low, high = np.percentile(tissue, (1.0, 99.5))
    return float(low), float(max(high, low + 1e-6))


def grey_picture(plane: Plane, size: tuple[int, int], low: float, high: float) -> Image.Image:
    """A plane as grey values of the display range, enlarged to a size in px."""
    shown = np.clip((plane.image - low) / (high - low), 0.0, 1.0)
    picture = Image.fromarray((shown * 255).astype(np.uint8))
    return picture.resize(size, Image.Resampling.BICUBIC).convert("RGB")


def outline(ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels whose right or lower neighbour, or upper or left one, belongs to something else."""
    edge = np.zeros(ids.shape, bool)
    down, right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    edge[1:] |= down
    edge[:, 1:] |= right
    return edge | (np.pad(down, ((0, 1), (0, 0))) & (np.pad(ids[1:], ((0, 1), (0, 0))) == 0))


def draw_letters(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], letters: tuple[str, str, str, str]) -> None:
    """Directions of the patient at left, right, top and bottom of a box (x, y, width, height)."""
    x, y, width, height = box
    places = (
        (x + 6, y + height // 2, "lm"),
        (x + width - 6, y + height // 2, "rm"),
        (x + width // 2, y + 5, "mt"),
        (x + width // 2, y + height - 5, "mb"),
    )
    for letter, (at_x, at_y, anchor) in zip(letters, places, strict=True):
        draw.text((at_x, at_y), letter, font=font(20), fill=TEXT, anchor=anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def draw_scale(draw: ImageDraw.ImageDraw, at: tuple[int, int], scale: float) -> None:
    """A bar of 50 mm, at `scale` px per mm."""
    x, y = at
    length = round(50 * scale)
    draw.line((x, y + 8, x + length, y + 8), fill=TEXT, width=3)
    for end in (x, x + length):
        draw.line((end, y + 2, end, y + 14), fill=TEXT, width=2)
    draw.text((x + length + 10, y + 8), "50 mm", font=font(16), fill=MUTED, anchor="lm")


def fitted(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, color: tuple[int, int, int], width: int
) -> None:
    """Text at `size`, or as much smaller as it needs to stay within `width` px."""
    while size > 10 and font(size).getlength(text) > width:
        size -= 1
    draw.text(at, text, font=font(size), fill=color)


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font inside Pillow: the picture looks the same on every machine."""
    found = ImageFont.load_default(size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow must be built with FreeType to draw pictures; reinstall Pillow from its wheel")
    return found
