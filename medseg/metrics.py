"""How well a label map agrees with a reference, structure by structure; NumPy and SciPy only.

Empty structures, fixed here and printed with every table: in neither map, a structure is not counted; in one map only,
its Dice is 0 and its surface distance is infinite.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EMPTY_CONVENTION = (
    "A structure in neither label map is not counted; in only one of them its Dice is 0 and its HD95 is infinite "
    "(left out of the mean, and counted)."
)

Mask = NDArray[np.bool_]


def dice(mask: Mask, reference: Mask) -> float:
    """Twice the overlap over the sum of both sizes, 0 to 1; nan where both are empty.

    Args:
        mask: The structure, any shape.
        reference: The same structure in the reference, same shape.

    Raises:
        ValueError: The shapes differ.
    """
    _require_same_shape(mask, reference)
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(reference))
    if total == 0:
        return math.nan
    return 2 * int(np.count_nonzero(mask & reference)) / total


def hausdorff95(mask: Mask, reference: Mask, spacing: tuple[float, ...]) -> float:
    """The larger of the two directed 95th percentile distances between the surfaces, in mm.

    The surface of a structure is those of its voxels that touch the outside by a face; outside the grid is outside.

    Args:
        mask: The structure, any shape.
        reference: The same structure in the reference, same shape.
        spacing: mm per voxel along each array axis.

    Returns:
        mm; nan where both are empty, inf where one is.

    Raises:
        ValueError: The shapes differ.
    """
    _require_same_shape(mask, reference)
    if not (mask.any() and reference.any()):
        return math.inf if mask.any() or reference.any() else math.nan
    box = ndimage.find_objects((mask | reference).astype(np.uint8))[0]  # distances outside the box are never asked for
    surfaces = [_surface(part[box]) for part in (mask, reference)]
    directed = [_distances(a, b, spacing) for a, b in (surfaces, surfaces[::-1])]
    return max(float(np.percentile(distances, 95)) for distances in directed)


def volume_error(mask: Mask, reference: Mask) -> float:
    """Size relative to the reference, minus one: 0.1 is ten percent too large; nan where the reference is empty."""
    _require_same_shape(mask, reference)
    expected = int(np.count_nonzero(reference))
    return int(np.count_nonzero(mask)) / expected - 1 if expected else math.nan


def _surface(mask: Mask) -> Mask:
    return mask & ~ndimage.binary_erosion(mask)


def _distances(start: Mask, goal: Mask, spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """mm from each voxel of `start` to the nearest voxel of `goal`."""
    field = ndimage.distance_transform_edt(~goal, sampling=spacing)
    return np.asarray(field)[start]


def _require_same_shape(mask: Mask, reference: Mask) -> None:
    if mask.shape != reference.shape:
        raise ValueError(f"mask and reference must share one shape, got {mask.shape} and {reference.shape}")
