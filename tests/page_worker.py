"""Stands for the worker where a browser looks at the page: real checks, corrections and result folders.

Labels are grey values above thresholds, the restored image is a smoothed one; both come in seconds, without a network.
Pictures, prompts and examples take the real way, with models as small as the tests want them.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from medseg_app.jobs import running, worker
from medseg_app.jobs.opening import image_in
from medseg_app.jobs.views import write_view
from medseg_pipelines.case import Case, hash_volume, read_case
from medseg_pipelines.events import Event
from medseg_pipelines.manifest import Machine, build_manifest
from medseg_pipelines.recipe import load_recipe, load_segmentation_recipe
from medseg_pipelines.restored import Quality, RestoredResult
from medseg_pipelines.results import LabelResult, Result
from medseg_pipelines.scope import judge, require_in_scope
from medseg_pipelines.statistics import measure
from medseg_pipelines.words import UNTRAINED

PARTS = 8


def run(task: dict[str, Any], progress: Callable[[Event], object]) -> None:
    """Make a result without a network, slowly enough to be watched."""
    request = task["request"]
    recipe: Any = load_recipe(request["model"])
    if recipe.task not in ("segmentation", "restoration"):
        running.run(task, progress)
        return
    case = read_case(image_in(task["upload"], task["folder"]), series=request.get("series"))
    found = require_in_scope(judge(case.volume, recipe.scope), recipe.name, force=request["confirmed"])
    slow = 60.0 if request.get("noise") == 60 else 1.0
    for part in range(PARTS):
        progress(Event(stage="segmenting", done=part, total=PARTS, seconds_left=float(PARTS - part)))
        time.sleep(slow * 0.2)
    result = (_labels if recipe.task == "segmentation" else _restored)(case, list(found))

    def views(folder: Any) -> None:
        (folder / "view").mkdir()
        write_view(result.volume, folder / "view" / "main.nii")
        if isinstance(result, RestoredResult):
            write_view(result.residual, folder / "view" / "residual.nii")
            write_view(result.regions, folder / "view" / "regions.nii")

    result.save(task["folder"] / "result", also=views)


def _labels(case: Case, warnings: list[str]) -> Result:
    recipe = load_segmentation_recipe("brain-structures")
    image = case.volume.voxels
    steps = np.linspace(np.percentile(image, 60), image.max(), len(recipe.labels) + 1)[:-1]
    volume = case.volume.with_voxels(np.digitize(image, steps).astype(np.uint8), kind="labels")
    return LabelResult(
        volume=volume,
        image=case.volume,
        labels=recipe.labels,
        statistics=measure(volume.voxels, volume.affine, recipe.labels),
        manifest=_manifest(recipe, case, volume, warnings),
        recipe=recipe,
    )


def _restored(case: Case, warnings: list[str]) -> Result:
    recipe: Any = load_recipe("mr-denoise")
    image = case.volume.voxels.astype(np.float32)
    smooth = case.volume.with_voxels(gaussian_filter(image, 1).astype(np.float32))
    regions = case.volume.with_voxels((np.indices(image.shape).sum(0) // 12).astype(np.int32), kind="labels")
    return RestoredResult(
        volume=smooth,
        image=case.volume,
        regions=regions,
        regions_given=False,
        quality=Quality.of(image, smooth.voxels),
        manifest=_manifest(recipe, case, smooth, [UNTRAINED, *warnings]) | {"model": _untrained(recipe)},
        recipe=recipe,
    )


def _untrained(recipe: Any) -> dict[str, Any]:
    kept = {"name": recipe.name, "task": recipe.task, "licence": recipe.licence}
    return {**kept, "recipe_sha256": "0" * 64, "weights_sha256": recipe.weights.sha256, "trained": False}


def _manifest(recipe: Any, case: Case, volume: Any, warnings: list[str]) -> dict[str, Any]:
    return build_manifest(
        recipe=recipe,
        recipe_sha256="0" * 64,
        image={"sha256": case.record.sha256},
        output={"voxels_sha256": hash_volume(volume), "dtype": str(volume.voxels.dtype)},
        machine=Machine(device="cpu", device_name="cpu", engine="none", threads=1),
        options={},
        seconds={},
        warnings=tuple(warnings),
    )


if __name__ == "__main__":
    real = worker._do
    worker._do = lambda kind: run if kind == "run" else real(kind)
    sys.exit(worker.main())
