"""A segmented picture as a result: indexed mask, probability, overlay, figures and preview."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medseg.io.pictures import indexed, write_indexed
from medseg.picture import Picture
from medseg_pipelines.drawing import Caption
from medseg_pipelines.picture_case import hash_pixels
from medseg_pipelines.picture_preview import draw_picture, overlay
from medseg_pipelines.picture_statistics import Figure, as_csv, as_json
from medseg_pipelines.recipe import PictureRecipe, PromptRecipe, SupportRecipe
from medseg_pipelines.results import LABELS_JSON, Outcome, write_json
from medseg_pipelines.words import RESEARCH_USE, UNTRAINED

FIELD_FILE = "field.png"
PROBABILITY_FILE = "probability.png"
_OVERLAY = 2048  # px of the longer side; more is for the mask itself


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureResult(Outcome):
    """A segmentation of a picture.

    Attributes:
        picture: As it was read, turned as its file says.
        labels: Label ids, (H, W), on the pixels of the picture.
        probability: Of each label, (K, H, W), 0 to 1; 0 outside the field.
        field: Where the picture shows something, (H, W).
        figures: What was measured.
    """

    recipe: PictureRecipe | PromptRecipe | SupportRecipe
    picture: Picture
    labels: NDArray[np.integer]
    probability: NDArray[Any]
    field: NDArray[np.bool_]
    figures: tuple[Figure, ...]

    @property
    def main_file(self) -> str:
        """Name of the mask."""
        return "labels.png"

    @property
    def digest(self) -> str:
        """The sha256 of the mask."""
        return hash_pixels(self.labels)

    def overlay(self, longest: int = _OVERLAY) -> Image.Image:
        """The labels drawn over the picture, reduced to `longest` pixels."""
        return overlay(self.picture, self.labels.astype(np.uint8), self.field, self.recipe.labels, longest)

    def preview(self) -> Image.Image:
        """Overlay and picture side by side with the figures."""
        return draw_picture(self.picture, self.overlay(), self.figures, self.recipe.labels, self.caption())

    def caption(self) -> Caption:
        """The words around the preview."""
        height, width = self.picture.size
        spacing = self.picture.spacing
        step = "" if spacing is None else f" of {spacing[1]:.4g} x {spacing[0]:.4g} mm"
        return Caption(
            title=self.recipe.title,
            subtitle=f"{self.version()}. {width} x {height} pixels{step}.",
            warnings=tuple(warning for warning in self.warnings if warning != UNTRAINED),
            trained=self.recipe.weights.trained,
            convention="",
        )

    def page(self) -> Image.Image:
        """The labels as a page of a file with several."""
        return indexed(self.labels.astype(np.uint8), self._colours())

    def _colours(self) -> list[tuple[int, int, int]]:
        """Of each label id, 0 for the background."""
        colors = [(0, 0, 0)] * (max(label.id for label in self.recipe.labels) + 1)
        for label in self.recipe.labels:
            colors[label.id] = label.color
        return colors

    def _write(self, folder: Path) -> None:
        write_indexed(self.labels.astype(np.uint8), folder / self.main_file, self._colours())
        for number, label in enumerate(self.recipe.labels):
            scaled = (self.probability[number] * 255).round().astype(np.uint8)
            Image.fromarray(scaled).save(folder / self.probability_file(label.id))
        Image.fromarray(self.field).save(folder / FIELD_FILE)
        self.overlay().save(folder / "overlay.png")
        write_json(folder / LABELS_JSON, self.names())
        write_json(folder / "statistics.json", {"notice": RESEARCH_USE, **as_json(self.figures)})
        (folder / "statistics.csv").write_text(as_csv(self.figures), encoding="utf-8")

    def probability_file(self, label: int) -> str:
        """Name of the probability of one label, 0 to 255 for 0 to 1."""
        return PROBABILITY_FILE if len(self.recipe.labels) == 1 else f"probability_{label}.png"

    def names(self) -> dict[str, Any]:
        """What each value of the labels means, the content of `labels.json`."""
        return {
            "model": self.recipe.name,
            "file": self.main_file,
            "background": 0,
            "labels": [label.model_dump() for label in self.recipe.labels],
        }
