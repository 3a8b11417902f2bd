"""Prompts: points, boxes and masks that say what to segment, in millimetres of the patient.

They belong to a place, not to voxels: the same prompts hold on every grid over the same subject. On a picture, which
has no patient axes, a place is (column, row, 0) in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy import ndimage

from medseg.volume import Grid, Volume

Place = tuple[float, float, float]
Space = Literal["mm", "px"]

_ALONG_PATIENT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place inside or outside a structure.

    Attributes:
        at: mm in RAS.
        inside: Whether the structure is there.
        label: Which structure, from 1 on.
    """

    at: Place
    inside: bool = True
    label: int = 1

    @classmethod
    def at_voxel(cls, index: Sequence[float], grid: Grid, *, inside: bool = True, label: int = 1) -> Point:
        """The centre of a voxel."""
        return cls(at=_place(index, grid), inside=inside, label=label)

    def on(self, grid: Grid) -> np.ndarray:
        """Its voxel index, (3,), fractions included."""
        return _index(self.at, grid)


@dataclass(frozen=True, kw_only=True)
class Box:
    """A cuboid around a structure, or a flat rectangle around its cut by one slice.

    Attributes:
        first: One corner, mm in RAS: the centre of the outermost voxel that is still inside.
        last: The corner across.
        axes: Directions of its edges, unit vectors; those of the patient if not given.
        label: Which structure, from 1 on.
    """

    first: Place
    last: Place
    axes: tuple[Place, Place, Place] = _ALONG_PATIENT
    label: int = 1

    @classmethod
    def of_voxels(cls, low: Sequence[float], high: Sequence[float], grid: Grid, *, label: int = 1) -> Box:
        """The box from voxel index `low` to `high`, both included, with edges along the array axes."""
        directions = (grid.affine[:3, :3] / np.asarray(grid.spacing)).T
        axes = tuple(_triple(direction) for direction in directions)
        return cls(first=_place(low, grid), last=_place(high, grid), axes=(axes[0], axes[1], axes[2]), label=label)

    def on(self, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Its lowest and highest voxel index along every array axis, (3,) each, fractions included."""
        first, edges = np.asarray(self.first), np.asarray(self.axes)
        along = np.linalg.solve(edges.T, np.asarray(self.last) - first)  # how far along each edge
        chosen = np.array(np.meshgrid((0, 1), (0, 1), (0, 1), indexing="ij")).reshape(3, -1).T
        corners = np.array([_index(_triple(first + (along * pick) @ edges), grid) for pick in chosen])
        return corners.min(0), corners.max(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask:
    """A rough or earlier segmentation to start from.

    Attributes:
        volume: Not 0 inside.
        label: Which structure, from 1 on.
    """

    volume: Volume
    label: int = 1

    def on(self, grid: Grid) -> np.ndarray:
        """The mask on another grid, (X, Y, Z), boolean; what lies outside its own grid is outside."""
        inside = self.volume.voxels != 0
        if self.volume.grid.equals(grid, tolerance=1e-4):
            return inside
        step = np.linalg.inv(self.volume.affine) @ grid.affine  # (4, 4), which scipy takes with its offset inside
        moved = ndimage.affine_transform(inside.astype(np.uint8), step, output_shape=grid.shape, order=0)
        return moved > 0


Prompt = Point | Box | Mask


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Everything that was said about one image.

    Attributes:
        items: In the order they were given.
        names: What the labels are called; others are "structure N".
        space: "mm" of a volume, or "px" of a picture.
    """

    items: tuple[Prompt, ...]
    names: dict[int, str] = field(default_factory=dict)
    space: Space = "mm"

    @property
    def labels(self) -> tuple[int, ...]:
        """The labels that occur, rising."""
        return tuple(sorted({item.label for item in self.items}))

    def of(self, label: int) -> tuple[Prompt, ...]:
        """What was said about one structure."""
        return tuple(item for item in self.items if item.label == label)

    def name(self, label: int) -> str:
        """What a label is called."""
        return self.names.get(label, f"structure {label}")


class PromptList:
    """Prompts that are given one by one and taken back; each step can be undone and redone.

    Args:
        items: To begin with; these cannot be undone.
    """

    def __init__(self, items: Iterable[Prompt] = ()) -> None:
        self._now: tuple[Prompt, ...] = tuple(items)
        self._past: list[tuple[Prompt, ...]] = []
        self._future: list[tuple[Prompt, ...]] = []

    @property
    def items(self) -> tuple[Prompt, ...]:
        """In the order they were given."""
        return self._now

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        return bool(self._past)

    @property
    def can_redo(self) -> bool:
        """Whether a step was undone."""
        return bool(self._future)

    def add(self, prompt: Prompt) -> None:
        """Give one more."""
        self._step((*self._now, prompt))

    def remove(self, index: int) -> None:
        """Take one back, by its place in `items`.

        Raises:
            IndexError: There is none.
        """
        kept = list(self._now)
        del kept[index]
        self._step(tuple(kept))

    def clear(self, label: int | None = None) -> None:
        """Take back all, or those of one structure."""
        self._step(tuple(item for item in self._now if label is not None and item.label != label))

    def undo(self) -> bool:
        """Go one step back; False where there is none."""
        return self._go(self._past, self._future)

    def redo(self) -> bool:
        """Go forward again by what was undone; False where nothing was."""
        return self._go(self._future, self._past)

    def _step(self, items: tuple[Prompt, ...]) -> None:
        self._past.append(self._now)
        self._future.clear()
        self._now = items

    def _go(self, source: list[tuple[Prompt, ...]], other: list[tuple[Prompt, ...]]) -> bool:
        if not source:
            return False
        other.append(self._now)
        self._now = source.pop()
        return True


def _place(index: Sequence[float], grid: Grid) -> Place:
    return _triple(grid.affine[:3, :3] @ np.asarray(index, float) + grid.affine[:3, 3])


def _index(place: Place, grid: Grid) -> np.ndarray:
    return np.linalg.solve(grid.affine[:3, :3], np.asarray(place) - grid.affine[:3, 3])


def _triple(values: Iterable[float]) -> Place:
    x, y, z = (float(value) for value in values)
    return x, y, z
