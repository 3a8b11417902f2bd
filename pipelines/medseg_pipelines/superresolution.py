"""Finer voxels for one volume: interpolation, what the network finds it lacks, and a check against the input."""

from __future__ import annotations

from time import monotonic

import numpy as np
import torch

from medseg.errors import UsageError
from medseg.volume import Volume
from medseg_pipelines import inferers
from medseg_pipelines.case import Case
from medseg_pipelines.events import Reporter
from medseg_pipelines.pipeline import Pipeline, RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import SuperResolutionRecipe
from medseg_pipelines.results import Result
from medseg_pipelines.slices import Scaling
from medseg_pipelines.superresolution_grid import FinerGrid, channels_and_doublings
from medseg_pipelines.superresolution_steps import finer_plan, refined
from medseg_pipelines.superresolved import Consistency, FinerResult

_COPIES = 5  # float32 volumes of the finer grid that are held at once, at most


class SuperResolution(Pipeline[SuperResolutionRecipe]):
    """A model that gives finer voxels."""

    def plan(self, case: Case) -> RunPlan:
        """What the case will take; one window is run to know the time."""
        finer = FinerGrid.of(case.volume.grid, self.recipe.upscaling)
        layout = finer_plan(finer, self.recipe.upscaling)
        window = torch.rand((1, channels_and_doublings(self.recipe.upscaling)[0], *layout.window), device=self.device)
        started = monotonic()
        with torch.inference_mode():
            self._predict(window)
        return RunPlan(
            grid=finer.after.shape,
            spacing=finer.after.spacing,
            tiles=layout.tiles,
            peak_bytes=self._peak_bytes(finer, layout) + case.volume.voxels.nbytes,
            seconds=round((monotonic() - started) * layout.tiles, 1),
        )

    def _check_options(self, options: RunOptions) -> None:
        if options.noise is not None or options.regions is not None or options.keep_regions:
            raise UsageError(f"model {self.recipe.name} takes neither a noise level nor regions; drop them")

    def _run(self, case: Case, options: RunOptions, warnings: list[str], report: Reporter) -> Result:
        volume = case.volume
        finer = FinerGrid.of(volume.grid, self.recipe.upscaling)
        layout = finer_plan(finer, self.recipe.upscaling)
        require_memory(self._peak_bytes(finer, layout) + volume.voxels.nbytes, options.memory_limit)
        report.start("preparing")
        scaling = Scaling.of_percentile(volume.voxels, self.recipe.upscaling.percentile)
        acquired = torch.from_numpy(scaling.apply(volume.voxels))
        report.start("restoring")
        fine = torch.from_numpy(
            refined(
                self._predict,
                acquired,
                finer,
                layout,
                self.recipe.upscaling,
                device=self.device,
                progress=report.advance,
            )
        )
        report.start("measuring")
        if float(volume.voxels.min()) >= 0:
            fine.clamp_(min=0)  # a magnitude stays one
        acquisition = finer.acquisition(self.recipe.upscaling)
        again = acquisition.measure(fine)
        judged = [Consistency.of(acquired, again, scaling.width)]
        if options.enforce_consistency:
            fine = acquisition.enforce(fine, acquired)
            again = acquisition.measure(fine)
            judged.append(Consistency.of(acquired, again, scaling.width))
        warnings += judged[-1].doubts(self.recipe.unit)
        restored = Volume(fine.mul_(scaling.width).numpy(), finer.after.affine, source=volume.source)
        difference = volume.with_voxels(((acquired - again) * scaling.width).numpy())
        told = {"force_scope": options.force_scope, "enforce_consistency": options.enforce_consistency}
        manifest = self._manifest(case, restored, warnings, report, told)
        return FinerResult.judged(finer, restored, volume, difference, judged, manifest=manifest, recipe=self.recipe)

    def _peak_bytes(self, finer: FinerGrid, layout: inferers.Plan) -> int:
        """Copies of the result, the planes that are still open, and one window."""
        voxels = int(np.prod(finer.after.shape))
        scale = 2 if self.recipe.upscaling.axes == "all" else 1
        open_planes = 2 * scale * layout.window[0] * max(voxels // n for n in finer.after.shape)
        window = int(np.prod(layout.window)) * self.recipe.upscaling.bytes_per_voxel
        guide = 3 * int(np.prod(finer.before.shape if scale == 2 else finer.after.shape))  # itself, and to find it
        return 4 * (_COPIES * voxels + open_planes + guide * self.recipe.upscaling.guide) + window
