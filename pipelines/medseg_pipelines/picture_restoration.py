"""Restore or enlarge one picture: regions once for the whole of it, then the network window by window, blended."""

from __future__ import annotations

from time import monotonic
from typing import cast

import numpy as np
from numpy.typing import NDArray

from medseg.errors import UsageError
from medseg.networks.rat import RAT
from medseg_pipelines import inferers
from medseg_pipelines.events import Reporter
from medseg_pipelines.picture_blending import (
    as_pixels,
    picture_regions,
    planes_of,
    restored_planes,
    restored_window,
    window_plan,
)
from medseg_pipelines.picture_case import PictureCase, hash_pixels
from medseg_pipelines.picture_restored import RestoredPicture
from medseg_pipelines.picture_runner import PictureRunner
from medseg_pipelines.pipeline import RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import PictureRestorationRecipe
from medseg_pipelines.regions import partitioner

_BYTES_PER_PIXEL = 40  # of the restored picture at its full size: sums, weights, regions, pixels


class PictureRestoration(PictureRunner[PictureRestorationRecipe, RestoredPicture]):
    """A model that restores pictures."""

    _pages = "restored.tif"

    def plan(self, case: PictureCase) -> RunPlan:
        """What running on the case will take; one window is run to know the time."""
        layout = self._layout(case)
        planes = self._planes(case)[:, : layout.window[0], : layout.window[1]]
        regions = self._regions(planes)
        started = monotonic()
        restored_window(cast(RAT, self._predict), planes, regions, colour=self.recipe.colour, device=self.device)
        height, width = (side * self.recipe.scale for side in case.picture.size)
        return RunPlan(
            grid=(width, height, 1),
            spacing=(0.0, 0.0, 0.0),
            tiles=layout.tiles,
            peak_bytes=self._peak_bytes(case, layout),
            seconds=round((monotonic() - started) * layout.tiles, 1),
        )

    def _run(self, case: PictureCase, options: RunOptions, warnings: list[str], report: Reporter) -> RestoredPicture:
        layout = self._layout(case)
        require_memory(self._peak_bytes(case, layout), options.memory_limit)
        report.start("preparing")
        planes = self._planes(case)
        regions = self._regions(planes)
        report.start("restoring")
        restored = restored_planes(
            cast(RAT, self._predict),
            planes,
            regions,
            layout,
            colour=self.recipe.colour,
            device=self.device,
            progress=report.advance,
        )
        found = as_pixels(restored, case.picture)
        output = {"voxels_sha256": hash_pixels(found), "dtype": str(found.dtype), "scale": self.recipe.scale}
        return RestoredPicture(
            picture=case.picture,
            pixels=found,
            regions=regions,
            manifest=self._manifest(case, output, options, warnings, report),
            recipe=self.recipe,
        )

    def _planes(self, case: PictureCase) -> NDArray[np.float32]:
        return planes_of(case.picture, colour=self.recipe.colour)

    def _regions(self, planes: NDArray[np.float32]) -> NDArray[np.int32]:
        section = self.recipe.partition
        return picture_regions(planes, partitioner(section.kind, section.options))

    def _layout(self, case: PictureCase) -> inferers.Plan:
        recipe = self.recipe
        return window_plan(
            case.picture.size,
            recipe.window,
            recipe.overlap,
            scale=recipe.scale,
            bytes_per_pixel=recipe.bytes_per_pixel,
        )

    def _peak_bytes(self, case: PictureCase, layout: inferers.Plan) -> int:
        height, width = case.picture.size
        return layout.peak_bytes + _BYTES_PER_PIXEL * height * width * self.recipe.scale**2

    def _check_options(self, options: RunOptions) -> None:
        if options.noise is not None or options.regions is not None or options.keep_regions:
            raise UsageError(f"model {self.recipe.name} restores pictures: it takes no noise level and no region files")
