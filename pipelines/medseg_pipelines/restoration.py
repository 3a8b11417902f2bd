"""Restore one volume slice by slice; the result lies on the grid of the input and in its grey values."""

from __future__ import annotations

from time import monotonic
from typing import Any, cast

import numpy as np
import torch

from medseg.errors import InputRefused, UsageError
from medseg.networks.rat import RAT, restore
from medseg.partition import partition
from medseg.volume import Volume
from medseg_pipelines.case import Case, hash_volume
from medseg_pipelines.events import Reporter
from medseg_pipelines.pipeline import Pipeline, RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import RestorationRecipe
from medseg_pipelines.regions import partitioner
from medseg_pipelines.restored import Quality, RestoredResult
from medseg_pipelines.results import Result
from medseg_pipelines.slices import Scaling, network_input, restored_channels, slice_axis, stacked, unstacked

_SMALLEST = 10  # pixels along both sides of a slice; less holds no block to estimate noise from


class Restoration(Pipeline[RestorationRecipe]):
    """A model that restores grey values."""

    def plan(self, case: Case) -> RunPlan:
        """The slices of the case; one batch of them is run to know the time."""
        volume = case.volume
        axis = slice_axis(volume)
        stack, _ = self._scaled(volume, axis)
        batch = list(range(min(self.recipe.slices.batch, stack.shape[2])))
        started = monotonic()
        self._restore_slices(stack, self._regions(stack[:, :, batch], volume, axis), batch, level=None)
        seconds = (monotonic() - started) * stack.shape[2] / len(batch)
        return RunPlan(
            grid=volume.shape,
            spacing=volume.spacing,
            tiles=stack.shape[2],
            peak_bytes=self._peak_bytes(volume, axis),
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
        stack, scaling = self._scaled(volume, axis)
        if options.regions is None:
            regions = self._regions(stack, volume, axis)
        else:
            regions = stacked(_checked_regions(options.regions, volume), axis)
        report.start("restoring")
        level = None if options.noise is None else options.noise / scaling.width
        residual = self._residual(stack, regions, level, report) * np.float32(scaling.width)
        report.start("measuring")
        restored = volume.with_voxels(volume.voxels.astype(np.float32) + unstacked(residual, axis))
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
        quality = Quality.of(stacked(case.volume.voxels, axis), stacked(restored.voxels, axis))
        warnings += quality.doubts(self.recipe.unit)
        given = None if options.regions is None else hash_volume(options.regions)
        told = {"force_scope": options.force_scope, "noise": options.noise, "regions_sha256": given}
        return RestoredResult(
            volume=restored,
            image=case.volume,
            regions=regions,
            regions_given=given is not None,
            keep_regions=options.keep_regions,
            quality=quality,
            manifest={**self._manifest(case, restored, warnings, report, told), "quality": quality.as_json()},
            recipe=self.recipe,
        )

    def _scaled(self, volume: Volume, axis: int) -> tuple[np.ndarray, Scaling]:
        """The slices as the network sees them, (X, Y, S)."""
        scaling = Scaling.of(volume.voxels, self.recipe.slices)
        stack = np.ascontiguousarray(stacked(volume.voxels, axis))
        if min(stack.shape[:2]) < _SMALLEST:
            raise InputRefused(
                f"slices must have {_SMALLEST} voxels along both sides, got {stack.shape[:2]}; crop less"
            )
        return np.clip(scaling.apply(stack), *self.recipe.slices.limits), scaling

    def _regions(self, stack: np.ndarray, volume: Volume, axis: int) -> np.ndarray:
        spacing = [float(step) for i, step in enumerate(volume.spacing) if i != axis]
        return partition(
            stack, partitioner(self.recipe.partition), spacing=(spacing[0], spacing[1], volume.spacing[axis])
        )

    def _residual(self, stack: np.ndarray, regions: np.ndarray, level: float | None, report: Reporter) -> np.ndarray:
        """What is added to the slices, batch by batch."""
        residual = np.empty(stack.shape, np.float32)
        count = stack.shape[2]
        for start in range(0, count, self.recipe.slices.batch):
            chosen = list(range(start, min(start + self.recipe.slices.batch, count)))
            residual[:, :, chosen] = self._restore_slices(stack, regions[:, :, chosen], chosen, level=level)
            report.advance(chosen[-1] + 1, count)
        return residual

    def _restore_slices(
        self, stack: np.ndarray, regions: np.ndarray, chosen: list[int], *, level: float | None
    ) -> np.ndarray:
        """(X, Y, B): restored minus seen, of the chosen slices."""
        image = network_input(stack, chosen, self.recipe.slices, level).to(self.device)
        ids = torch.from_numpy(np.ascontiguousarray(np.moveaxis(regions, 2, 0))).long().to(self.device)
        with torch.inference_mode():
            restored = restore(cast(RAT, self._predict), image, ids)[:, restored_channels(self.recipe.slices)]
        found = np.moveaxis(restored[:, 0].float().cpu().numpy(), 0, 2)
        return np.clip(found, *self.recipe.slices.limits) - stack[:, :, chosen]

    def _peak_bytes(self, volume: Volume, axis: int) -> int:
        pixels = volume.voxels.size // volume.shape[axis]
        return self.recipe.slices.batch * pixels * self.recipe.slices.bytes_per_pixel + 24 * volume.voxels.size


def _plain(regions: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(regions.astype(np.uint16 if int(regions.max()) < 65536 else np.int32))


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
