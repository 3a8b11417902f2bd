"""A restored picture as a result: its pixels, what was changed, and the regions inside which pixels attended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medseg.io.pictures import pixels_as_image, write_pixels
from medseg.picture import Picture
from medseg_pipelines.drawing import AMBER, EDGE, TEXT, Caption, fitted, font, framed
from medseg_pipelines.picture_case import hash_pixels
from medseg_pipelines.recipe import PictureRestorationRecipe
from medseg_pipelines.restored_preview import coloured_regions
from medseg_pipelines.results import Outcome, write_json
from medseg_pipelines.words import RESEARCH_USE, RESTORED, RESTORED_MARK, UNTRAINED

_PANEL = (620, 620)  # px, the largest that a picture may take
_GAP = 16
_LINE = 28
_GREY = 128  # of the residual: nothing was changed


@dataclass(frozen=True, eq=False, kw_only=True)
class RestoredPicture(Outcome):
    """A restored picture.

    Attributes:
        picture: As it was read.
        pixels: Restored, (scale H, scale W, C), in the type of the picture.
        regions: Region ids, (H, W); they mean nothing beyond the grouping.
    """

    recipe: PictureRestorationRecipe
    picture: Picture
    pixels: NDArray[np.integer]
    regions: NDArray[np.int32]

    @property
    def main_file(self) -> str:
        """Name of the restored picture."""
        return "restored.png"

    @property
    def digest(self) -> str:
        """The sha256 of the pixels."""
        return hash_pixels(self.pixels)

    def page(self) -> Image.Image:
        """The pixels as a page of a file with several."""
        return pixels_as_image(self.pixels)

    def residual(self) -> NDArray[np.float32]:
        """Restored minus original, the original enlarged linearly where sizes differ; in shares of the range."""
        height, width = self.pixels.shape[:2]
        top = np.float32(np.iinfo(self.pixels.dtype).max)
        channels = [
            np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))
            for plane in np.moveaxis(self.picture.pixels.astype(np.float32), 2, 0)
        ]
        return (self.pixels.astype(np.float32) - np.stack(channels, 2)) / top

    def preview(self) -> Image.Image:
        """Original, restored and regions side by side."""
        height, width = self.picture.size
        scale = min(_PANEL[0] / width, _PANEL[1] / height)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        original = Image.fromarray(self.picture.eight_bit()).resize(size, Image.Resampling.BILINEAR)
        shown = Image.fromarray(Picture(self.pixels).eight_bit()).resize(size, Image.Resampling.LANCZOS)
        regions = coloured_regions(original, self.regions.astype(np.int64))
        notes = [*self._lines(), *(f"! {text}" for text in (RESTORED, *self.caption().warnings))]
        canvas, top = framed(2 * EDGE + 3 * size[0] + 2 * _GAP, size[1] + _LINE * (len(notes) + 2), self.caption())
        draw = ImageDraw.Draw(canvas)
        titled = {"original": original, RESTORED_MARK: shown, "regions": regions}
        for number, (title, picture) in enumerate(titled.items()):
            x = EDGE + number * (size[0] + _GAP)
            draw.text((x, top), title, font=font(19), fill=TEXT)
            canvas.paste(picture, (x, top + _LINE))
        for number, note in enumerate(notes):
            color = AMBER if note.startswith("!") else TEXT
            y = top + size[1] + _LINE * (number + 1) + 14
            fitted(draw, (EDGE, y), note, 17, color, canvas.width - 2 * EDGE)
        return canvas

    def caption(self) -> Caption:
        """The words around the preview."""
        height, width = self.picture.size
        enlarged = (
            "" if self.recipe.scale == 1 else f", {self.recipe.scale} times as many along both sides in the result"
        )
        return Caption(
            title=self.recipe.title,
            subtitle=f"{self.version()}. {width} x {height} pixels{enlarged}.",
            warnings=tuple(warning for warning in self.warnings if warning != UNTRAINED),
            trained=self.recipe.weights.trained,
            convention="",
        )

    def statistics(self) -> dict[str, Any]:
        """What was changed, in shares of the range of the picture's type."""
        residual = self.residual()
        return {
            "mean_change": round(float(residual.mean()), 6),
            "largest_change": round(float(np.abs(residual).max()), 6),
            "regions": len(np.unique(self.regions)),
        }

    def _lines(self) -> list[str]:
        found = self.statistics()
        changed = f"{100 * found['mean_change']:+.2g} % of the range in the mean, {100 * found['largest_change']:.3g} %"
        return [f"changed by {changed} at most; {found['regions']} regions found in the picture"]

    def _write(self, folder: Path) -> None:
        write_pixels(self.pixels, folder / self.main_file)
        shown = (self.residual() * 255 + _GREY).clip(0, 255).round().astype(np.uint8)
        write_pixels(shown, folder / "residual.png")
        original = Image.fromarray(self.picture.eight_bit())
        coloured_regions(original, self.regions.astype(np.int64)).save(folder / "regions.png", optimize=True)
        told = {"residual_png": f"{_GREY} means unchanged; one level is 1/255 of the range", **self.statistics()}
        write_json(folder / "statistics.json", {"notice": RESEARCH_USE, **told})
