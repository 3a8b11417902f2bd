"""Segment one picture: read, prepare, predict tile by tile, undo; the mask has exactly the pixels of the input."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg_pipelines import inferers
from medseg_pipelines.events import Callback, Reporter
from medseg_pipelines.picture_case import (
    PictureCase,
    hash_pixels,
    judge_picture,
    picture_facts,
    read_picture_case,
)
from medseg_pipelines.picture_preparation import Prepared, prepare_picture, resized
from medseg_pipelines.picture_results import PictureResult
from medseg_pipelines.picture_statistics import Figure, measure_picture
from medseg_pipelines.picture_tiles import labelled, probabilities, tile_plan
from medseg_pipelines.pipeline import Runner, RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import PictureRecipe
from medseg_pipelines.scope import require_in_scope
from medseg_pipelines.words import UNTRAINED

_BYTES_PER_PIXEL = 24  # of the picture at its full size: planes, field, probability, labels


class PictureSegmentation(Runner[PictureRecipe]):
    """A model that draws masks on pictures."""

    def __init__(self, recipe: PictureRecipe, folder: Path, *, device: str = "auto", engine: str = "auto") -> None:
        super().__init__(recipe, folder, device=device, engine=engine)
        if recipe.inference.window % self._multiple:
            raise UsageError(
                f"recipe '{recipe.name}': inference.window must be a multiple of {self._multiple}, "
                f"got {recipe.inference.window}"
            )

    def __call__(self, image: Any, *, progress: Callback | None = None, **options: Any) -> PictureResult:
        """Run on one picture.

        Args:
            image: A path, a `Picture`, pixels (H, W) or (H, W, 3), or a `PictureCase`.
            progress: Gets every `Event`; returning False or raising `Cancelled` stops the run.
            options: Fields of `RunOptions`.

        Raises:
            InputRefused: The picture cannot be used, or is not what the model was made for.
            UsageError: The model knows nothing of an option.
            Cancelled: The callback said so.
        """
        wanted = RunOptions(**options)
        wanted.require_for(self.recipe)
        self._check_options(wanted)
        report = Reporter(progress)
        report.start("reading")
        case = read_picture_case(image, memory_limit=wanted.memory_limit)
        findings = judge_picture(case.picture, self.recipe.scope)
        warnings = [*case.picture.notes, *require_in_scope(findings, self.recipe.name, force=wanted.force_scope)]
        if not self.recipe.weights.trained:
            warnings.insert(0, UNTRAINED)
        return self._run(case, wanted, warnings, report)

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
            manifest=self._manifest(case, labels, options, warnings, report),
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

    def _manifest(
        self,
        case: PictureCase,
        labels: NDArray[np.integer],
        options: RunOptions,
        warnings: list[str],
        report: Reporter,
    ) -> dict[str, Any]:
        report.finish()
        output = {"voxels_sha256": hash_pixels(labels), "dtype": str(labels.dtype)}
        seconds = {**report.seconds, "reading": round(case.seconds, 3)}
        return self._told(picture_facts(case), output, {"force_scope": options.force_scope}, seconds, warnings)
