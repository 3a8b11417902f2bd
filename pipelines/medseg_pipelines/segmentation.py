"""Segment one volume: read, prepare, predict, undo; the label map lies on the grid of the input."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from medseg.errors import UsageError
from medseg.geometry import Chain
from medseg.volume import Volume
from medseg_pipelines import inferers
from medseg_pipelines.case import Case
from medseg_pipelines.events import Reporter
from medseg_pipelines.pipeline import Pipeline, RunOptions, RunPlan, require_memory
from medseg_pipelines.preparation import prepare
from medseg_pipelines.recipe import SegmentationRecipe
from medseg_pipelines.results import LabelResult, Result
from medseg_pipelines.scope import implausible_size
from medseg_pipelines.statistics import measure


class Segmentation(Pipeline[SegmentationRecipe]):
    """A model that draws labels; with a window of one slice its network sees slices, (B, C, X, Y)."""

    def __init__(self, recipe: SegmentationRecipe, folder: Path, *, device: str = "auto", engine: str = "auto") -> None:
        super().__init__(recipe, folder, device=device, engine=engine)
        if recipe.inference.window[2] == 1:
            predict = self._predict
            self._predict = inferers.through_slices(predict)

    def _check_options(self, options: RunOptions) -> None:
        restores = options.noise is not None or options.regions is not None or options.keep_regions
        if restores or options.enforce_consistency:
            raise UsageError(
                f"model {self.recipe.name} segments: it takes neither a noise level nor regions, and has nothing to "
                "enforce; drop them"
            )

    def _run(self, case: Case, options: RunOptions, warnings: list[str], report: Reporter) -> Result:
        report.start("preparing")
        prepared, chain = self._prepare(case.volume)
        layout = self._layout(prepared)
        require_memory(layout.peak_bytes + case.volume.voxels.nbytes, options.memory_limit)
        report.start("segmenting")
        labels = chain.undo(self._label(prepared, layout, report))
        report.start("measuring")
        structures = measure(labels.voxels, labels.affine, self.recipe.labels)
        size = implausible_size(sum(s.ml or 0.0 for s in structures), self.recipe.scope)
        warnings += [size] if size else []
        return LabelResult(
            volume=labels,
            image=case.volume,
            labels=self.recipe.labels,
            statistics=structures,
            manifest=self._manifest(case, labels, warnings, report, {"force_scope": options.force_scope}),
            recipe=self.recipe,
        )

    def plan(self, case: Case) -> RunPlan:
        """What segmenting the case will take; one window is run to know the time."""
        prepared, _ = self._prepare(case.volume)
        plan = self._layout(prepared)
        window = torch.zeros((1, 1, *plan.window), device=self.device)
        started = monotonic()
        with torch.inference_mode():
            self._predict(window)
        seconds = (monotonic() - started) * plan.tiles
        return RunPlan(
            grid=prepared.shape,
            spacing=prepared.spacing,
            tiles=plan.tiles,
            peak_bytes=plan.peak_bytes + case.volume.voxels.nbytes,
            seconds=round(seconds, 1),
        )

    def _prepare(self, volume: Volume) -> tuple[Volume, Chain]:
        """The image as the network sees it, and the way back."""
        return prepare(volume, **preparation_of(self.recipe))

    def _layout(self, prepared: Volume) -> inferers.Plan:
        """The windows over a prepared image."""
        inference = self.recipe.inference
        shape = prepared.shape
        if inference.whole_window:
            shape = tuple(max(size, side) for size, side in zip(shape, inference.window, strict=True))
        return inferers.plan(
            shape,
            inference.window,
            inference.overlap,
            outputs=self.recipe.decode.outputs,
            multiple=self._multiple,
            bytes_per_voxel=inference.bytes_per_voxel,
        )

    def _label(self, prepared: Volume, layout: inferers.Plan, report: Reporter) -> Volume:
        labels = inferers.label_volume(
            self._predict,
            prepared.voxels,
            layout=layout,
            table=np.asarray(self.recipe.decode.table),
            body=body_of(self.recipe),
            device=self.device,
            progress=report.advance,
        )
        return prepared.with_voxels(labels, kind="labels")


def preparation_of(recipe: SegmentationRecipe) -> dict[str, Any]:
    """The arguments of `prepare` that a recipe stands for, plain data."""
    section = recipe.preparation
    steps = section.intensity
    return {
        "orientation": section.orientation,
        "margin": section.foreground_margin,
        "spacing": section.spacing,
        "percentiles": section.percentiles,
        "intensity": None if steps is None else [step.model_dump() for step in steps],
    }


def body_of(recipe: SegmentationRecipe) -> dict[str, Any] | None:
    """The arguments of `keep_largest` that a recipe stands for, plain data."""
    return None if recipe.decode.body is None else recipe.decode.body.model_dump()
