"""What a model made of the frames of one file: one file with as many pages, and one table."""

from __future__ import annotations

import csv
import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from medseg.picture import Picture
from medseg_pipelines.drawing import AMBER, EDGE, MUTED, Caption, fitted, font, framed
from medseg_pipelines.picture_restored import RestoredPicture
from medseg_pipelines.picture_results import PictureResult
from medseg_pipelines.recipe import PictureRecipe, PictureRestorationRecipe
from medseg_pipelines.results import LABELS_JSON, Outcome, write_json
from medseg_pipelines.words import UNTRAINED

TABLE = "frames.csv"
_SHOWN = 9  # frames of the preview, three in a row
_SIDE, _GAP, _LINE = 380, 16, 28  # px


@dataclass(frozen=True, eq=False, kw_only=True)
class FramesResult(Outcome):
    """What a model made of several frames; the pages lie in a temporary folder until they are saved.

    Attributes:
        folder: Of the pages and the table; goes when this object goes.
        main: Name of the pages.
        sheet: Some frames with their numbers, drawn small.
        names: What the values of labels mean, where there are any.
    """

    recipe: PictureRecipe | PictureRestorationRecipe
    folder: tempfile.TemporaryDirectory[str]
    main: str
    sheet: tuple[tuple[int, Image.Image], ...]
    names: dict[str, Any] | None

    @property
    def table(self) -> str:
        """Name of the table with the figures of every frame."""
        return TABLE

    @property
    def main_file(self) -> str:
        """Name of the file with one page per frame."""
        return self.main

    @property
    def digest(self) -> str:
        """The sha256 of what was computed, frame after frame."""
        return self.manifest["output"]["voxels_sha256"]

    def preview(self) -> Image.Image:
        """Some of the frames in rows of three."""
        warnings = tuple(warning for warning in self.warnings if warning != UNTRAINED)
        count = self.manifest["output"]["frames"]
        caption = Caption(
            title=self.recipe.title,
            subtitle=f"{self.version()}. {count} frames, of which {len(self.sheet)} are shown.",
            warnings=warnings,
            trained=self.recipe.weights.trained,
            convention="",
        )
        rows = -(-len(self.sheet) // 3)
        height = max(image.height for _, image in self.sheet) + _LINE + _GAP
        canvas, top = framed(2 * EDGE + 3 * (_SIDE + _GAP), rows * height + _LINE * len(warnings), caption)
        draw = ImageDraw.Draw(canvas)
        for place, (number, image) in enumerate(self.sheet):
            x, y = EDGE + place % 3 * (_SIDE + _GAP), top + place // 3 * height
            draw.text((x, y), f"frame {number}", font=font(17), fill=MUTED)
            canvas.paste(image, (x, y + _LINE))
        for line, warning in enumerate(warnings):
            y = top + rows * height + _LINE * line
            fitted(draw, (EDGE, y), f"! {warning}", 17, AMBER, canvas.width - 2 * EDGE)
        return canvas

    def _write(self, folder: Path) -> None:
        for file in Path(self.folder.name).iterdir():
            shutil.copyfile(file, folder / file.name)
        if self.names is not None:
            write_json(folder / LABELS_JSON, self.names)


@dataclass(kw_only=True)
class FramesTaken:
    """What is kept of each frame while a run goes on: a row per figure, a digest, now and then a small picture.

    Attributes:
        total: Frames of the run.
        main: Name of the file with their pages.
    """

    total: int
    main: str
    rows: list[tuple[object, ...]] = field(default_factory=list)
    sheet: list[tuple[int, Image.Image]] = field(default_factory=list)
    doubts: dict[str, int] = field(default_factory=dict)  # warnings, and in how many frames
    names: dict[str, Any] | None = None
    done: int = 0

    def __post_init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, number: int, result: PictureResult | RestoredPicture) -> None:
        """Take the result of one frame."""
        self._digest.update(result.digest.encode())
        for warning in result.warnings:
            self.doubts[warning] = self.doubts.get(warning, 0) + 1
        if isinstance(result, PictureResult):
            self.rows += [(number, f.label, f.name, f"{f.value:.6g}", f.unit) for f in result.figures]
            told = {key: value for key, value in result.names().items() if key != "things"}
            self.names = {**told, "file": self.main}
        else:
            self.rows += [(number, "", name, value, "") for name, value in result.statistics().items()]
        if self.done * min(_SHOWN, self.total) >= len(self.sheet) * self.total:
            self.sheet.append((number, _small(result)))
        self.done += 1

    @property
    def digest(self) -> str:
        """Over the digests of all frames."""
        return self._digest.hexdigest()

    def warnings(self) -> list[str]:
        """Each once, with the number of frames where it is not all of them."""
        return [
            text if count == self.total else f"in {count} of {self.total} frames: {text}"
            for text, count in self.doubts.items()
        ]

    def write_table(self, path: Path) -> None:
        """One row per frame and figure."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["frame", "label", "figure", "value", "unit"])
            writer.writerows(self.rows)


def _small(result: PictureResult | RestoredPicture) -> Image.Image:
    """The labels over their frame, or the restored frame."""
    if isinstance(result, PictureResult):
        shown = result.overlay(_SIDE)  # drawn at this size: outlines made smaller would fade
    else:
        shown = Image.fromarray(Picture(result.pixels).eight_bit())
    shown.thumbnail((_SIDE, _SIDE))
    return shown
