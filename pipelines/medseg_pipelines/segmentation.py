"""Segment one volume: read, prepare, predict, undo; the label map lies on the grid of the input."""

from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch

from medseg.errors import InputRefused, UsageError
from medseg.geometry import Chain
from medseg.volume import Volume
from medseg.weights import load_weights, sha256_of
from medseg_pipelines import engines, inferers, nets
from medseg_pipelines.case import Case, read_case
from medseg_pipelines.events import Callback, Reporter
from medseg_pipelines.manifest import Machine, build_manifest
from medseg_pipelines.preparation import prepare
from medseg_pipelines.recipe import RECIPE_FILE, Recipe
from medseg_pipelines.results import Result
from medseg_pipelines.scope import implausible_size, judge, require_in_scope
from medseg_pipelines.statistics import measure
from medseg_pipelines.words import UNTRAINED


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run will take, found out without running it."""

    grid: tuple[int, int, int]  # voxels of the prepared image
    spacing: tuple[float, float, float]  # mm
    tiles: int
    peak_bytes: int
    seconds: float  # measured on one tile


class Segmentation:
    """A model ready to run.

    Args:
        recipe: What to do.
        folder: Where the recipe and the weights lie.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        engine: "auto", or a name from `engines.available()`.

    Raises:
        ModelMissing: The weights are absent or are not the ones the recipe names.
        UsageError: There is no such device or engine.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, device: str = "auto", engine: str = "auto") -> None:
        self.recipe = recipe
        self.device = find_device(device)
        self._recipe_sha256 = sha256_of(folder / RECIPE_FILE)
        if engine not in ("auto", *engines.available()):
            raise UsageError(f"engine must be one of auto, {', '.join(engines.available())}, got '{engine}'")
        network = nets.build(recipe.network.name, recipe.network.options, folder=folder)
        load_weights(network, folder / recipe.weights.file, sha256=recipe.weights.sha256)
        self._multiple = int(getattr(network, "multiple", 1))
        self.engine = engines.default_engine(str(self.device)) if engine == "auto" else engine
        self._predict = engines.prepare(network.eval(), engine=self.engine, device=str(self.device))

    def __call__(
        self,
        image: Any,
        *,
        progress: Callback | None = None,
        time_point: int | None = None,
        force_scope: bool = False,
        memory_limit: int | None = None,
    ) -> Result:
        """Segment one image.

        Args:
            image: A path, a Volume, a nibabel or a SimpleITK image, or a Case.
            progress: Gets every `Event`; returning False or raising `Cancelled` stops the run.
            time_point: Index from 0 into the fourth axis, where there is one.
            force_scope: Run on an image that the model was not made for.
            memory_limit: Bytes that the run may take.

        Raises:
            InputRefused: The image cannot be used, or is not what the model was made for.
            Cancelled: The callback said so.
        """
        report = Reporter(progress)
        report.start("reading")
        case = read_case(image, time_point=time_point, memory_limit=memory_limit)
        findings = judge(case.volume, self.recipe.scope)
        warnings = [*case.volume.notes, *require_in_scope(findings, self.recipe.name, force=force_scope)]
        report.start("preparing")
        prepared, chain = self._prepare(case.volume)
        layout = self._layout(prepared)
        _require_memory(layout.peak_bytes + case.volume.voxels.nbytes, memory_limit)
        report.start("segmenting")
        labels = chain.undo(self._label(prepared, layout, report))
        report.start("measuring")
        return self._result(case, labels, warnings, report, force_scope=force_scope)

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

    def _result(
        self, case: Case, labels: Volume, warnings: list[str], report: Reporter, *, force_scope: bool
    ) -> Result:
        structures = measure(labels.voxels, labels.affine, self.recipe.labels)
        size = implausible_size(sum(s.ml or 0.0 for s in structures), self.recipe.scope)
        if size:
            warnings.append(size)
        if not self.recipe.weights.trained:
            warnings.insert(0, UNTRAINED)
        report.finish()
        manifest = build_manifest(
            recipe=self.recipe,
            recipe_sha256=self._recipe_sha256,
            case=case,
            labels=labels,
            machine=self._machine(),
            force_scope=force_scope,
            seconds={**report.seconds, "reading": round(case.seconds, 3)},
            warnings=tuple(warnings),
        )
        return Result(
            volume=labels,
            image=case.volume,
            labels=self.recipe.labels,
            statistics=structures,
            manifest=manifest,
            recipe=self.recipe,
        )

    def _machine(self) -> Machine:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return Machine(device=str(self.device), device_name=name, engine=self.engine, threads=torch.get_num_threads())


def preparation_of(recipe: Recipe) -> dict[str, Any]:
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


def body_of(recipe: Recipe) -> dict[str, Any] | None:
    """The arguments of `keep_largest` that a recipe stands for, plain data."""
    return None if recipe.decode.body is None else recipe.decode.body.model_dump()


def find_device(name: str) -> torch.device:
    """The device behind a name; "auto" takes a GPU where there is one.

    Raises:
        UsageError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        here = "cpu" + ", cuda" * torch.cuda.is_available() + ", mps" * torch.backends.mps.is_available()
        raise UsageError(f"device must be auto or one of {here}, got '{name}'; `medseg doctor` lists them") from None
    return device


def _require_memory(needed: int, limit: int | None) -> None:
    if limit is not None and needed > limit:
        raise InputRefused(
            f"run needs about {needed / 1e9:.1f} GB, --memory-limit allows {limit / 1e9:.1f} GB; "
            "raise the limit or crop the image"
        )
