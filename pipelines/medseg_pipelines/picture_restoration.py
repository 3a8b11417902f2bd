"""Restore or enlarge one picture: regions once for the whole of it, then the network window by window, blended."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from time import monotonic
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import InputRefused, UsageError
from medseg.networks.rat import RAT, restore
from medseg.partition import partition
from medseg_pipelines import inferers
from medseg_pipelines.events import Callback, Reporter
from medseg_pipelines.picture_case import PictureCase, hash_pixels, judge_picture, read_picture_case
from medseg_pipelines.picture_restored import RestoredPicture
from medseg_pipelines.pipeline import Runner, RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import Partition, PictureRestorationRecipe
from medseg_pipelines.regions import partitioner
from medseg_pipelines.scope import require_in_scope
from medseg_pipelines.words import UNTRAINED

_BYTES_PER_PIXEL = 40  # of the restored picture at its full size: sums, weights, regions, pixels


class PictureRestoration(Runner[PictureRestorationRecipe]):
    """A model that restores pictures."""

    def __call__(self, image: Any, *, progress: Callback | None = None, **options: Any) -> RestoredPicture:
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
        if wanted.noise is not None or wanted.regions is not None or wanted.keep_regions:
            raise UsageError(f"model {self.recipe.name} restores pictures: it takes no noise level and no region files")
        report = Reporter(progress)
        report.start("reading")
        case = read_picture_case(image, memory_limit=wanted.memory_limit)
        findings = judge_picture(case.picture, self.recipe.scope)
        warnings = [*case.picture.notes, *require_in_scope(findings, self.recipe.name, force=wanted.force_scope)]
        if not self.recipe.weights.trained:
            warnings.insert(0, UNTRAINED)
        return self._run(case, wanted, warnings, report)

    def plan(self, case: PictureCase) -> RunPlan:
        """What running on the case will take; one window is run to know the time."""
        layout = self._layout(case)
        planes = self._planes(case)[:, : layout.window[0], : layout.window[1]]
        regions = picture_regions(planes, self.recipe.partition)
        started = monotonic()
        self._window(planes, regions)
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
        regions = picture_regions(planes, self.recipe.partition)
        report.start("restoring")
        restored = self._blended(planes, regions, layout, report)
        pixels = case.picture.pixels
        top = np.iinfo(pixels.dtype).max
        found = np.moveaxis(restored.clip(0, 1) * top, 0, 2).round().astype(pixels.dtype)
        found = found if pixels.shape[2] == found.shape[2] else found.mean(2, keepdims=True).astype(pixels.dtype)
        return RestoredPicture(
            picture=case.picture,
            pixels=found,
            regions=regions,
            manifest=self._manifest(case, found, options, warnings, report),
            recipe=self.recipe,
        )

    def _planes(self, case: PictureCase) -> NDArray[np.float32]:
        """(C, H, W), 0 to 1, as many channels as the picture has or the network takes at once."""
        if case.picture.channels == 3 and case.picture.pixels.dtype != np.uint8:
            raise InputRefused("picture must have 8 bit per colour or be grey, got colours of 16 bit; save it with 8")
        planes = case.picture.unit_planes()
        return planes if self.recipe.colour else planes[: case.picture.channels]

    def _layout(self, case: PictureCase) -> inferers.Plan:
        height, width = case.picture.size
        side = self.recipe.window
        return inferers.plan(
            (height, width, 1),
            (side, side, 1),
            self.recipe.overlap,
            outputs=3 * self.recipe.scale**2,
            bytes_per_voxel=self.recipe.bytes_per_pixel,
        )

    def _blended(
        self, planes: NDArray[np.float32], regions: NDArray[np.int32], layout: inferers.Plan, report: Reporter
    ) -> NDArray[np.float32]:
        """(C, scale H, scale W): windows with weights that fall towards their borders."""
        scale = self.recipe.scale
        height, width = (side * scale for side in planes.shape[1:])
        total, weights = np.zeros((len(planes), height, width), np.float32), np.zeros((height, width), np.float32)
        sides = (layout.window[0] * scale, layout.window[1] * scale, 1)
        weight = inferers.blend_weights(sides)[..., 0].numpy()
        for done, (row, column) in enumerate(product(*layout.starts[:2]), start=1):
            seen = (slice(row, row + layout.window[0]), slice(column, column + layout.window[1]))
            place = (slice(row * scale, row * scale + sides[0]), slice(column * scale, column * scale + sides[1]))
            total[(slice(None), *place)] += self._window(planes[(slice(None), *seen)], regions[seen]) * weight
            weights[place] += weight
            report.advance(done, layout.tiles)
        return total / weights

    def _window(self, planes: NDArray[np.float32], regions: NDArray[np.int32]) -> NDArray[np.float32]:
        """(C, h, w) to (C, scale h, scale w)."""
        image = torch.from_numpy(np.ascontiguousarray(planes)).to(self.device)
        batch = image[None] if self.recipe.colour else image[:, None]
        ids = torch.from_numpy(enlarged_regions(regions, self.recipe.scale)).to(self.device)
        with torch.inference_mode():
            restored = restore(cast(RAT, self._predict), batch, ids)
        return restored.reshape(len(planes), *restored.shape[2:]).float().cpu().numpy()

    def _peak_bytes(self, case: PictureCase, layout: inferers.Plan) -> int:
        height, width = case.picture.size
        return layout.peak_bytes + _BYTES_PER_PIXEL * height * width * self.recipe.scale**2

    def _manifest(
        self,
        case: PictureCase,
        pixels: NDArray[np.integer],
        options: RunOptions,
        warnings: list[str],
        report: Reporter,
    ) -> dict[str, Any]:
        report.finish()
        facts = {**asdict(case.record), "kind": "picture", "shape": list(case.picture.pixels.shape)}
        output = {"voxels_sha256": hash_pixels(pixels), "dtype": str(pixels.dtype), "scale": self.recipe.scale}
        seconds = {**report.seconds, "reading": round(case.seconds, 3)}
        return self._told(facts, output, {"force_scope": options.force_scope}, seconds, warnings)


def picture_regions(planes: NDArray[np.float32], section: Partition) -> NDArray[np.int32]:
    """Region ids (H, W) of a picture (C, H, W), found in its brightness."""
    return partition(planes.mean(0)[:, :, None], partitioner(section.kind, section.options))[:, :, 0]


def enlarged_regions(regions: NDArray[np.integer], scale: int) -> NDArray[np.int64]:
    """Region ids at the size of the restored picture."""
    return np.repeat(np.repeat(regions, scale, 0), scale, 1).astype(np.int64)
