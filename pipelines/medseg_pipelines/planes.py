"""A volume and its label map to three flat planes in patient directions; arrays in, arrays out."""

from dataclasses import dataclass

import numpy as np

from medseg.volume import Volume

_MARGIN = 22.0  # mm shown around the labels: enough for the scalp, so that the eye finds its way


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One plane as it is shown: rows downward, columns to the right, in radiological convention."""

    name: str
    position: float  # mm along the RAS axis that the plane is perpendicular to
    image: np.ndarray  # (rows, columns), grey values of the volume
    labels: np.ndarray  # (rows, columns), label ids
    spacing: tuple[float, float]  # mm per row and per column
    letters: tuple[str, str, str, str]  # directions of the patient at left, right, top, bottom


@dataclass(frozen=True)
class Crosshair:
    """Where three planes meet, and what is shown of them; in voxels along R, A and S."""

    at: tuple[int, ...]
    box: tuple[slice, ...]


def crosshair(label_map: Volume) -> Crosshair:
    """The planes that show the most of the structures, and the range around all of them.

    Args:
        label_map: Label ids; a mask of the anatomy does as well.
    """
    ids, spacing, _, _ = _in_ras(label_map)
    at, box = _best_slices(ids, spacing)
    return Crosshair(tuple(at), tuple(box))


def three_planes(volume: Volume, label_map: Volume, where: Crosshair | None = None) -> tuple[Plane, Plane, Plane]:
    """The axial, coronal and sagittal plane through a crosshair.

    An oblique grid is shown along its own axes under the letters nearest to them; nothing is resampled here.

    Args:
        volume: Grey values.
        label_map: Label ids on the same grid.
        where: By default the crosshair of the label map.
    """
    where = where or crosshair(label_map)
    image, spacing, order, flips = _in_ras(volume)
    ids = _in_ras(label_map)[0]
    centre = _position(volume.affine, order, flips, list(where.at), ids.shape)

    def plane(name: str, axis: int, letters: tuple[str, str, str, str]) -> Plane:
        window = tuple(where.at[i] if i == axis else where.box[i] for i in range(3))
        column, row = (i for i in range(3) if i != axis)
        image_2d, ids_2d = (array[window].T[::-1, ::-1] for array in (image, ids))
        return Plane(
            name=name,
            position=centre[axis],
            image=np.asarray(image_2d, np.float32),
            labels=np.asarray(ids_2d),
            spacing=(float(spacing[row]), float(spacing[column])),
            letters=letters,
        )

    return (
        plane("axial", 2, ("R", "L", "A", "P")),
        plane("coronal", 1, ("R", "L", "S", "I")),
        plane("sagittal", 0, ("A", "P", "S", "I")),
    )


def _in_ras(volume: Volume) -> tuple[np.ndarray, np.ndarray, list[int], tuple[slice, ...]]:
    """A view with x to R, y to A, z to S; its spacing; and the order of the array axes with their flips."""
    world, signs = volume.grid.axes
    order = [world.index(axis) for axis in range(3)]
    flips = tuple(slice(None, None, signs[axis]) for axis in order)  # order names array axes, as signs does
    return np.transpose(volume.voxels, order)[flips], np.asarray(volume.spacing)[order], order, flips


def _best_slices(ids: np.ndarray, spacing: np.ndarray) -> tuple[list[int], list[slice]]:
    """Per axis, the slice that shows the largest share of every structure, and the range around all labels."""
    at, box = [], []
    for axis in range(3):
        areas = _areas(ids, axis)[:, 1:]  # (slices, structures)
        largest = areas.max(axis=0, initial=0)
        length = ids.shape[axis]
        if not largest.any():
            at.append(length // 2)
            box.append(slice(0, length))
            continue
        at.append(int(np.argmax((areas[:, largest > 0] / largest[largest > 0]).sum(axis=1))))
        filled = np.flatnonzero(areas.any(axis=1))
        margin = int(np.ceil(_MARGIN / spacing[axis]))
        box.append(slice(max(0, int(filled[0]) - margin), min(length, int(filled[-1]) + margin + 1)))
    return at, box


def _areas(ids: np.ndarray, axis: int) -> np.ndarray:
    """Voxels per slice and label id, (slices, largest id + 1)."""
    size = int(ids.max(initial=0)) + 1
    return np.stack([np.bincount(plane.ravel(), minlength=size) for plane in np.moveaxis(ids, axis, 0)])


def _position(
    affine: np.ndarray,
    order: list[int],
    flips: tuple[slice, ...],
    at: list[int],
    shape: tuple[int, ...],
) -> list[float]:
    """RAS mm of the voxel where the three planes meet."""
    index = np.ones(4)
    for axis, source in enumerate(order):
        index[source] = at[axis] if flips[axis].step == 1 else shape[axis] - 1 - at[axis]
    return [float(value) for value in (affine @ index)[:3]]
