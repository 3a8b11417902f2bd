"""Whether the slices of a series form one regular grid, and which; findings name the slice and the millimetres."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.io.checks import repaired_affine
from medseg.io.dicom.correction import Correction
from medseg.io.dicom.instances import PHASES, Plane
from medseg.io.header import NO_ORIENTATION, Problem

EXACT = 1e-3  # mm; a grid that is this close to the stated positions is the stated grid
SAME_PLACE = 1e-2  # mm; two slices nearer than this lie at one place
EVEN = 1e-2  # share of the slice distance by which rounded positions may leave the even grid
STRAIGHT = 1e-3  # sideways over upwards: below it positions and directions are merely rounded, above it slices slide
ROUNDED = 1e-2  # how far stated directions may be from length 1 and from a right angle
LEVEL = 1e-3  # difference of direction cosines within one series
CORRECT = "--correct-geometry"

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in the order of the third axis of their grid.

    Attributes:
        phases: Per time point, the slices from the first to the last.
        affine: (4, 4) voxel index (column, row, slice) to millimetres in RAS; None where there is no usable grid.
        correction: From slices that lie unevenly or slide sideways to the grid of `affine`, if that was asked for.
        problems: What was found.
    """

    phases: tuple[tuple[Plane, ...], ...]
    affine: np.ndarray | None
    correction: Correction | None
    problems: tuple[Problem, ...]


class _Refused(Exception):
    """What makes the series unusable; caught in this file."""


def build_stack(planes: Sequence[Plane], *, correct: bool, same_pixels: Callable[[Plane, Plane], bool]) -> Stack:
    """The grid of all slices of one series.

    Args:
        planes: Of one series, in any order.
        correct: Resample uneven or sliding slices to a regular grid, and guess positions that are not stated.
        same_pixels: Whether two slices hold equal values.
    """
    problems: list[Problem] = []
    try:
        chosen = _images(planes, problems)
        _require_equal(chosen)
        if any(plane.position is None or plane.directions is None for plane in chosen):
            return _guessed(chosen, problems, correct=correct)
        axes = _axes(chosen[0], problems)
        phases = _phases(_places(chosen, axes[2]), problems, same_pixels)
        affine, correction = _grid(phases[0], axes, problems, correct=correct)
        return Stack(phases, affine, correction, tuple(problems))
    except _Refused as refusal:
        return Stack((tuple(planes),), None, None, (Problem("error", str(refusal)), *problems))


def _images(planes: Sequence[Plane], problems: list[Problem]) -> list[Plane]:
    """The slices without localisers that share the series with them."""
    kept = [plane for plane in planes if not plane.instance.localiser]
    if kept and len(kept) < len(planes):
        problems.append(Problem("note", f"{len(planes) - len(kept)} localiser images of the series were left out"))
    kept = kept or list(planes)
    flaw = next(((plane, plane.instance.flaw) for plane in kept if plane.instance.flaw), None)
    if flaw is not None:
        plane, text = flaw
        raise _Refused(f"{plane.name}: {text}" if len(kept) > 1 else text)
    return sorted(kept, key=lambda plane: (plane.instance.number or 0, plane.frame))


def _require_equal(planes: Sequence[Plane]) -> None:
    """All slices have one size, pixel spacing, frame of reference and direction."""
    _same(planes, "size", lambda p: (p.instance.columns, p.instance.rows), lambda p: _by(p, "columns x rows"))
    _same(planes, "pixel spacing", lambda p: p.spacing and tuple(round(s, 5) for s in p.spacing), _spacing_words)
    _same(planes, "frame of reference", lambda p: p.instance.frame_of_reference, lambda p: "another one")
    _same(planes, "stated position", lambda p: p.position is None or p.directions is None, _position_words)
    _require_level([plane for plane in planes if plane.directions is not None])
    if planes[0].spacing is not None and min(planes[0].spacing) <= 0:
        raise _Refused(f"pixel spacing must be positive, got {_spacing_words(planes[0])}; correct the header")
    if planes[0].spacing is None and len(planes) > 1:
        raise _Refused("pixel spacing must be stated, got none; export the series with its geometry")


def _same(planes: Sequence[Plane], what: str, key: Callable[[Plane], Hashable], words: Callable[[Plane], str]) -> None:
    counts = Counter(key(plane) for plane in planes)
    if len(counts) == 1:
        return
    usual = counts.most_common(1)[0][0]
    odd = next(plane for plane in planes if key(plane) != usual)
    like = next(plane for plane in planes if key(plane) == usual)
    raise _Refused(
        f"all slices must share one {what}, got {words(odd)} at {odd.name} and {words(like)} at {like.name} "
        f"({len(planes) - counts[usual]} of {len(planes)} differ); take them out"
    )


