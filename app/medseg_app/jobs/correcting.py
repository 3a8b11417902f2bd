"""A label map that a person has corrected in the page: a result of its own that says what it was made from."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from medseg import io
from medseg.errors import InputRefused
from medseg.volume import Volume
from medseg_app.jobs.opening import image_in
from medseg_app.jobs.running import VIEWS
from medseg_app.jobs.views import write_view
from medseg_pipelines.case import hash_volume, read_case
from medseg_pipelines.events import Event
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.recipe import load_segmentation_recipe
from medseg_pipelines.results import LabelResult
from medseg_pipelines.statistics import measure

_PLACE = 0.05  # mm that the affine of a drawing may be off: the page stores it in 32 bits


def correct(task: dict[str, Any], progress: Callable[[Event], object]) -> None:
    """Take a drawing for the label map of an earlier result, measure it and write a result folder.

    Raises:
        InputRefused: The drawing is damaged, lies on another grid, holds unknown labels or changes nothing.
    """
    progress(Event(stage="correcting", done=0, total=1, seconds_left=None))
    request = task["request"]
    source = task["folder"].parent / request["of"] / "result"
    manifest = read_manifest(source / "manifest.json")
    recipe = load_segmentation_recipe(manifest["model"]["name"])
    before = io.read(_label_file(source), kind="labels")
    drawing = io.read(task["upload"] / request["drawing"], kind="labels", memory_limit=task["memory_limit"])
    after = before.with_voxels(_checked(drawing, before, {label.id for label in recipe.labels}))
    changed = int(np.count_nonzero(after.voxels != before.voxels))
    if changed == 0:
        raise InputRefused("drawing must change the label map, it changes nothing; paint first")
    asked = {key: request.get(key) for key in ("series", "time_point")}
    case = read_case(
        image_in(task["upload"], task["folder"]), correct_geometry=request.get("correct_geometry", False), **asked
    )
    result = LabelResult(
        volume=after,
        image=case.volume,
        labels=recipe.labels,
        statistics=measure(after.voxels, after.affine, recipe.labels),
        manifest=_manifest(manifest, after, changed),
        recipe=recipe,
    )
    result.save(task["folder"] / "result", also=lambda folder: _views(folder, after))


def _checked(drawing: Volume, before: Volume, known: set[int]) -> np.ndarray:
    """The voxels of a drawing that lies on the grid of the label map."""
    if not drawing.grid.equals(before.grid, tolerance=_PLACE):
        raise InputRefused("drawing must lie on the grid of the label map, got another; correct the whole volume")
    unknown = set(np.unique(drawing.voxels).tolist()) - known - {0}
    if unknown:
        raise InputRefused(f"drawing must use the labels of the model, got {sorted(unknown)[0]}; choose from the list")
    return drawing.voxels.astype(before.voxels.dtype)


def _manifest(before: dict[str, Any], after: Volume, changed: int) -> dict[str, Any]:
    """The manifest of the result that was corrected, with what a person did to it."""
    kept = {key: value for key, value in before.items() if key != "files"}
    earlier = kept.get("correction", {"of_sha256": before["output"]["voxels_sha256"], "changed_voxels": 0})
    return {
        **kept,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "output": {"voxels_sha256": hash_volume(after), "dtype": str(after.voxels.dtype)},
        "correction": {**earlier, "changed_voxels": earlier["changed_voxels"] + changed, "by": "hand"},
        "warnings": [*before["warnings"], f"corrected by hand: {changed} voxels changed"],
    }


def _label_file(folder: Path) -> Path:
    found = [path for path in folder.iterdir() if path.name.startswith("labels.") and path.suffix != ".json"]
    if not found or found[0].suffix == ".png":
        raise InputRefused("only label maps of volumes can be corrected here; this result has none")
    return found[0]


def _views(folder: Path, labels: Volume) -> None:
    (folder / VIEWS).mkdir()
    write_view(labels, folder / VIEWS / "main.nii")
