"""Prompts on the slices of a stack: what was said about each, in its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from medseg.errors import InputRefused
from medseg.prompts import Box, Mask, Point, Prompt
from medseg_pipelines.prompting.stack import Stack

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What was said about one structure on one slice, or what its neighbour suggests.

    Attributes:
        points: (column, row) of each point.
        inside: Whether the structure is there.
        box: Lowest column and row, highest column and row, the outermost pixels included.
        mask: (rows, columns), boolean.
    """

    points: tuple[tuple[float, float], ...] = ()
    inside: tuple[bool, ...] = ()
    box: Rectangle | None = None
    mask: np.ndarray | None = None

    @property
    def weight(self) -> float:
        """How much of the slice it speaks of; the walk starts where this is largest."""
        if self.box is not None:
            return 1 + (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])
        return 1.0 if any(self.inside) else 0.0


@dataclass(frozen=True, eq=False)
class Target:
    """One structure on a stack.

    Attributes:
        given: What was said, by slice.
        first: The lowest slice that it may reach.
        last: The highest.
        frame: What it must not leave on any slice; None for the whole of it.
    """

    given: dict[int, Given]
    first: int
    last: int
    frame: Rectangle | None = None

    @property
    def start(self) -> int:
        """The slice with the largest box."""
        return max(self.given, key=lambda s: self.given[s].weight)

    def within_frame(self, box: Rectangle) -> Rectangle:
        """A box cut off at the frame."""
        if self.frame is None:
            return box
        low, high = (np.clip(pair, self.frame[:2], self.frame[2:]) for pair in (box[:2], box[2:]))
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def target_on(stack: Stack, prompts: Sequence[Prompt]) -> Target:
    """The prompts of one structure, on the slices of a stack.

    A box with depth speaks of its middle slice, and bounds the structure; masks speak of every slice they touch.

    Raises:
        InputRefused: A prompt lies outside the image, or no point is inside and nothing else was given.
    """
    given: dict[int, Given] = {}
    first, last, frame = 0, stack.count - 1, None
    for prompt in prompts:
        if isinstance(prompt, Point):
            column, row, place = stack.find(prompt.on(stack.grid))
            at = _slice(place, stack)
            known = given.get(at, Given())
            points, inside = (*known.points, _within(column, row, stack)), (*known.inside, prompt.inside)
            given[at] = replace(known, points=points, inside=inside)
        elif isinstance(prompt, Box):
            box, low, high = _box_on(stack, prompt)
            middle = (low + high) // 2
            given[middle] = replace(given.get(middle, Given()), box=box)
            if high > low:
                first, last, frame = low, high, box
        else:
            _add_mask(stack, prompt, given)
    positive = any(g.box is not None or g.mask is not None or any(g.inside) for g in given.values())
    if not positive:
        raise InputRefused("prompts must say where a structure is, all points are outside it; add a box or a point")
    return Target(given, min(first, *given), max(last, *given), frame)


def _box_on(stack: Stack, box: Box) -> tuple[Rectangle, int, int]:
    """The rectangle, and the lowest and highest slice."""
    ends = np.stack([stack.find(end) for end in box.on(stack.grid)])
    low, high = ends.min(0), ends.max(0)
    rows, columns = stack.size
    if (high < -0.5).any() or (low > np.array((columns, rows, stack.count)) - 0.5).any():
        raise _outside("box", stack)
    x0, y0 = np.clip(low[:2], 0, (columns - 1, rows - 1))
    x1, y1 = np.clip(high[:2], 0, (columns - 1, rows - 1))
    bottom, top = (int(np.clip(round(end), 0, stack.count - 1)) for end in (low[2], high[2]))
    return (float(x0), float(y0), float(x1), float(y1)), bottom, top


def _add_mask(stack: Stack, mask: Mask, given: dict[int, Given]) -> None:
    slices = stack.arranged(mask.on(stack.grid))
    touched = np.flatnonzero(slices.any((1, 2)))
    if not len(touched):
        raise InputRefused("mask must touch the image, it does not; check that it belongs to it")
    for at in touched.tolist():
        given[at] = replace(given.get(at, Given()), mask=slices[at], box=around(slices[at], stack, 0.0))


def tight_box(mask: np.ndarray) -> Rectangle:
    """Lowest column and row, highest column and row of a mask, (rows, columns), not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def around(mask: np.ndarray, stack: Stack, margin: float) -> Rectangle:
    """The box of a mask, (rows, columns), not empty, grown on each side by a number of pixels."""
    (x0, y0, x1, y1), (height, width) = tight_box(mask), stack.size
    return max(0.0, x0 - margin), max(0.0, y0 - margin), min(width - 1.0, x1 + margin), min(height - 1.0, y1 + margin)


def _slice(place: float, stack: Stack) -> int:
    if not -0.5 <= place <= stack.count - 0.5:
        raise _outside("point", stack)
    return int(np.clip(round(place), 0, stack.count - 1))


def _within(column: float, row: float, stack: Stack) -> tuple[float, float]:
    rows, columns = stack.size
    if not (-0.5 <= column <= columns - 0.5 and -0.5 <= row <= rows - 0.5):
        raise _outside("point", stack)
    return float(column), float(row)


def _outside(what: str, stack: Stack) -> InputRefused:
    """Says where the image is, in the unit of prompts: mm of the patient, or columns and rows."""
    indices = np.array(list(product(*((-0.5, size - 0.5) for size in stack.grid.shape))))
    corners = indices @ stack.grid.affine[:3, :3].T + stack.grid.affine[:3, 3]
    ends = zip("xyz", corners.min(0), corners.max(0), strict=True)
    place = ", ".join(f"{axis} {low:.1f} to {high:.1f}" for axis, low, high in ends)
    return InputRefused(f"{what} must lie within the image, {place}; it lies outside: check its unit and its signs")
