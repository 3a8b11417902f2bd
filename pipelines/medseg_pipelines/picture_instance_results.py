"""Things told apart on a picture as a result: their numbers, one row of measures each, outlines and preview."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.instance_measures import Things
from medseg.io.pictures import name_for_ids, numbers_as_image, write_ids
from medseg.picture import Picture
from medseg_pipelines.drawing import outline
from medseg_pipelines.picture_results import PROBABILITY_FILE, PictureResult
from medseg_pipelines.picture_statistics import Figure, as_csv, as_json
from medseg_pipelines.results import LABELS_JSON, write_json
from medseg_pipelines.words import RESEARCH_USE

TABLE = "instances.csv"
_OVERLAY = 2048  # px of the longer side
_FINEST = 3  # a small picture is enlarged up to this for its outlines
_TINTS = ((255, 210, 60), (80, 220, 120), (90, 180, 255), (255, 120, 200), (255, 140, 70), (190, 160, 255))


@dataclass(frozen=True, eq=False, kw_only=True)
class InstanceResult(PictureResult):
    """Things told apart; `labels` holds their numbers, and `probability` 0 to 255.

    Attributes:
        things: Measures of each.
    """

    things: Things

    @property
    def main_file(self) -> str:
        """Name of the numbers: 16 bit PNG, or TIFF where there are too many."""
        return name_for_ids("labels", len(self.things))

    def page(self) -> Image.Image:
        """The numbers as a page of a file with several."""
        return numbers_as_image(self.labels)

    def names(self) -> dict[str, Any]:
        """What the numbers mean."""
        return {**super().names(), "values": "one number per thing", "things": len(self.things)}

    def overlay(self, longest: int = _OVERLAY) -> Image.Image:
        """The outlines over the picture, neighbours in different colours."""
        height, width = self.picture.size
        scale = min(_FINEST, longest / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        base = np.array(Image.fromarray(_bright(self.picture)).resize(size, Image.Resampling.BILINEAR))
        ids = np.asarray(Image.fromarray(self.labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        edge = outline(ids) & (ids > 0)
        base[edge] = np.array(_TINTS, np.uint8)[ids[edge] % len(_TINTS)]
        return Image.fromarray(base)

    def _write(self, folder: Path) -> None:
        write_ids(self.labels, folder / self.main_file)
        Image.fromarray(self.probability[0].astype(np.uint8)).save(folder / PROBABILITY_FILE)
        self.overlay().save(folder / "overlay.png")
        write_json(folder / LABELS_JSON, self.names())
        write_json(folder / "statistics.json", {"notice": RESEARCH_USE, **as_json(self.figures)})
        (folder / "statistics.csv").write_text(as_csv(self.figures), encoding="utf-8")
        (folder / TABLE).write_text(_table(self.things, self.picture.spacing), encoding="utf-8")


def figures_of(things: Things, picture: Picture, label: str) -> tuple[Figure, ...]:
    """Counts and sizes, in pixels, or in mm where the file knows its spacing; sizes leave out what the border cuts."""
    unit = "px" if picture.spacing is None else "mm"
    pixel = 1.0 if picture.spacing is None else picture.spacing[0] * picture.spacing[1]
    whole = things.area[~things.at_border] * pixel
    low, middle, high = np.percentile(whole, (25, 50, 75)) if len(whole) else (0.0, 0.0, 0.0)
    rows = [
        ("count", len(things), ""),
        ("at the border", int(things.at_border.sum()), ""),
        ("area fraction", things.area.sum() / (picture.size[0] * picture.size[1]), ""),
        ("area", things.area.sum() * pixel, f"{unit}^2"),
        ("median area", middle, f"{unit}^2"),
        ("area, lower quartile", low, f"{unit}^2"),
        ("area, upper quartile", high, f"{unit}^2"),
        ("median diameter", 2 * np.sqrt(middle / np.pi), unit),
    ]
    return tuple(Figure(label=label, name=name, value=float(value), unit=kind) for name, value, kind in rows)


def _bright(picture: Picture) -> NDArray[np.uint8]:
    """For looking at: a dark picture stretched until its brightest parts are light."""
    pixels = picture.eight_bit()
    step = max(1, round((pixels[..., 0].size / 1e6) ** 0.5))
    high = max(32.0, float(np.percentile(pixels[::step, ::step], 99.8)))
    table = (np.arange(256) * (255 / high)).clip(0, 255).astype(np.uint8)
    return table[pixels]


def _table(things: Things, spacing: tuple[float, float] | None) -> str:
    """One row per thing; lengths in mm where both sides of a pixel are equally long and known."""
    square = spacing is not None and abs(spacing[0] - spacing[1]) < 1e-3 * spacing[0]
    step, unit = (spacing[0], "mm") if spacing is not None and square else (1.0, "px")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["row", "column", "top", "bottom", "left", "right", f"area {unit}^2", f"long {unit}", f"short {unit}"]
    writer.writerow(["id", *names, "at border"])
    for n in range(len(things)):
        box = [int(side[n]) for side in (things.top, things.bottom, things.left, things.right)]
        lengths = [things.area[n] * step**2, things.long[n] * step, things.short[n] * step]
        place = [f"{things.row[n]:.1f}", f"{things.column[n]:.1f}"]
        writer.writerow([n + 1, *place, *box, *(f"{value:.5g}" for value in lengths), int(things.at_border[n])])
    return out.getvalue()
