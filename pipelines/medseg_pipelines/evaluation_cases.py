"""Which file is compared with which: one pair, two folders or a table; and what the files are, labels or images."""

import csv
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg import io
from medseg.errors import InputRefused, UsageError
from medseg.io.pictures import ENDINGS
from medseg.io.voxels import finished
from medseg.volume import Volume
from medseg_pipelines.evaluation import Name
from medseg_pipelines.results import LABELS_JSON

_ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".mhd", ".hdr")  # an .img is named by its .hdr
_CASES = (*_ENDINGS, *ENDINGS)
_COLUMNS = ("prediction", "reference")
_SAME_AS_NEIGHBOUR = 0.5  # of the voxels beside foreground; label maps lie above 0.8, eight-bit images below 0.3

WantedKind = Literal["auto", "labels", "image"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A case: its prediction and its reference, each a file or a result folder."""

    case: str
    prediction: Path
    reference: Path


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """All cases, and what has no partner, each as "name (where)"."""

    pairs: tuple[Pair, ...]
    unpaired: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A case in memory.

    Attributes:
        prediction: What to judge.
        reference: What to judge it by, of the same kind.
        names: What the ids of the prediction mean, as far as a sidecar says so.
    """

    prediction: Volume
    reference: Volume
    names: tuple[Name, ...]


def find_pairs(prediction: Path, reference: Path | None) -> Pairing:
    """The cases of a request.

    Args:
        prediction: A file, a result folder, a folder of those, or without a reference a table: CSV with the columns
            prediction and reference, paths from the table's folder, and if wanted case.
        reference: The same kind of thing; None for a table.

    Raises:
        UsageError: A path is missing, the two do not go together, or a case name stands twice.
    """
    for path in (prediction, *([reference] if reference else [])):
        if not path.exists():
            raise UsageError(f"'{path.name}' is not there; check the path")
    if reference is None:
        if prediction.suffix.lower() != ".csv":
            raise UsageError(f"'{prediction.name}' needs a reference beside it; only a table (.csv) stands alone")
        return Pairing(pairs=_from_table(prediction))
    many = [_is_collection(path) for path in (prediction, reference)]
    if many[0] != many[1]:
        raise UsageError("PRED and REF must be two files or two folders of cases, got one of each; name both alike")
    if not many[0]:
        return Pairing(pairs=(Pair(case=case_name(prediction), prediction=prediction, reference=reference),))
    ours, theirs = _members(prediction), _members(reference)
    pairs = (Pair(case=name, prediction=ours[name], reference=theirs[name]) for name in ours if name in theirs)
    lonely = [f"{name} (no reference)" for name in ours if name not in theirs]
    lonely += [f"{name} (no prediction)" for name in theirs if name not in ours]
    return Pairing(pairs=tuple(pairs), unpaired=tuple(lonely))


def case_name(path: Path) -> str:
    """The name of a file without its ending; of a result folder, what it was made from."""
    if path.is_dir():
        model = (_sidecar(path) or {}).get("model", "")
        return path.resolve().name.removesuffix(f"_{model}")
    name = path.name
    return next((name[: -len(end)] for end in _CASES if name.lower().endswith(end)), path.stem)


def volume_file(path: Path) -> Path:
    """The file itself, or the label map in a result folder."""
    return _labelled(path)[0]


def load_pair(pair: Pair, *, kind: WantedKind = "auto", time_point: int | None = None) -> Loaded:
    """Both volumes of a case, of one kind.

    Args:
        pair: The case.
        kind: What they are; "auto" looks at the voxels.
        time_point: Index from 0, for files that have several.

    Raises:
        InputRefused: A file cannot be used, or one holds labels and the other an image.
        UsageError: There is no such time point.
    """
    path, names = _labelled(pair.prediction)
    ours = _read(path, "labels" if names and kind == "auto" else kind, time_point)
    theirs = _read(_labelled(pair.reference)[0], kind, time_point)
    if ours.kind != theirs.kind:
        what = [f"{'labels' if volume.kind == 'labels' else 'an image'}" for volume in (ours, theirs)]
        raise InputRefused(f"both must be labels or images, got {what[0]} and {what[1]}; --kind says what they are")
    return Loaded(prediction=ours, reference=theirs, names=tuple(names))


def looks_like_labels(voxels: np.ndarray) -> bool:
    """Whether the voxels are whole, not negative, and mostly what their neighbour is.

    Args:
        voxels: (X, Y, Z), any real type.
    """
    if voxels.min() < 0 or (voxels.dtype.kind == "f" and not np.array_equal(voxels, np.rint(voxels))):
        return False
    first, second = voxels[:-1], voxels[1:]
    foreground = (first > 0) & (second > 0)
    same = np.count_nonzero((first == second) & foreground)
    return bool(same >= _SAME_AS_NEIGHBOUR * np.count_nonzero(foreground))


def _read(path: Path, kind: WantedKind, time_point: int | None) -> Volume:
    if time_point is not None and len(io.inspect(path).shape or ()) < 4:
        time_point = None  # the other file of the case may be the one with a time axis
    if kind != "auto":
        return io.read(path, kind=kind, time_point=time_point)
    try:
        volume = io.read(path, time_point=time_point)
    except InputRefused:  # a label map may be one value everywhere; whatever else is wrong is said again
        return io.read(path, kind="labels", time_point=time_point)
    if looks_like_labels(volume.voxels):
        return replace(volume, voxels=finished(volume.voxels, "labels")[0], kind="labels")
    return volume


def _is_collection(path: Path) -> bool:
    return path.is_dir() and _sidecar(path) is None


def _members(folder: Path) -> dict[str, Path]:
    """The cases in a folder by name, in the order of their names."""
    wanted = (
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and (_sidecar(path) is not None or (path.is_file() and path.name.lower().endswith(_CASES)))
    )
    return _by_name(((case_name(path), path) for path in wanted), f"folder '{folder.name}'")


def _by_name(items: Iterable[tuple[str, Path]], where: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in items:
        if name in found:
            raise UsageError(f"{where} must hold each case once, '{name}' stands there twice; rename or remove one")
        found[name] = path
    if not found:
        raise UsageError(f"{where} must hold cases, found none; see `medseg evaluate --help`")
    return found


def _from_table(table: Path) -> tuple[Pair, ...]:
    text = table.read_text(encoding="utf-8-sig")
    header = text.splitlines()[0] if text else ""
    rows = list(csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count)))
    if not rows or not set(_COLUMNS) <= rows[0].keys():
        raise UsageError(
            f"table '{table.name}' must have rows and the columns prediction and reference, got '{header}'; correct it"
        )
    pairs = []
    for number, row in enumerate(rows, start=1):
        ours, theirs = (table.parent / (row[column] or "").strip() for column in _COLUMNS)
        for path in (ours, theirs):
            if path == table.parent or not path.exists() or _is_collection(path):
                raise UsageError(
                    f"table '{table.name}', row {number}: '{path.name}' must be a file or a result folder; check it"
                )
        pairs.append(Pair(case=(row.get("case") or "").strip() or case_name(ours), prediction=ours, reference=theirs))
    _by_name(((pair.case, pair.prediction) for pair in pairs), f"table '{table.name}'")
    return tuple(pairs)


def _labelled(path: Path) -> tuple[Path, list[Name]]:
    """The volume, and the names of its labels where it lies in a result folder."""
    sidecar = _sidecar(path if path.is_dir() else path.parent)
    if sidecar is None:
        return path, []
    file = path / sidecar["file"] if path.is_dir() else path
    return file, [_name(entry) for entry in sidecar["labels"]] if file.name == sidecar["file"] else []


def _sidecar(folder: Path) -> dict[str, Any] | None:
    """What `medseg infer` says of the label map in its result folder; None for any other folder."""
    try:
        content = json.loads((folder / LABELS_JSON).read_text(encoding="utf-8"))
        return content if isinstance(content["file"], str) and isinstance(content["labels"], list) else None
    except (OSError, ValueError, KeyError, TypeError):  # others write files of this name too
        return None


def _name(entry: dict[str, Any]) -> Name:
    side = entry.get("side")
    structure = entry["name"].removeprefix(f"{side} ") if side else entry["name"]
    return Name(id=entry["id"], name=entry["name"], structure=structure)
