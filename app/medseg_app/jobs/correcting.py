"""A label map that a person has corrected in the page: a result of its own that says what it was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from medseg import io
from medseg.errors import InputRefused
from medseg.volume import Volume
from medseg_app.jobs.opening import image_in
from medseg_app.jobs.views import extras
from medseg_pipelines.case import hash_volume, read_case
from medseg_pipelines.events import Event
from medseg_pipelines.formats import parse_formats
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.recipe import Label, Recipe, load_recipe
from medseg_pipelines.results import LABELS_JSON, LabelResult
from medseg_pipelines.statistics import measure

_PLACE = 0.05  # mm that the affine of a drawing may be off: the page stores it in 32 bits


@dataclass(frozen=True, kw_only=True)
class _Change:
    """What a person made of a label map.

    Attributes:
        after: The new label map.
        labels: The structures that are left.
        told: For the manifest, under "correction".
        warning: In one sentence.
    """

    after: Volume
    labels: tuple[Label, ...]
    told: dict[str, Any]
    warning: str


def correct(task: dict[str, Any], progress: Callable[[Event], object]) -> None:
    """Take a drawing for the label map of an earlier result, or leave structures out; measure and write a result.

    Raises:
        InputRefused: The drawing is damaged, lies on another grid, holds unknown labels or changes nothing; or there
            is no such structure, or none would be left.
    """
    progress(Event(stage="correcting", done=0, total=1, seconds_left=None))
    request = task["request"]
    source = task["folder"].parent / request["of"] / "result"
    manifest = read_manifest(source / "manifest.json")
    labels, before = labels_of(source), io.read(_volume_file(source), kind="labels")
    if "rejected" in request:
        change = _without(before, labels, request["rejected"], request["comment"])
    else:
        drawing = io.read(task["upload"] / request["drawing"], kind="labels", memory_limit=task["memory_limit"])
        change = _drawn(before, labels, drawing)
    asked = {key: request.get(key) for key in ("series", "time_point")}
    case = read_case(
        image_in(task["upload"], task["folder"]), correct_geometry=request.get("correct_geometry", False), **asked
    )
    after = change.after
    result = LabelResult(
        volume=after,
        image=case.volume,
        labels=change.labels,
        statistics=measure(after.voxels, after.affine, change.labels),
        manifest=_manifest(manifest, change, int(np.count_nonzero(after.voxels != before.voxels))),
        recipe=_recipe(manifest),
    )
    _save(result, task["folder"] / "result", request.get("formats") or ())


def _save(result: LabelResult, folder: Path, formats: Sequence[str]) -> None:
    """Write a result, of DICOM images with a segmentation object and whatever else the model was asked for.

    What somebody has painted is not lost for headers that allow no object: it is then kept without one, and says so.
    """
    source = result.image.source
    wanted = parse_formats(",".join(("seg", *formats))) if source is not None and source.series is not None else ()
    try:
        result.save(folder, also=extras(result, wanted))
    except InputRefused:
        if not wanted:
            raise
        warnings = [*result.warnings, "no DICOM objects: the headers of the images do not allow them"]
        bare = replace(result, manifest={**result.manifest, "warnings": warnings})
        bare.save(folder, also=extras(bare, ()))


def label_file(folder: Path) -> Path:
    """The label map of a result folder.

    Raises:
        InputRefused: It has none.
    """
    found = [path for path in folder.iterdir() if path.name.startswith("labels.") and path.suffix != ".json"]
    if not found:
        raise InputRefused("result must have a label map, it has none; choose one of a model that segments")
    return found[0]


def labels_of(folder: Path) -> tuple[Label, ...]:
    """What the ids in the label map of a result folder mean."""
    content = json.loads((folder / LABELS_JSON).read_text(encoding="utf-8"))
    return tuple(Label.model_validate(label) for label in content["labels"])


def _drawn(before: Volume, labels: tuple[Label, ...], drawing: Volume) -> _Change:
    """A drawing in place of the label map."""
    after = before.with_voxels(_checked(drawing, before, {label.id for label in labels}))
    changed = int(np.count_nonzero(after.voxels != before.voxels))
    if changed == 0:
        raise InputRefused("drawing must change the label map, it changes nothing; paint first")
    return _Change(after=after, labels=labels, told={}, warning=f"corrected by hand: {changed} voxels changed")


def _without(before: Volume, labels: tuple[Label, ...], rejected: Sequence[int], comment: str) -> _Change:
    """The label map without the structures that a person rejected."""
    gone = [label for label in labels if label.id in rejected]
    kept = tuple(label for label in labels if label.id not in rejected)
    if len(gone) != len(set(rejected)) or not gone:
        raise InputRefused("rejected structures must be some of the label map, others were named; choose from the list")
    if not kept:
        raise InputRefused("at least one structure must be accepted, all were rejected; delete the result instead")
    after = before.with_voxels(np.where(np.isin(before.voxels, list(rejected)), 0, before.voxels))
    names = ", ".join(label.name for label in gone)
    told = {"rejected": [{"id": label.id, "name": label.name} for label in gone], "accepted": [k.id for k in kept]}
    said = f" ({comment})" if comment else ""
    told |= {"comment": comment} if comment else {}
    return _Change(after=after, labels=kept, told=told, warning=f"rejected by hand and left out: {names}{said}")


def _checked(drawing: Volume, before: Volume, known: set[int]) -> np.ndarray:
    """The voxels of a drawing that lies on the grid of the label map."""
    if not drawing.grid.equals(before.grid, tolerance=_PLACE):
        raise InputRefused("drawing must lie on the grid of the label map, got another; correct the whole volume")
    unknown = set(np.unique(drawing.voxels).tolist()) - known - {0}
    if unknown:
        raise InputRefused(f"drawing must use the labels of the model, got {sorted(unknown)[0]}; choose from the list")
    return drawing.voxels.astype(before.voxels.dtype)


def _manifest(before: dict[str, Any], change: _Change, changed: int) -> dict[str, Any]:
    """The manifest of the result that was corrected, with what persons did to it, earlier and now."""
    kept = {key: value for key, value in before.items() if key != "files"}
    earlier = kept.get("correction", {"of_sha256": before["output"]["voxels_sha256"], "changed_voxels": 0})
    told = dict(change.told)
    if "rejected" in told:
        told["rejected"] = [*earlier.get("rejected", []), *told["rejected"]]
    return {
        **kept,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "output": {"voxels_sha256": hash_volume(change.after), "dtype": str(change.after.voxels.dtype)},
        "correction": {**earlier, **told, "changed_voxels": earlier["changed_voxels"] + changed, "by": "hand"},
        "warnings": [*before["warnings"], change.warning],
    }


def _recipe(manifest: dict[str, Any]) -> Recipe:
    """The model of a result, with weights as trained as they were then: users may bring others for the same recipe."""
    recipe = load_recipe(manifest["model"]["name"])
    known = {"trained": manifest["model"]["trained"], "sha256": manifest["model"]["weights_sha256"]}
    return recipe.model_copy(update={"weights": recipe.weights.model_copy(update=known)})


def _volume_file(folder: Path) -> Path:
    found = label_file(folder)
    if found.suffix == ".png":
        raise InputRefused("only label maps of volumes can be corrected here; this result has one of a picture")
    return found
