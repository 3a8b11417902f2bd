"""Restore one volume slice by slice; the result lies on the grid of the input and in its grey values."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, cast

import numpy as np
from torch import Tensor

from medseg.errors import InputRefused, UsageError
from medseg.io.voxels import narrowest
from medseg.networks.rat import RAT, restore
from medseg.partition import Partitioner
from medseg.volume import Volume
from medseg_pipelines.case import Case, hash_volume
from medseg_pipelines.events import Reporter
from medseg_pipelines.pipeline import Pipeline, RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import RestorationRecipe
from medseg_pipelines.regions import name_of, partitioner
from medseg_pipelines.restored import Quality, RestoredResult
from medseg_pipelines.results import Result
from medseg_pipelines.slice_restoration import SliceStack, find_residual
from medseg_pipelines.slices import holds_magnitudes, restored_slice, slice_axis, stacked, unstacked


class Restoration(Pipeline[RestorationRecipe]):
    """A model that restores grey values."""

    def plan(self, case: Case) -> RunPlan:
        """The slices of the case; one batch of them is run to know the time."""
        volume = case.volume
        stack = SliceStack.of(volume, self.recipe.slices)
        batch = list(range(min(self.recipe.slices.batch, stack.count)))
        started = monotonic()
        self._residual(stack, self._regions(stack, batch), chosen=batch)
        seconds = (monotonic() - started) * stack.count / len(batch)
        return RunPlan(
            grid=volume.shape,
            spacing=volume.spacing,
            tiles=stack.count,
            peak_bytes=self._peak_bytes(volume, stack.axis),
            seconds=round(seconds, 1),
        )

    def _check_options(self, options: RunOptions) -> None:
        if options.noise is not None and not (self.recipe.slices.noise_map and options.noise > 0):
            needed = "above 0" if self.recipe.slices.noise_map else "absent: this model was not told of noise"
            raise UsageError(f"noise level must be {needed}, got {options.noise:g}")
        if options.enforce_consistency:
            raise UsageError(f"model {self.recipe.name} keeps the grid: there is no consistency to enforce; drop that")

    def _run(self, case: Case, options: RunOptions, warnings: list[str], report: Reporter) -> Result:
        volume = case.volume
        axis = slice_axis(volume)
        require_memory(self._peak_bytes(volume, axis) + volume.voxels.nbytes, options.memory_limit)
        report.start("preparing")
        stack = SliceStack.of(volume, self.recipe.slices)
        if options.regions is None:
            regions = self._regions(stack, how=options.partition, progress=report.advance)
        else:
            regions = stacked(_checked_regions(options.regions, volume), axis)
        report.start("restoring")
        level = None if options.noise is None else options.noise / stack.scaling.width
        residual = self._residual(stack, regions, level=level, progress=report.advance)
        report.start("measuring")
        restored = volume.with_voxels(stack.restored(residual))
        return self._result(
            case, restored, volume.with_voxels(_plain(unstacked(regions, axis))), options, warnings, report
        )

    def _result(
        self,
        case: Case,
        restored: Volume,
        regions: Volume,
        options: RunOptions,
        warnings: list[str],
        report: Reporter,
    ) -> Result:
        axis = slice_axis(case.volume)
        magnitudes = holds_magnitudes(self.recipe.slices)
        quality = Quality.of(stacked(case.volume.voxels, axis), stacked(restored.voxels, axis), magnitudes=magnitudes)
        warnings += quality.doubts(self.recipe.unit)
        asked = options.regions is not None or options.partition is not None  # a replay reads them from the result
        told: dict[str, Any] = {"force_scope": options.force_scope, "noise": options.noise}
        told["regions_sha256"] = hash_volume(options.regions or regions) if asked else None
        if options.partition is not None:
            told["partition"] = name_of(options.partition)
        return RestoredResult(
            volume=restored,
            image=case.volume,
            regions=regions,
            regions_given=options.regions is not None,
            keep_regions=options.keep_regions or asked,
            quality=quality,
            manifest={**self._manifest(case, restored, warnings, report, told), "quality": quality.as_json()},
            recipe=self.recipe,
        )

    def _regions(
        self,
        stack: SliceStack,
        chosen: list[int] | None = None,
        *,
        how: Partitioner | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """Region ids of all slices or of chosen ones, (X, Y, S)."""
        section = self.recipe.partition
        how = how or partitioner(section.kind, section.options)
        return stack.regions(how, chosen, device=str(self.device), progress=progress)

    def _residual(
        self,
        stack: SliceStack,
        regions: np.ndarray,
        *,
        chosen: list[int] | None = None,
        level: float | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """See `find_residual`."""
        slices, network = self.recipe.slices, cast(RAT, self._predict)

        def restored(image: Tensor, ids: Tensor) -> Tensor:
            found = restore(network, image, ids)
            return restored_slice(image, found, context=slices.context, guide=slices.guide)

        return find_residual(
            stack,
            regions,
            slices,
            restored,
            chosen=chosen,
            level=level,
            device=self.device,
            progress=progress,
        )

    def _peak_bytes(self, volume: Volume, axis: int) -> int:
        pixels = volume.voxels.size // volume.shape[axis]
        copies = 49 if self.recipe.slices.guide else 29  # bytes; the noise level for a guide takes all slices at once
        return self.recipe.slices.batch * pixels * self.recipe.slices.bytes_per_pixel + copies * volume.voxels.size


def _plain(regions: np.ndarray) -> np.ndarray:
    """As reading a file of them gives them, so that a replay finds the same."""
    return np.ascontiguousarray(narrowest(regions))


def _checked_regions(regions: Volume, image: Volume) -> np.ndarray:
    """Region ids on the grid of the image.

    Raises:
        InputRefused: They lie on another grid, or are no whole numbers from 0 on.
    """
    if not regions.grid.equals(image.grid, tolerance=1e-3):
        raise InputRefused(
            f"regions must lie on the grid of the image, {image.shape} voxels, got {regions.shape} or another place; "
            "save them with --save-regions from this image"
        )
    values: Any = regions.voxels
    if (values < 0).any() or not np.array_equal(values, np.rint(values)):
        raise InputRefused("regions must be whole numbers from 0 on, they are not; give a file of --save-regions")
    return values.astype(np.int32)
