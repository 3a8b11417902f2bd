"""A label map against a reference: Dice, HD95 and volume error per structure."""

import csv
import difflib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from scipy import ndimage

from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras
from medseg.metrics import EMPTY_CONVENTION, dice, hausdorff95, volume_error
from medseg.volume import Volume

_GRID_TOLERANCE = 1e-3  # mm; other programs round the affine to single precision


@dataclass(frozen=True, kw_only=True)
class Name:
    """What is known of one label id: its name, and the structure that left and right of it share."""

    id: int
    name: str
    structure: str


@dataclass(frozen=True, kw_only=True)
class Score:
    """Agreement on one structure; see `EMPTY_CONVENTION` for nan and inf."""

    name: str
    dice: float
    hd95_mm: float
    ml: float
    reference_ml: float
    volume_error: float  # 0.1 is ten percent too large


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores, and their means over the structures that count."""

    scores: tuple[Score, ...]
    mean_dice: float
    mean_hd95_mm: float
    counted: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What is compared with what: per row of the table, ids of the prediction and ids of the reference."""

    ours: dict[str, set[int]]
    theirs: dict[str, set[int]]
    ignored: set[int]  # of the reference; left out of both


def evaluate(
    prediction: Volume,
    reference: Volume,
    *,
    names: Sequence[Name] = (),
    mapping: Mapping[str, Any] | None = None,
    resample: bool = False,
) -> Evaluation:
    """The agreement of two label maps.

    Args:
        prediction: The label map to judge.
        reference: The label map to judge it by.
        names: What the ids of the prediction mean.
        mapping: Reference id (or "first-last") to one of our names, ids, a list of them, or None for "left out of
            both"; ids that it does not name are background. Without it, equal ids mean the same.
        resample: Allow the reference to be resampled to the prediction's grid, by nearest neighbour.

    Raises:
        InputRefused: The grids differ and `resample` is off.
        UsageError: The mapping is wrong.
    """
    ours, theirs, notes = _on_one_grid(prediction, reference, resample=resample)
    plan = _read_mapping(mapping, names) if mapping is not None else _equal_ids(ours, theirs, names)
    keep = ~np.isin(theirs.voxels, list(plan.ignored))
    scores = []
    for name in plan.ours:
        mask = keep & np.isin(ours.voxels, list(plan.ours[name]))
        scores.append(_score(name, mask, keep & np.isin(theirs.voxels, list(plan.theirs[name])), ours))
    counted = [score for score in scores if not math.isnan(score.dice)]
    return Evaluation(
        scores=tuple(scores),
        mean_dice=_mean([score.dice for score in counted]),
        mean_hd95_mm=_mean([score.hd95_mm for score in counted if math.isfinite(score.hd95_mm)]),
        counted=len(counted),
        notes=(EMPTY_CONVENTION, *notes),
    )


def _score(name: str, mask: np.ndarray, reference: np.ndarray, volume: Volume) -> Score:
    ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
    return Score(
        name=name,
        dice=dice(mask, reference),
        hd95_mm=hausdorff95(mask, reference, volume.spacing),
        ml=round(np.count_nonzero(mask) * ml, 3),
        reference_ml=round(np.count_nonzero(reference) * ml, 3),
        volume_error=volume_error(mask, reference),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _on_one_grid(prediction: Volume, reference: Volume, *, resample: bool) -> tuple[Volume, Volume, list[str]]:
    """Both in one axis order; a mere difference in axis order is no difference of grids."""
    ours, theirs = to_ras(prediction)[0], to_ras(reference)[0]
    if ours.grid.equals(theirs.grid, tolerance=_GRID_TOLERANCE):
        return ours, theirs, []
    if not resample:
        raise InputRefused(
            f"prediction and reference must share one grid, got {_grid(ours)} and {_grid(theirs)}; "
            "--resample brings the reference to the grid of the prediction"
        )
    step = np.linalg.inv(theirs.affine) @ ours.affine
    moved = ndimage.affine_transform(theirs.voxels, step, output_shape=ours.shape, order=0)
    note = "The reference was resampled to the grid of the prediction by nearest neighbour."
    return ours, Volume(moved, ours.affine, kind="labels"), [note]


def _grid(volume: Volume) -> str:
    size, step = (" x ".join(f"{value:.4g}" for value in values) for values in (volume.shape, volume.spacing))
    corner = ", ".join(f"{value:.2f}" for value in volume.affine[:3, 3])
    return f"{size} voxels of {step} mm from ({corner})"


def _equal_ids(ours: Volume, theirs: Volume, names: Sequence[Name]) -> _Plan:
    """Without a mapping every id stands for itself, whether it is named or only found."""
    known = {name.id: name.name for name in names}
    found = {int(i) for volume in (ours, theirs) for i in np.unique(volume.voxels)} | known.keys()
    groups = {known.get(i, f"label {i}"): {i} for i in sorted(found - {0})}
    return _Plan(groups, groups, set())


def _read_mapping(mapping: Mapping[str, Any], names: Sequence[Name]) -> _Plan:
    plan = _Plan({}, {}, set())
    for key, value in mapping.items():
        reference_ids = _id_range(key)
        if value is None:
            plan.ignored.update(reference_ids)
            continue
        targets = value if isinstance(value, list) else [value]
        row = " + ".join(str(target) for target in targets)
        plan.ours.setdefault(row, set()).update(*(_ids_of(target, names) for target in targets))
        plan.theirs.setdefault(row, set()).update(reference_ids)
    taken: dict[int, str] = {}
    for row, ids in plan.ours.items():
        for i in ids:
            if taken.setdefault(i, row) != row:
                raise UsageError(f"map: our label {i} must belong to one row, got '{taken[i]}' and '{row}'; merge them")
    return plan


def _id_range(key: str) -> range:
    """ "17" or "11100-11175" as ids."""
    first, _, last = key.partition("-")
    if not first.isdecimal() or (last and not last.isdecimal()):
        raise UsageError(f'map: keys must be reference ids like "17" or "11100-11175", got "{key}"')
    return range(int(first), int(last or first) + 1)


def _ids_of(target: Any, names: Sequence[Name]) -> set[int]:
    """Our ids behind a name, the name of a structure (then both sides), or an id."""
    if isinstance(target, int):
        return {target} - {0}
    ids = {name.id for name in names if target in (name.name, name.structure)}
    if ids or target == "background":
        return ids
    known = sorted({name.name for name in names} | {name.structure for name in names})
    close = difflib.get_close_matches(str(target), known, n=1)
    hint = f", did you mean '{close[0]}'?" if close else ""
    raise UsageError(f"map: '{target}' is no label of the prediction{hint} (names stand in its labels.json)")


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON data; what is not defined is null, an infinite distance the text "inf"."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None if math.isnan(value) else "inf"
        return round(value, 6) if isinstance(value, float) else value

    return {
        "structures": [{key: plain(value) for key, value in asdict(score).items()} for score in evaluation.scores],
        "mean_dice": plain(evaluation.mean_dice),
        "mean_hd95_mm": plain(evaluation.mean_hd95_mm),
        "counted": evaluation.counted,
        "notes": list(evaluation.notes),
    }


def as_csv(evaluation: Evaluation) -> str:
    """The scores, one row per structure, with a header row; an empty field is not defined."""
    out = io.StringIO()
    rows = as_json(evaluation)["structures"]
    writer = csv.DictWriter(out, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
