"""Segment one picture: read, prepare, predict tile by tile, undo; the mask has exactly the pixels of the input."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg_pipelines import inferers
from medseg_pipelines.events import Reporter
from medseg_pipelines.picture_case import PictureCase, hash_pixels
from medseg_pipelines.picture_preparation import Prepared, prepare_picture, resized
from medseg_pipelines.picture_results import PictureResult
from medseg_pipelines.picture_runner import PictureRunner
from medseg_pipelines.picture_statistics import Figure, measure_picture
from medseg_pipelines.picture_tiles import labelled, probabilities, tile_plan
from medseg_pipelines.pipeline import RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import PictureRecipe

_BYTES_PER_PIXEL = 24  # of the picture at its full size: planes, field, probability, labels


class PictureSegmentation(PictureRunner[PictureRecipe, PictureResult]):
    """A model that draws masks on pictures."""

    _pages = "labels.tif"

    def __init__(self, recipe: PictureRecipe, folder: Path, *, device: str = "auto", engine: str = "auto") -> None:
        super().__init__(recipe, folder, device=device, engine=engine)
        if recipe.inference.window % self._multiple:
            raise UsageError(
                f"recipe '{recipe.name}': inference.window must be a multiple of {self._multiple}, "
                f"got {recipe.inference.window}"
            )

    def plan(self, case: PictureCase) -> RunPlan:
        """What running on the case will take; one tile is run to know the time."""
        prepared = prepare_picture(case.picture, self.recipe.preparation)
        layout = self._layout(prepared)
        tile = torch.zeros((1, prepared.planes.shape[0], *layout.window[:2]), device=self.device)
        started = monotonic()
        with torch.inference_mode():
            self._predict(tile)
        runs = layout.tiles * (4 if self.recipe.inference.flips else 1)
        height, width = prepared.inside.shape
        return RunPlan(
            grid=(width, height, 1),
            spacing=(0.0, 0.0, 0.0),
            tiles=layout.tiles,
            peak_bytes=self._peak_bytes(case, layout),
            seconds=round((monotonic() - started) * runs, 1),
        )

    def _run(self, case: PictureCase, options: RunOptions, warnings: list[str], report: Reporter) -> PictureResult:
        report.start("preparing")
        prepared = prepare_picture(case.picture, self.recipe.preparation)
        layout = self._layout(prepared)
        require_memory(self._peak_bytes(case, layout), options.memory_limit)
        report.start("segmenting")
        found = probabilities(
            self._predict,
            prepared.planes,
            layout,
            outputs=len(self.recipe.labels),
            flips=self.recipe.inference.flips,
            device=self.device,
            progress=report.advance,
        )
        report.start("measuring")
        found = resized(found, case.picture.size) * prepared.field
        labels = labelled(found, prepared.field, [label.id for label in self.recipe.labels], self.recipe.inference)
        figures = measure_picture(labels, prepared.field, case.picture.spacing, self.recipe)
        warnings += self._doubts(figures)
        return PictureResult(
            picture=case.picture,
            labels=labels,
            probability=found,
            field=prepared.field,
            figures=figures,
            manifest=self._manifest(case, label_facts(labels), options, warnings, report),
            recipe=self.recipe,
        )

    def _doubts(self, figures: tuple[Figure, ...]) -> list[str]:
        """A warning where the labelled share of the field is not plausible."""
        bounds = self.recipe.scope.plausible_share
        share = sum(figure.value for figure in figures if figure.name == "area fraction")
        if bounds is None or bounds[0] <= share <= bounds[1]:
            return []
        return [
            f"{100 * share:.1f} % of the field is labelled, expected {100 * bounds[0]:g} to {100 * bounds[1]:g} %: "
            "check the result"
        ]

    def _layout(self, prepared: Prepared) -> inferers.Plan:
        return tile_plan(prepared.inside.shape, self.recipe.inference, outputs=len(self.recipe.labels))

    def _peak_bytes(self, case: PictureCase, layout: inferers.Plan) -> int:
        return layout.peak_bytes + _BYTES_PER_PIXEL * case.picture.size[0] * case.picture.size[1]

    def _check_options(self, options: RunOptions) -> None:
        if options.noise is not None or options.regions is not None or options.keep_regions:
            raise UsageError(
                f"model {self.recipe.name} segments: it takes neither a noise level nor regions; drop them"
            )


def label_facts(labels: NDArray[np.integer]) -> dict[str, str]:
    """What a manifest says of label ids."""
    return {"voxels_sha256": hash_pixels(labels), "dtype": str(labels.dtype)}
