"""What is measured on the labels of a picture: areas, and for vessels their length, width and tortuosity."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.vessels import measure_vessels
from medseg_pipelines.recipe import PictureRecipe, PromptRecipe, SupportRecipe

MEANING = {
    "area fraction": "share of the field of view that is labelled",
    "area": "of all labelled pixels",
    "count": "of the things that were told apart",
    "at the border": "of these, things that touch the border of the picture and may be cut",
    "median area": "of the things that do not touch the border",
    "area, lower quartile": "a quarter of them is smaller",
    "area, upper quartile": "a quarter of them is larger",
    "median diameter": "of a disc with the median area",
    "length": "of the centre lines (skeleton), smoothed over 5 pixels",
    "density": "length per area of the field of view",
    "mean width": "area over length",
    "segments": "centre lines of at least 20 pixels between branchings and ends",
    "tortuosity": "length of a segment over the distance of its ends, mean weighted by length; 1 is straight",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number about one label."""

    label: str
    name: str
    value: float
    unit: str  # "" for what has none

    @property
    def number(self) -> str:
        """The value for reading: four digits, or as a whole where it is large."""
        whole = self.value == round(self.value) or self.value >= 1000
        return f"{self.value:,.0f}" if whole else f"{self.value:.4g}"


def measure_picture(
    labels: NDArray[np.uint8],
    field: NDArray[np.bool_],
    spacing: tuple[float, float] | None,
    recipe: PictureRecipe | PromptRecipe | SupportRecipe,
) -> tuple[Figure, ...]:
    """The figures of every label, in pixels, or in mm where the file knows its spacing.

    Args:
        labels: Label ids, (H, W).
        field: Where the picture shows something, (H, W).
        spacing: mm per row and column.
        recipe: Says what its labels are and what is measured on them.
    """
    unit = "px" if spacing is None else "mm"
    found: list[Figure] = []
    for label in recipe.labels:
        mask = labels == label.id
        if recipe.statistics == "vessels":
            v = measure_vessels(mask, field, spacing)
            rows = [
                ("area fraction", v.area_fraction, ""),
                ("area", v.area, f"{unit}^2"),
                ("length", v.length, unit),
                ("density", v.density, f"1/{unit}"),
                ("mean width", v.width, unit),
                ("segments", v.segments, ""),
                ("tortuosity", v.tortuosity, ""),
            ]
        else:
            pixel = 1.0 if spacing is None else spacing[0] * spacing[1]
            inside = int((mask & field).sum())
            rows = [("area fraction", inside / max(1, int(field.sum())), ""), ("area", inside * pixel, f"{unit}^2")]
        found += [Figure(label=label.name, name=name, value=float(value), unit=kind) for name, value, kind in rows]
    return tuple(found)


def as_json(figures: tuple[Figure, ...]) -> dict[str, Any]:
    """The content of `statistics.json`: six significant digits each."""
    rows = [{"label": f.label, "name": f.name, "value": float(f"{f.value:.6g}"), "unit": f.unit} for f in figures]
    used = {figure.name for figure in figures}
    return {"meaning": {name: text for name, text in MEANING.items() if name in used}, "figures": rows}


def as_csv(figures: tuple[Figure, ...]) -> str:
    """The content of `statistics.csv`: one row per figure, with a header row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", "figure", "value", "unit"])
    writer.writerows([f.label, f.name, f"{f.value:.6g}", f.unit] for f in figures)
    return out.getvalue()