def _by(plane: Plane, words: str) -> str:
    return f"{plane.instance.columns} x {plane.instance.rows} ({words})"


def _spacing_words(plane: Plane) -> str:
    return "none" if plane.spacing is None else f"{plane.spacing[0]:g} x {plane.spacing[1]:g} mm"


def _position_words(plane: Plane) -> str:
    return "none" if plane.position is None or plane.directions is None else "one"


def _require_level(planes: Sequence[Plane]) -> None:
    """All slices are parallel and not turned against each other."""
    if not planes:
        return
    stated = np.array([plane.directions for plane in planes])
    usual = np.median(stated, axis=0)
    apart = np.abs(stated - usual).max(axis=(1, 2))
    off = np.flatnonzero(apart > LEVEL)
    if not off.size:
        return
    normals = [
        np.cross(*directions) / np.linalg.norm(directions, axis=1).prod() for directions in (stated[off[0]], usual)
    ]
    tipped = float(np.degrees(np.arccos(np.clip(normals[0] @ normals[1], -1, 1))))
    how = f"tipped by {tipped:.3g} degrees" if tipped > 0.01 else "turned within its plane"
    raise _Refused(
        f"all slices must have one direction, got {planes[off[0]].name} {how} "
        f"({off.size} of {len(planes)} differ); take them out of the series"
    )


def _axes(plane: Plane, problems: list[Problem]) -> np.ndarray:
    """(3, 3) rows: along a row, down a column, and the normal; unit length, at right angles, LPS."""
    stated = plane.directions
    assert stated is not None  # told apart by the caller
    lengths = np.linalg.norm(stated, axis=1)
    cosine = float(stated[0] @ stated[1])
    if np.abs(lengths - 1).max() > ROUNDED or abs(cosine) > ROUNDED:
        raise _Refused(
            f"the directions of rows and columns must be two unit vectors at a right angle, got lengths "
            f"{lengths[0]:.4g} and {lengths[1]:.4g} with a cosine of {cosine:.3g} at {plane.name}; correct the header"
        )
    left, _, right = np.linalg.svd(stated, full_matrices=False)
    rows, columns = left @ right  # the two orthonormal vectors that are closest to the stated ones
    off = float(np.abs(np.array([rows, columns]) - stated).max())
    row_step, column_step = plane.spacing or (1.0, 1.0)
    extent = float(np.hypot(plane.instance.rows * row_step, plane.instance.columns * column_step))
    if off * extent > EXACT:
        text = f"directions were rounded: made orthonormal, which moves voxels by up to {off * extent:.2g} mm"
        problems.append(Problem("note", text))
    return np.array([rows, columns, np.cross(rows, columns)])


def _places(planes: Sequence[Plane], normal: np.ndarray) -> list[list[Plane]]:
    """The slices from the lowest along the normal to the highest; those at one place together."""
    heights = np.array([plane.position for plane in planes]) @ normal
    places: list[list[Plane]] = []
    last = -np.inf
    for index in np.argsort(heights, kind="stable"):
        if heights[index] - last > SAME_PLACE:
            places.append([])
            last = heights[index]
        places[-1].append(planes[index])
    return places


def _phases(
    places: list[list[Plane]], problems: list[Problem], same_pixels: Callable[[Plane, Plane], bool]
) -> tuple[tuple[Plane, ...], ...]:
    """The slices per time point, copies taken out."""
    copies: list[Plane] = []
    places = [_without_copies(place, same_pixels, copies) for place in places]
    if copies:
        names = ", ".join(plane.name for plane in copies[:4]) + (", ..." if len(copies) > 4 else "")
        problems.append(Problem("note", f"{len(copies)} copies with equal values at one place were left out ({names})"))
    counts = {len(place) for place in places}
    if counts == {1}:
        return (tuple(place[0] for place in places),)
    if len(counts) == 1 and len(places) > 1:
        return _split(places, problems)
    twins = next(place for place in places if len(place) > 1)
    raise _Refused(
        f"each place must hold one slice, got {len(twins)} different ones at the place of {twins[0].name} "
        f"({', '.join(plane.name for plane in twins[1:4])}; {sum(len(p) > 1 for p in places)} of {len(places)} places "
        "are taken twice or more); take out what does not belong to the series"
    )


def _without_copies(
    place: list[Plane], same_pixels: Callable[[Plane, Plane], bool], copies: list[Plane]
) -> list[Plane]:
    kept: list[Plane] = []
    for plane in place:
        double = any(_is_copy(plane, other) and same_pixels(plane, other) for other in kept)
        (copies if double else kept).append(plane)
    return kept


