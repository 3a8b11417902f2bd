"""Outlines of a mask along the edges of its pixels: filled again, they give every pixel back, and the same area."""

from __future__ import annotations

import numpy as np

_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (row, column) of the four directions, each a right turn after the other


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """Closed outlines, (K, 2) columns and rows in pixels; the centre of the first pixel is (0, 0).

    Pixels that touch at a corner only get outlines of their own. A hole is joined to the outline around it by a channel
    without width, as radiotherapy systems expect it (PS3.3 C.8.8.6.3).

    Args:
        mask: (rows, columns), boolean.
    """
    loops = [_corners(loop) for loop in _loops(mask)]
    outer = [loop for loop in loops if _area(loop) > 0]
    for hole in sorted((loop for loop in loops if _area(loop) < 0), key=lambda loop: loop[:, 0].min()):
        around = [index for index, loop in enumerate(outer) if _inside(hole[0] + _inwards(hole), loop)]
        index = min(around, key=lambda candidate: abs(_area(outer[candidate])))
        outer[index] = _joined(outer[index], hole)
    return [loop[:, ::-1] - 0.5 for loop in outer]


def _loops(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """Walks along edges between inside and outside, the inside to the right; corners as (row, column)."""
    padded = np.pad(mask.astype(np.int8), 1)
    down, right = np.diff(padded, axis=0)[:, 1:-1], np.diff(padded, axis=1)[1:-1]
    ways: dict[tuple[int, int], set[int]] = {}
    for direction, cells, shift in (
        (0, down > 0, (0, 0)),
        (2, down < 0, (0, 1)),
        (3, right > 0, (1, 0)),
        (1, right < 0, (0, 0)),
    ):
        for row, column in np.argwhere(cells):
            ways.setdefault((int(row) + shift[0], int(column) + shift[1]), set()).add(direction)
    loops = []
    while ways:
        start = next(iter(ways))
        direction = next(iter(ways[start]))
        loops.append(_walk(ways, start, direction))
    return loops


def _walk(ways: dict[tuple[int, int], set[int]], start: tuple[int, int], direction: int) -> list[tuple[int, int]]:
    """One loop, its edges taken out of `ways`; where two go on, the one that stays with the same pixel."""
    loop, at = [], start
    while at in ways:
        choices = ways[at]
        direction = next(turn % 4 for turn in (direction + 1, direction, direction + 3) if turn % 4 in choices)
        choices.discard(direction)
        if not choices:
            del ways[at]
        loop.append(at)
        at = (at[0] + _STEPS[direction][0], at[1] + _STEPS[direction][1])
        if at == start and not (at in ways and (direction + 1) % 4 in ways[at]):
            break
    return loop


def _corners(loop: list[tuple[int, int]]) -> np.ndarray:
    """The points at which a loop turns."""
    points = np.array(loop, np.float64)
    turns = np.any(np.roll(points, -1, axis=0) - points != points - np.roll(points, 1, axis=0), axis=1)
    return points[turns]


def _area(loop: np.ndarray) -> float:
    """Pixels within; negative for a hole."""
    rows, columns = loop.T
    return float(np.dot(columns, np.roll(rows, -1)) - np.dot(rows, np.roll(columns, -1))) / 2


def _inwards(hole: np.ndarray) -> np.ndarray:
    """From the first corner of a hole half a pixel along both of its edges, off every pixel edge."""
    return (np.sign(hole[1] - hole[0]) + np.sign(hole[-1] - hole[0])) * 0.25


def _inside(point: np.ndarray, loop: np.ndarray) -> bool:
    """Whether a point lies within, by the number of edges above it."""
    row, column = point
    ahead = np.roll(loop, -1, axis=0)
    crossed = (loop[:, 1] > column) != (ahead[:, 1] > column)
    start, end = loop[crossed], ahead[crossed]  # channels to holes run at any angle
    share = (column - start[:, 1]) / (end[:, 1] - start[:, 1])
    return bool((start[:, 0] + share * (end[:, 0] - start[:, 0]) < row).sum() % 2)


def _joined(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One outline: along the outer one to the corner next to the hole, round the hole, and back."""
    apart = ((outer[:, None] - hole[None]) ** 2).sum(axis=-1)
    leave, enter = np.unravel_index(int(apart.argmin()), apart.shape)
    around = np.roll(hole, -int(enter), axis=0)
    return np.concatenate([outer[: leave + 1], around, around[:1], outer[leave:]])
