"""One case against its reference: label maps structure by structure, images as a whole."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras
from medseg.metrics import (
    DATA_RANGE_CONVENTION,
    EMPTY_CONVENTION,
    dice,
    edge_preservation,
    flat_bias,
    nrmse,
    psnr,
    ssim,
    surface_distances,
    volume_error,
)
from medseg.volume import Volume

DEFAULT_TOLERANCE = 1.0  # mm

_GRID_TOLERANCE = 1e-3  # mm; other programs round the affine to single precision

Box = tuple[slice, slice, slice]


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
    nsd: float  # fraction of both surfaces within the tolerance
    hd95_mm: float
    asd_mm: float
    ml: float
    reference_ml: float
    volume_error: float  # 0.1 is ten percent too large


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All scores of a label map, and their means over the structures that count; distances over the finite ones."""

    scores: tuple[Score, ...]
    mean_dice: float
    mean_nsd: float
    mean_hd95_mm: float
    mean_asd_mm: float
    counted: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation:
    """Agreement of two images; see `DATA_RANGE_CONVENTION`."""

    psnr_db: float  # inf for equal images
    ssim: float
    nrmse: float  # fraction of the data range
    edges: float  # correlation of gradient magnitudes
    flat_bias: float  # fraction of the data range
    data_range: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What is compared with what: per row of the table, ids of the prediction and ids of the reference."""

    ours: dict[str, set[int]]
    theirs: dict[str, set[int]]
    ignored: set[int]  # of the reference; left out of both


@dataclass(frozen=True, eq=False)
class _Pair:
    """Prediction and reference in one axis order on one grid, and where the reference has something to say."""

    ours: Volume
    theirs: Volume
    inside: NDArray[np.bool_] | None = None  # None: everywhere
    notes: tuple[str, ...] = ()


def evaluate(
    prediction: Volume,
    reference: Volume,
    *,
    names: Sequence[Name] = (),
    mapping: Mapping[str, Any] | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    resample: bool = False,
) -> Evaluation:
    """The agreement of two label maps.

    Args:
        prediction: The label map to judge.
        reference: The label map to judge it by.
        names: What the ids of the prediction mean.
        mapping: Reference id (or "first-last") to one of our names, ids, a list of them, or None for "left out of
            both"; ids that it does not name are background. Without it, equal ids mean the same.
        tolerance: mm that a surface may be off in the NSD.
        resample: Allow the reference to be resampled to the prediction's grid, by nearest neighbour; what lies outside
            its field of view is left out of both.

    Raises:
        InputRefused: The grids differ and `resample` is off, or they do not overlap.
        UsageError: The mapping is wrong.
    """
    pair = _on_one_grid(prediction, reference, resample=resample)
    plan = _read_mapping(mapping, names) if mapping is not None else _equal_ids(pair.ours, pair.theirs, names)
    ours = _rows(pair.ours.voxels, plan.ours)
    theirs = _rows(pair.theirs.voxels, plan.theirs, plan.ignored)
    left_out = theirs < 0 if pair.inside is None else (theirs < 0) | ~pair.inside
    ours[left_out] = theirs[left_out] = 0
    scores = [
        _score(name, ours[box] == row, theirs[box] == row, pair.ours, tolerance)
        for name, row, box in _boxes(list(plan.ours), ours, theirs)
    ]
    counted = [score for score in scores if not math.isnan(score.dice)]
    return Evaluation(
        scores=tuple(scores),
        mean_dice=_mean([score.dice for score in counted]),
        mean_nsd=_mean([score.nsd for score in counted]),
        mean_hd95_mm=_mean([score.hd95_mm for score in counted]),
        mean_asd_mm=_mean([score.asd_mm for score in counted]),
        counted=len(counted),
        notes=(EMPTY_CONVENTION, f"NSD counts surface within {tolerance:g} mm as right.", *pair.notes),
    )


def evaluate_images(
    prediction: Volume, reference: Volume, *, data_range: float | None = None, resample: bool = False
) -> ImageEvaluation:
    """The agreement of two images, for example of a restored one with the undisturbed one.

    Args:
        prediction: The image to judge.
        reference: The image to judge it by, in the same unit.
        data_range: Largest minus smallest possible value; by default that of the reference.
        resample: Allow the reference to be resampled to the prediction's grid, linearly; what lies outside its field
            of view is left out.

    Raises:
        InputRefused: The grids differ and `resample` is off, they do not overlap, or the reference is constant.
    """
    pair = _on_one_grid(prediction, reference, resample=resample)
    ours, theirs = pair.ours.voxels, pair.theirs.voxels
    some = (ours, theirs) if pair.inside is None else (ours[pair.inside], theirs[pair.inside])
    span = data_range if data_range is not None else float(some[1].max()) - float(some[1].min())
    if span == 0:
        raise InputRefused("the reference must have contrast, it is constant; give --data-range or check the file")
    return ImageEvaluation(
        psnr_db=psnr(*some, span),
        ssim=ssim(ours, theirs, span, inside=pair.inside),
        nrmse=nrmse(*some, span),
        edges=edge_preservation(ours, theirs, inside=pair.inside),
        flat_bias=flat_bias(ours, theirs, span, inside=pair.inside),
        data_range=span,
        notes=(DATA_RANGE_CONVENTION, *pair.notes),
    )


def _rows(voxels: NDArray[np.integer], groups: Mapping[str, Set[int]], ignored: Set[int] = frozenset()) -> NDArray:
    """Per voxel the number of its row from 1, 0 for background, -1 for what is ignored."""
    ids = np.unique(voxels)
    row_of = {i: row for row, members in enumerate(groups.values(), start=1) for i in members}
    table = np.array([-1 if i in ignored else row_of.get(i, 0) for i in ids.tolist()], np.int32)
    return table[np.searchsorted(ids, voxels)]


def _boxes(names: Sequence[str], ours: NDArray, theirs: NDArray) -> Iterator[tuple[str, int, Box]]:
    """Each row with the smallest box that holds it in both maps; one voxel that does not where it is in neither."""
    found = [ndimage.find_objects(rows, max_label=len(names)) for rows in (ours, theirs)]
    for number, name in enumerate(names):
        boxes = [objects[number] for objects in found if objects[number] is not None]
        x, y, z = (
            slice(min(box[axis].start for box in boxes), max(box[axis].stop for box in boxes)) if boxes else slice(0, 1)
            for axis in range(3)
        )
        yield name, number + 1, (x, y, z)


def _score(name: str, mask: NDArray[np.bool_], reference: NDArray[np.bool_], volume: Volume, tolerance: float) -> Score:
    ml = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
    surfaces = surface_distances(mask, reference, volume.spacing)
    return Score(
        name=name,
        dice=dice(mask, reference),
        nsd=surfaces.normalised_dice(tolerance),
        hd95_mm=surfaces.hausdorff95,
        asd_mm=surfaces.average,
        ml=round(int(np.count_nonzero(mask)) * ml, 3),
        reference_ml=round(int(np.count_nonzero(reference)) * ml, 3),
        volume_error=volume_error(mask, reference),
    )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _on_one_grid(prediction: Volume, reference: Volume, *, resample: bool) -> _Pair:
    """Both in one axis order; a mere difference in axis order is no difference of grids."""
    ours, theirs = to_ras(prediction)[0], to_ras(reference)[0]
    if ours.grid.equals(theirs.grid, tolerance=_GRID_TOLERANCE):
        return _Pair(ours, theirs)
    if not resample:
        raise InputRefused(
            f"prediction and reference must share one grid, got {_grid(ours)} and {_grid(theirs)}; "
            "--resample brings the reference to the grid of the prediction"
        )
    step = np.linalg.inv(theirs.affine) @ ours.affine
    # To the far edge of a voxel and no further: "grid-constant" ends half a voxel behind the last centre.
    seen = ndimage.affine_transform(
        np.ones(theirs.shape, np.uint8), step, output_shape=ours.shape, order=0, mode="grid-constant"
    )
    inside = np.asarray(seen).astype(bool)
    if not inside.any():
        raise InputRefused("prediction and reference must overlap, they share no point; check that they are one case")
    labels = prediction.kind == "labels"
    source = theirs.voxels if labels else theirs.voxels.astype(np.float64)
    moved = ndimage.affine_transform(source, step, output_shape=ours.shape, order=0 if labels else 1, mode="nearest")
    way = "by nearest neighbour" if labels else "linearly"
    notes = [f"The reference was resampled {way} to the grid of the prediction."]
    if not inside.all():
        notes.append(f"{1 - inside.mean():.1%} of the prediction lies outside the reference and was left out.")
    return _Pair(ours, Volume(np.asarray(moved), ours.affine, kind=prediction.kind), inside, tuple(notes))


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
    for whose, groups in (("our label", plan.ours), ("reference id", plan.theirs)):
        taken: dict[int, str] = {}
        for row, i in ((row, i) for row, ids in groups.items() for i in ids):
            if taken.setdefault(i, row) != row:
                raise UsageError(f"map: {whose} {i} must belong to one row, got '{taken[i]}' and '{row}'; merge them")
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
