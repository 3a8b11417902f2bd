"""What is measured on a mask of vessels: area, length of the centre lines, width and tortuosity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from skimage.morphology import skeletonize

_SMOOTH = 5  # pixels either way over which a centre line is averaged before it is measured: steps are no windings
_SHORTEST = 20  # pixels of a segment whose tortuosity counts; of shorter ones it is noise
_AROUND = np.ones((3, 3), int)


@dataclass(frozen=True, kw_only=True)
class VesselFigures:
    """Vessels in numbers; lengths in pixels of the mask, or in mm where a spacing was given.

    Attributes:
        area_fraction: Of the field of view that is vessel, 0 to 1.
        area: Squared pixels or mm.
        length: Of all centre lines together.
        density: Length per area of the field.
        width: Mean width, area over length; 0 where there is no vessel.
        segments: Centre lines between branchings and ends, of at least 20 pixels.
        tortuosity: Length of a segment over the distance of its ends, mean over the segments weighted by length; 1 is
            straight, and 0 says that there is none.
    """

    area_fraction: float
    area: float
    length: float
    density: float
    width: float
    segments: int
    tortuosity: float


def measure_vessels(
    mask: NDArray[np.bool_], field: NDArray[np.bool_], spacing: tuple[float, float] | None = None
) -> VesselFigures:
    """Measure a mask inside a field of view.

    Args:
        mask: Vessels, (H, W).
        field: Where the picture shows something, (H, W).
        spacing: mm per row and column; None measures in pixels.
    """
    steps = np.asarray((1.0, 1.0) if spacing is None else spacing)
    vessels = mask & field
    paths, junctions = centre_lines(vessels)
    measured = [_arc_and_chord(path, steps) for path in paths]
    length = sum(arc for arc, _ in measured) + junctions * float(steps.mean())
    counted = [(a, c) for path, (a, c) in zip(paths, measured, strict=True) if len(path) >= _SHORTEST and c > 0]
    weight = sum(arc for arc, _ in counted)
    area, whole = vessels.sum() * float(steps.prod()), field.sum() * float(steps.prod())
    return VesselFigures(
        area_fraction=area / whole if whole else 0.0,
        area=area,
        length=length,
        density=length / whole if whole else 0.0,
        width=area / length if length else 0.0,
        segments=len(counted),
        tortuosity=sum(arc * max(1.0, arc / chord) for arc, chord in counted) / weight if weight else 0.0,
    )


def centre_line_dice(mask: NDArray[np.bool_], reference: NDArray[np.bool_]) -> float:
    """Agreement of two masks along their centre lines (clDice, 2003.07311): it falls where vessels are broken.

    Args:
        mask: (H, W).
        reference: (H, W).

    Returns:
        Harmonic mean of the share of the mask's centre lines inside the reference and of the reference's inside the
        mask; 0 where they share nothing, nan where both are empty.
    """
    ours, theirs = (np.asarray(skeletonize(each), bool) for each in (mask, reference))
    if not ours.any() and not theirs.any():
        return float("nan")
    precision = (ours & reference).sum() / max(1, ours.sum())
    sensitivity = (theirs & mask).sum() / max(1, theirs.sum())
    return float(2 * precision * sensitivity / (precision + sensitivity)) if precision + sensitivity else 0.0


def centre_lines(mask: NDArray[np.bool_]) -> tuple[list[NDArray[np.intp]], int]:
    """Pixels of the skeleton from end to end of each segment, (n, 2) rows and columns, and how many pixels join them.

    A closed ring is cut at one pixel.
    """
    skeleton = np.asarray(skeletonize(mask), bool)
    neighbours = ndimage.convolve(skeleton.astype(np.uint8), _AROUND, mode="constant") - 1
    joints = skeleton & (neighbours > 2)
    pieces = np.asarray(measure.label(skeleton & ~joints, connectivity=2))
    rows, columns = np.nonzero(pieces)
    order = np.argsort(pieces[rows, columns], kind="stable")
    points = np.stack((rows, columns), axis=1)[order]
    cuts = np.flatnonzero(np.diff(pieces[rows, columns][order])) + 1
    return [_walked(piece) for piece in np.split(points, cuts) if len(piece)], int(joints.sum())


def _walked(points: NDArray[np.intp]) -> NDArray[np.intp]:
    """The pixels of one segment in the order in which they follow each other."""
    left = {(int(row), int(column)) for row, column in points}
    ends = [at for at in left if sum(other in left for other in _around(at)) <= 1]
    at = min(ends) if ends else min(left)
    path = [at]
    left.remove(at)
    while True:
        following = [other for other in _around(at) if other in left]
        if not following:
            return np.array(path)
        at = following[0]
        path.append(at)
        left.remove(at)


def _around(at: tuple[int, int]) -> list[tuple[int, int]]:
    """The eight neighbours, those that share an edge first."""
    row, column = at
    straight = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return straight + [(row + y, column + x) for y in (-1, 1) for x in (-1, 1)]


def _arc_and_chord(path: NDArray[np.intp], steps: NDArray[np.floating]) -> tuple[float, float]:
    """Length of a smoothed segment, its own end pixels included, and the distance of its ends."""
    places = path * steps
    pixel = float(steps.mean())
    if len(path) > 2:
        reach = min(_SMOOTH, (len(path) - 1) // 2)
        sums = np.concatenate((np.zeros((1, 2)), np.cumsum(places, axis=0)))
        at = np.arange(len(path))
        half = np.minimum(np.minimum(at, len(path) - 1 - at), reach)  # narrower towards the ends, which stay in place
        places = (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)[:, None]
    arc = float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
    chord = float(np.linalg.norm(places[-1] - places[0]))
    return arc + pixel, chord + pixel