def _is_copy(plane: Plane, other: Plane) -> bool:
    if plane.position is None or other.position is None:
        return False
    one_place = float(np.linalg.norm(plane.position - other.position)) <= SAME_PLACE
    return one_place and plane.phases == other.phases


def _split(places: list[list[Plane]], problems: list[Problem]) -> tuple[tuple[Plane, ...], ...]:
    """Time points by the first attribute that has one value per time point at every place."""
    for key, words in PHASES.items():
        values = [[plane.phases.get(key, "") for plane in place] for place in places]
        first = set(values[0])
        if len(first) == len(values[0]) and all(set(row) == first and len(row) == len(first) for row in values):
            order = sorted(first, key=_in_order)
            problems.append(Problem("note", f"{len(order)} time points, told apart by {words}"))
            by_value = [{plane.phases.get(key, ""): plane for plane in place} for place in places]
            return tuple(tuple(named[value] for named in by_value) for value in order)
    raise _Refused(
        f"each place must hold one slice, got {len(places[0])} at each of {len(places)} places, and nothing in the "
        "headers says which belong together; export them as separate series"
    )


def _in_order(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _grid(
    planes: Sequence[Plane], axes: np.ndarray, problems: list[Problem], *, correct: bool
) -> tuple[np.ndarray, Correction | None]:
    """The affine in RAS, and the correction where one was needed and asked for."""
    row_step, column_step = planes[0].spacing or _unknown_spacing(problems)
    positions = np.array([plane.position for plane in planes])
    depth = _depth(planes[0], problems) if len(planes) == 1 else 0.0
    spacing = (column_step, row_step, depth)
    if len(planes) == 1:
        return _affine(axes, spacing, positions[0]), None
    steps = np.diff(positions @ axes[2])
    found = [text for text in (_sliding(planes, positions, axes), _uneven(planes, steps)) if text]
    if found and not correct:
        raise _Refused(f"{found[0]}" + "; ".join(["", *found[1:]]) + f"; add {CORRECT} to resample to an even grid")
    if found:
        size = (planes[0].instance.columns, planes[0].instance.rows)
        correction = Correction.plan(positions @ axes.T, size, spacing=(column_step, row_step), usual=usual_step(steps))
        if correction is None:
            raise _Refused(f"{found[0]}; too wide to be filled: give the parts on their own")
        problems.extend(Problem("warning", f"corrected: {text}") for text in found)
        problems.append(Problem("note", correction.words))
        return _affine(axes, correction.spacing, correction.origin @ axes), correction
    return _even_affine(planes, axes, positions, problems), None


def _even_affine(
    planes: Sequence[Plane], axes: np.ndarray, positions: np.ndarray, problems: list[Problem]
) -> np.ndarray:
    """The affine through the first and the last slice, made right-angled where rounding bent it."""
    row_step, column_step = planes[0].spacing or (1.0, 1.0)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    away = np.linalg.norm(positions - (positions[0] + np.arange(len(positions))[:, None] * step), axis=1)
    if away.max() > EXACT:
        text = f"positions are rounded: {planes[int(away.argmax())].name} is {away.max():.2g} mm off the even grid"
        problems.append(Problem("note", text))
    affine = np.eye(4)
    affine[:3] = np.column_stack([axes[0] * column_step, axes[1] * row_step, step, positions[0]])
    shape = (planes[0].instance.columns, planes[0].instance.rows, len(planes))
    repaired, _ = repaired_affine(affine, shape)
    assert repaired is not None  # steps are longer than SAME_PLACE and nearly at right angles
    corners = np.array(
        [[x, y, z, 1.0] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)]
    )
    moved = float(np.linalg.norm(corners @ (repaired - affine).T, axis=1).max())
    if moved > EXACT:
        text = f"positions and directions disagree by rounding: voxels were moved by up to {moved:.2g} mm"
        problems.append(Problem("note", text))
    return _LPS_TO_RAS @ repaired


