"""Steps from one grid to another, each with its exact way back.

A step is made for one grid and knows both ends: `apply` takes a volume from `before` to `after`, `invert` takes any
volume on `after`, for example a label map that was predicted there, back to `before`, whose affine it gets bit for bit.
Grids stay as oblique as they are; axes are permuted, turned round, cut and sampled anew, never rotated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from scipy.sparse import csr_matrix

from medseg.volume import Grid, Volume

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
Spacing = tuple[float, float, float]

_SAME_SPACING = 1e-4  # relative; a header's rounding is no reason to blur an image
_WHOLE_VOXEL = 1e-3  # a field of view that ends this close to a voxel's edge gets no further voxel


@dataclass(frozen=True, eq=False)
class Step(ABC):
    """A way from one grid to another and back.

    Attributes:
        before: Grid of the volumes that `apply` takes.
        after: Grid of the volumes that `invert` takes.
    """

    before: Grid
    after: Grid

    def apply(self, volume: Volume) -> Volume:
        """The volume on `after`.

        Raises:
            ValueError: It does not lie on `before`.
        """
        _require(volume, self.before)
        return replace(volume, voxels=self._forward(volume), affine=self.after.affine)

    def invert(self, volume: Volume) -> Volume:
        """The volume on `before`.

        Raises:
            ValueError: It does not lie on `after`.
        """
        _require(volume, self.after)
        return replace(volume, voxels=self._backward(volume), affine=self.before.affine)

    @abstractmethod
    def _forward(self, volume: Volume) -> np.ndarray: ...

    @abstractmethod
    def _backward(self, volume: Volume) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Reorient(Step):
    """Axes permuted and turned round; every voxel keeps its place in the patient.

    Attributes:
        axes: For each axis of `after`, the axis of `before` that becomes it.
        flips: For each axis of `after`, whether it runs the other way.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @classmethod
    def to_ras(cls, grid: Grid) -> Reorient:
        """To the closest orientation with axes towards right, anterior and superior."""
        world, signs = grid.axes
        x, y, z = (world.index(axis) for axis in range(3))
        flips = (signs[x] < 0, signs[y] < 0, signs[z] < 0)
        turn = np.zeros((4, 4))  # index on `after` to index on `before`
        turn[3, 3] = 1
        for new, (old, flip) in enumerate(zip((x, y, z), flips, strict=True)):
            turn[old, new] = -1 if flip else 1
            turn[old, 3] = grid.shape[old] - 1 if flip else 0
        after = Grid((grid.shape[x], grid.shape[y], grid.shape[z]), grid.affine @ turn)
        return cls(grid, after, (x, y, z), flips)

    def _forward(self, volume: Volume) -> np.ndarray:
        return np.ascontiguousarray(self._flip(volume.voxels.transpose(self.axes)))

    def _backward(self, volume: Volume) -> np.ndarray:
        return np.ascontiguousarray(self._flip(volume.voxels).transpose(np.argsort(self.axes)))

    def _flip(self, voxels: np.ndarray) -> np.ndarray:
        x, y, z = (slice(None, None, -1 if flip else 1) for flip in self.flips)
        return voxels[x, y, z]


@dataclass(frozen=True, eq=False)
class Resample(Step):
    """Another spacing over the same field of view, whose first corner stays where it is.

    Images are interpolated linearly, in float32; towards a coarser spacing they are averaged over the new voxel as
    well, so that fine detail does not fold into noise. Labels take the nearest voxel.
    """

    @classmethod
    def to_spacing(cls, grid: Grid, spacing: Spacing) -> Resample:
        """To a spacing in mm along the axes of `grid`; an axis that has it already is left alone.

        Raises:
            ValueError: A spacing is not positive and finite.
        """
        wanted = np.asarray(spacing, np.float64)
        if wanted.shape != (3,) or not (np.isfinite(wanted).all() and (wanted > 0).all()):
            raise ValueError(f"spacing must be three positive lengths in mm, got {spacing}")
        step = wanted / grid.spacing
        step = np.where(np.abs(step - 1) < _SAME_SPACING, 1.0, step)
        x, y, z = (max(1, int(np.ceil(size / s - _WHOLE_VOXEL))) for size, s in zip(grid.shape, step, strict=True))
        change = np.diag([*step, 1.0])
        change[:3, 3] = (step - 1) / 2  # the corner of the first voxel lies half a voxel before its centre
        return cls(grid, Grid((x, y, z), grid.affine @ change))

    def _forward(self, volume: Volume) -> np.ndarray:
        return self._sampled(volume, self.before, self.after)

    def _backward(self, volume: Volume) -> np.ndarray:
        return self._sampled(volume, self.after, self.before)

    def _sampled(self, volume: Volume, start: Grid, end: Grid) -> np.ndarray:
        steps = [to / at for at, to in zip(start.spacing, end.spacing, strict=True)]
        changed = [
            axis for axis in range(3) if abs(steps[axis] - 1) > _SAME_SPACING or start.shape[axis] != end.shape[axis]
        ]
        voxels = volume.voxels
        # The axis that shrinks most goes first: what follows has fewer voxels to visit.
        for axis in sorted(changed, key=lambda a: end.shape[a] / start.shape[a]):
            size = (start.shape[axis], end.shape[axis])
            if volume.kind == "labels" or voxels.dtype == bool:
                voxels = voxels.take(_nearest(*size, steps[axis]), axis=axis)
            else:
                voxels = _weighted(voxels, _linear_weights(*size, steps[axis]), axis)
        return voxels