def _sliding(planes: Sequence[Plane], positions: np.ndarray, axes: np.ndarray) -> str | None:
    """What is wrong where slices do not lie straight above each other."""
    local = (positions - positions[0]) @ axes.T
    sideways = np.linalg.norm(local[:, :2], axis=1)
    if sideways.max() <= max(EXACT, STRAIGHT * local[-1, 2]):
        return None
    per_mm = local[-1, :2] / local[-1, 2]
    uneven = np.linalg.norm(local[:, :2] - local[:, 2:] * per_mm, axis=1)
    if uneven.max() > max(SAME_PLACE, STRAIGHT * local[-1, 2]):
        at = int(np.argmax(np.linalg.norm(np.diff(local[:, :2], axis=0), axis=1))) + 1
        shift = float(np.linalg.norm(local[at, :2] - local[at - 1, :2]))
        return f"slices must lie straight above each other, got {planes[at].name} shifted sideways by {shift:.3f} mm"
    degrees = float(np.degrees(np.arctan(np.linalg.norm(per_mm))))
    step = float(np.median(np.diff(local[:, 2]))) * float(np.linalg.norm(per_mm))
    return (
        f"slices must lie straight above each other, got a gantry tilt of {degrees:.2f} degrees: each slice is shifted "
        f"by {step:.3f} mm, {planes[-1].name} by {sideways[-1]:.3f} mm"
    )


def usual_step(steps: np.ndarray) -> float:
    """The distance that most neighbours have, in mm; of two equally frequent ones the smaller."""
    near = np.abs(steps[:, None] - steps[None]) <= EVEN * np.minimum(steps[:, None], steps[None])
    counts = near.sum(axis=1)
    group = near[min(np.flatnonzero(counts == counts.max()), key=lambda index: steps[index])]
    return float(np.mean(steps[group]))  # of rounded positions the mean keeps the length of the whole


def _uneven(planes: Sequence[Plane], steps: np.ndarray) -> str | None:
    """What is wrong where slices do not have one distance."""
    mean = float(steps.mean())
    even = np.abs(np.cumsum(steps) - mean * np.arange(1, len(steps) + 1)).max() <= EVEN * mean
    usual = usual_step(steps)
    if even and np.abs(steps - usual).max() <= 2 * EVEN * usual:
        return None
    odd = np.flatnonzero(np.abs(steps - usual) > 2 * EVEN * usual)
    if not odd.size:  # each step is within bounds, but they add up
        odd = np.array([int(np.argmax(np.abs(steps - usual)))])
    times = np.rint(steps[odd] / usual)
    gaps = bool((times >= 2).all() and np.abs(steps[odd] - times * usual).max() <= 3 * EVEN * usual)
    first = int(odd[0])
    between = f"between {planes[first].name} and {planes[first + 1].name}"
    more = f", and {odd.size - 1} more such places" if odd.size > 1 else ""
    if gaps:
        missing = f"{int((times - 1).sum())} slices are missing" if times.sum() > 2 else "1 slice is missing"
        return f"{missing}: {steps[first]:.3f} mm instead of {usual:.3f} mm {between}{more}"
    return f"slices must be evenly spaced, got {steps[first]:.3f} mm instead of {usual:.3f} mm {between}{more}"


def _affine(axes: np.ndarray, spacing: Sequence[float], origin: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes.T * np.asarray(spacing)
    affine[:3, 3] = origin
    return _LPS_TO_RAS @ affine


def _depth(plane: Plane, problems: list[Problem]) -> float:
    """How thick a single slice is, in mm."""
    if plane.depth:
        return plane.depth
    problems.append(Problem("warning", "the file states no slice thickness: 1 mm was assumed"))
    return 1.0


def _unknown_spacing(problems: list[Problem]) -> tuple[float, float]:
    problems.append(Problem("warning", "the file states no pixel spacing: 1 mm was assumed"))
    return 1.0, 1.0


def _guessed(planes: Sequence[Plane], problems: list[Problem], *, correct: bool) -> Stack:
    """Slices without positions, one above the other by instance number, axes as in a patient who lies on the back."""
    depth = planes[0].depth
    if len(planes) > 1 and not correct:
        raise _Refused(
            f"each slice must state its position and direction, got none for {len(planes)} slices; "
            f"add {CORRECT} to stack them by instance number{f' every {depth:g} mm' if depth else ''}"
        )
    if len(planes) > 1 and not depth:
        raise _Refused("slices without positions must state their distance or thickness, got none; export them again")
    numbers = [(plane.instance.number, plane.frame) for plane in planes]
    if len(planes) > 1 and len(set(numbers)) < len(numbers):
        raise _Refused("slices without positions must have different instance numbers, got equal ones; renumber them")
    spacing = planes[0].spacing or _unknown_spacing(problems)
    thickness = _depth(planes[0], problems)
    problems.append(Problem("warning", NO_ORIENTATION))
    if len(planes) > 1:
        text = f"positions are guessed: slices stacked by instance number, {thickness:g} mm apart"
        problems.append(Problem("warning", text))
    affine = _affine(np.eye(3), (spacing[1], spacing[0], thickness), np.zeros(3))
    return Stack((tuple(planes),), affine, None, tuple(problems))