@dataclass(frozen=True, eq=False)
class Crop(Step):
    """The part within a box; on the way back everything outside it is 0.

    Attributes:
        box: First and one past the last index along each axis of `before`.
    """

    box: Box

    @classmethod
    def to_box(cls, grid: Grid, box: Box) -> Crop:
        """To a box that lies within the grid.

        Raises:
            ValueError: The box is empty or leaves the grid.
        """
        inside = all(0 <= low < high <= size for (low, high), size in zip(box, grid.shape, strict=True))
        if not inside:
            raise ValueError(f"box must lie within {grid.shape} and not be empty, got {box}")
        shape = tuple(high - low for low, high in box)
        return cls(grid, _shifted(grid, tuple(low for low, _ in box), shape), box)

    def _forward(self, volume: Volume) -> np.ndarray:
        return volume.voxels[_slices(self.box)]

    def _backward(self, volume: Volume) -> np.ndarray:
        voxels = np.zeros(self.before.shape, volume.voxels.dtype)
        voxels[_slices(self.box)] = volume.voxels
        return voxels


@dataclass(frozen=True, eq=False)
class Pad(Step):
    """More voxels around the volume, all of one value; on the way back they are cut off.

    Attributes:
        box: Where the volume lies in `after`.
        value: What the new voxels of an image hold; those of labels are 0.
    """

    box: Box
    value: float

    @classmethod
    def to_shape(cls, grid: Grid, shape: tuple[int, int, int], *, value: float = 0.0) -> Pad:
        """To at least a shape, with the volume in the middle; axes that are long enough stay as they are."""
        grown = tuple(max(size, wanted) for size, wanted in zip(grid.shape, shape, strict=True))
        x, y, z = (((new - old) // 2, (new - old) // 2 + old) for old, new in zip(grid.shape, grown, strict=True))
        box = (x, y, z)
        return cls(grid, _shifted(grid, tuple(-low for low, _ in box), grown), box, value)

    def _forward(self, volume: Volume) -> np.ndarray:
        value = 0 if volume.kind == "labels" else self.value
        voxels = np.full(self.after.shape, value, volume.voxels.dtype)
        voxels[_slices(self.box)] = volume.voxels
        return voxels

    def _backward(self, volume: Volume) -> np.ndarray:
        return volume.voxels[_slices(self.box)]


@dataclass(frozen=True, eq=False)
class Chain:
    """Steps one after the other.

    Args:
        steps: In the order of `apply`; each begins on the grid on which the one before it ends.

    Raises:
        ValueError: Two neighbours do not meet.
    """

    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        for first, second in zip(self.steps, self.steps[1:], strict=False):
            if not first.after.equals(second.before):
                raise ValueError(f"steps must meet on one grid, got {first.after.shape} and {second.before.shape}")

    def then(self, step: Step) -> Chain:
        """This chain and one more step."""
        return Chain((*self.steps, step))

    def apply(self, volume: Volume) -> Volume:
        """The volume at the end of the chain."""
        return reduce(lambda moved, step: step.apply(moved), self.steps, volume)

    def undo(self, volume: Volume) -> Volume:
        """A volume from the end of the chain, on the grid on which the chain began."""
        return reduce(lambda moved, step: step.invert(moved), reversed(self.steps), volume)


def to_ras(volume: Volume) -> tuple[Volume, Reorient]:
    """The volume in the orientation closest to RAS, and the step that took it there."""
    step = Reorient.to_ras(volume.grid)
    return step.apply(volume), step


def to_spacing(volume: Volume, spacing: Spacing) -> tuple[Volume, Resample]:
    """The volume at a spacing in mm along its own axes, and the step that took it there."""
    step = Resample.to_spacing(volume.grid, spacing)
    return step.apply(volume), step


def crop(volume: Volume, box: Box) -> tuple[Volume, Crop]:
    """The part of the volume within a box, and the step that took it there."""
    step = Crop.to_box(volume.grid, box)
    return step.apply(volume), step


def pad(volume: Volume, shape: tuple[int, int, int], *, value: float = 0.0) -> tuple[Volume, Pad]:
    """The volume in the middle of at least a shape, and the step that took it there."""
    step = Pad.to_shape(volume.grid, shape, value=value)
    return step.apply(volume), step


def foreground_box(volume: Volume, *, above: float = 0.0, margin: float = 0.0) -> Box:
    """The smallest box around all voxels above a value, or the whole volume where there are none.

    Args:
        volume: An image or labels.
        above: Voxels greater than this count.
        margin: Millimetres by which the box grows on each side, as far as the volume reaches.
    """
    counts = volume.voxels > above
    x, y, z = (
        _extent(np.asarray(counts.any(axis=tuple({0, 1, 2} - {axis}))), int(np.ceil(margin / volume.spacing[axis])))
        for axis in range(3)
    )
    return x, y, z


def _extent(counts: np.ndarray, margin: int) -> tuple[int, int]:
    where = np.flatnonzero(counts)
    if not where.size:
        return 0, counts.size
    return max(0, int(where[0]) - margin), min(counts.size, int(where[-1]) + 1 + margin)


def _require(volume: Volume, grid: Grid) -> None:
    if not volume.grid.equals(grid):
        raise ValueError(
            f"volume must lie on the grid that the step was made for, {grid.shape} at {grid.spacing} mm, "
            f"got {volume.shape} at {volume.spacing} mm"
        )


def _shifted(grid: Grid, by: tuple[int, ...], shape: tuple[int, ...]) -> Grid:
    """A grid with the same axes whose first voxel has the index `by`."""
    affine = np.array(grid.affine)
    affine[:3, 3] += affine[:3, :3] @ np.asarray(by, np.float64)
    x, y, z = shape
    return Grid((x, y, z), affine)


def _slices(box: Box) -> tuple[slice, slice, slice]:
    x, y, z = (slice(low, high) for low, high in box)
    return x, y, z


def _nearest(size: int, new_size: int, step: float) -> np.ndarray:
    """For each new voxel along an axis, the old voxel within which its centre lies.

    Args:
        size: Old voxels.
        new_size: New voxels.
        step: New spacing over old spacing.
    """
    return np.clip(np.floor((np.arange(new_size) + 0.5) * step), 0, size - 1).astype(np.intp)


def _linear_weights(size: int, new_size: int, step: float) -> csr_matrix:
    """(new_size, size) weights; each row sums to 1, and a ramp stays the same ramp.

    Linear interpolation, averaged over a box where voxels become larger. A box of width sqrt(step**2 - 1) begins at
    plain interpolation for equal spacings and tends to the whole new voxel.
    """
    box = np.sqrt(max(step**2 - 1, 1e-6))
    reach = 1 + box / 2
    centres = ((np.arange(new_size) + 0.5) * step - 0.5)[:, None]  # in old voxels
    taps = np.ceil(centres - reach) + np.arange(int(2 * reach) + 2)
    weights = (_triangle_below(taps - centres + box / 2) - _triangle_below(taps - centres - box / 2)) / box
    # Beyond the edge the nearest voxel counts: also for a centre in the last, incomplete voxel.
    inside = np.clip(taps, 0, size - 1).astype(np.intp)
    weights /= weights.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(np.arange(new_size)[:, None], taps.shape)
    matrix = csr_matrix((weights.ravel(), (rows.ravel(), inside.ravel())), (new_size, size), dtype=np.float32)
    matrix.eliminate_zeros()
    return matrix


def _triangle_below(end: np.ndarray) -> np.ndarray:
    """Area under a triangle of half width 1 around 0, from its start to `end`."""
    clipped = np.clip(end, -1, 1)
    return np.where(clipped < 0, (1 + clipped) ** 2 / 2, 1 - (1 - clipped) ** 2 / 2)


def _weighted(voxels: np.ndarray, weights: csr_matrix, axis: int) -> np.ndarray:
    """Weighted sums along an axis, float32, one slab at a time so that no second full copy of the input arises.

    Args:
        voxels: (X, Y, Z), any real type.
        weights: (new size, old size) along that axis.
        axis: 0, 1 or 2.
    """
    shape = list(voxels.shape)
    shape[axis] = weights.indptr.size - 1
    out = np.empty(shape, np.float32)
    if axis == 0:
        for y in range(shape[1]):
            out[:, y] = weights @ np.ascontiguousarray(voxels[:, y], dtype=np.float32)
        return out
    for x in range(shape[0]):
        slab = voxels[x] if axis == 1 else voxels[x].T
        sums = weights @ np.ascontiguousarray(slab, dtype=np.float32)
        out[x] = sums if axis == 1 else sums.T
    return out
