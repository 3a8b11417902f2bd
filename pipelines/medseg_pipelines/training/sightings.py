"""Structures on slices with boxes to find them by: what a network learns from that follows boxes.

A box surrounds the structure on its own slice, each side moved outward at random as published (2410.04172, section 3),
or it comes from the slice above or below, as when a structure is followed through a volume: there the structure may
have moved, or be gone.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medseg.errors import InputRefused
from medseg.turns import TURNS, turned
from medseg_pipelines.prompting.frame import Frame, small_mask
from medseg_pipelines.prompting.given import Rectangle, tight_box
from medseg_pipelines.prompting.stack import Stack
from medseg_pipelines.sections import PromptOptions

_GONE = 0.5  # share of the boxes from a neighbour that show where a structure has ended


class SightingOptions(Protocol):
    """What is asked of the `training` section of a recipe; see `boxes.BoxOptions`."""

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def boxes(self) -> int: ...
    @property
    def least(self) -> int: ...
    @property
    def jitter(self) -> float: ...
    @property
    def neighbours(self) -> float: ...
    @property
    def turns(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Outlined:
    """Slices and the structures on them.

    Attributes:
        stack: 8 bit.
        ids: Which structure is where, (S, rows, columns), 0 for none.
    """

    stack: Stack
    ids: np.ndarray

    def box(self, sighting: Sighting) -> Rectangle:
        """The tight box of a structure on the slice that gives it."""
        return tight_box(self.ids[sighting.boxed] == sighting.label)


@dataclass(frozen=True)
class Sighting:
    """A slice, a structure that is looked for on it, and the slice whose outline gives the box."""

    stack: int
    at: int
    label: int
    boxed: int


@dataclass(frozen=True)
class Sightings:
    """What can be drawn from.

    Attributes:
        own: The structure's own box.
        carried: The box of a neighbour, and the structure is there.
        gone: The box of a neighbour, and it is not.
    """

    own: list[Sighting]
    carried: list[Sighting]
    gone: list[Sighting]

    @classmethod
    def on(cls, outlined: list[Outlined], least: int) -> Sightings:
        """All of them; a structure gives a box where it has at least so many pixels."""
        found = cls([], [], [])
        for number, each in enumerate(outlined):
            slices = [np.unique(ids, return_counts=True) for ids in each.ids]
            sizes = [dict(zip(labels.tolist(), counts.tolist(), strict=True)) for labels, counts in slices]
            for at, known in enumerate(sizes):
                for label in (label for label, count in known.items() if label > 0 and count >= least):
                    found.own.append(Sighting(number, at, label, at))
                    for near in {at - 1, at + 1} & set(range(len(sizes))):
                        there = found.carried if label in sizes[near] else found.gone
                        there.append(Sighting(number, near, label, at))
        return found

    def by_slice(self) -> dict[tuple[int, int], Sightings]:
        """Those of each slice, by stack and slice."""
        parts: defaultdict[tuple[int, int], Sightings] = defaultdict(lambda: Sightings([], [], []))
        for name in ("own", "carried", "gone"):
            for sighting in getattr(self, name):
                getattr(parts[sighting.stack, sighting.at], name).append(sighting)
        return dict(parts)

    def draw(self, rng: np.random.Generator, neighbours: float) -> Sighting:
        """One, with the box of a neighbour in that share of the cases, half of those where the structure is gone."""
        pool = self.own
        if rng.random() < neighbours or not pool:
            pool = self.gone if (self.gone and rng.random() < _GONE) or not self.carried else self.carried
        pool = pool or self.own
        return pool[rng.integers(len(pool))]


@dataclass(frozen=True, eq=False)
class BoxBatch:
    """Slices with as many boxes each.

    Attributes:
        keys: What tells the slices apart: stack, slice, turn.
        slices: (rows, columns) or (rows, columns, 3), 8 bit, one each.
        frames: Where they lie on the network's square.
        boxes: On that square, those of a slice one behind the other, (P, 4).
        targets: 1 inside, on the decoder's grid, (P, 1, h, w); all 0 where a structure is gone.
    """

    keys: tuple[tuple[int, int, int], ...]
    slices: tuple[np.ndarray, ...]
    frames: tuple[Frame, ...]
    boxes: Tensor
    targets: Tensor


class Boxes(Dataset[BoxBatch]):
    """Batch number n of a training: drawn from the seed and n alone.

    Args:
        outlined: Slices and structures of every image.
        options: The training section.
        prompting: The section of the recipe that says how slices are seen.
        side: Of the network's square, in pixels.
        grid: Cells of its decoder along one side.

    Raises:
        InputRefused: No structure is large enough to learn from.
    """

    def __init__(
        self, outlined: list[Outlined], options: SightingOptions, prompting: PromptOptions, *, side: int, grid: int
    ) -> None:
        self.outlined, self.options, self.prompting = outlined, options, prompting
        self.side, self.grid = side, (grid, grid)
        self.sightings = Sightings.on(outlined, options.least)
        if not self.sightings.own:
            raise InputRefused(f"no structure has {options.least} pixels on any slice; lower training.least")
        self.here = self.sightings.by_slice()

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> BoxBatch:
        rng = np.random.default_rng((self.options.seed, step))
        parts = [self._part(rng) for _ in range(self.options.batch)]
        keys, slices, frames, boxes, targets = zip(*parts, strict=True)
        return BoxBatch(keys, slices, frames, torch.cat(boxes), torch.cat(targets))

    def _part(self, rng: np.random.Generator) -> tuple[tuple[int, int, int], np.ndarray, Frame, Tensor, Tensor]:
        """A slice and its boxes."""
        how = self.options
        first = self.sightings.draw(rng, how.neighbours)
        others = self.here[first.stack, first.at]
        chosen = [first, *(others.draw(rng, how.neighbours) for _ in range(how.boxes - 1))]
        turn = int(rng.integers(TURNS)) if how.turns else 0
        each = self.outlined[first.stack]
        slice_ = turned(each.stack.slices[first.at], turn)
        down, across = each.stack.spacing
        size = (slice_.shape[0], slice_.shape[1])
        frame = Frame.of(size, (across, down) if turn % 2 else (down, across), self.side, fit=self.prompting.fit)
        boxes, targets = [], []
        for sighting in chosen:
            reach = how.jitter if sighting.boxed == sighting.at else 2 * self.prompting.margin
            box = _grown(turned(each.ids[sighting.boxed] == sighting.label, turn), reach * max(size), rng)
            boxes.append(frame.moved(box.reshape(2, 2)).reshape(1, 4))
            mask = turned(each.ids[sighting.at] == sighting.label, turn)
            targets.append((small_mask(mask, frame, self.grid, self.side) > 0.5).float())
        placed = torch.from_numpy(np.concatenate(boxes)).float()
        return (first.stack, first.at, turn), slice_, frame, placed, torch.cat(targets)


def _grown(mask: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    """The box of a mask, each side moved outward by up to `reach` pixels, (4,)."""
    away = rng.uniform(0, reach, 4) * (-1, -1, 1, 1)
    limits = np.array(mask.shape[::-1] * 2)  # ends may lie on the border, as published
    return (np.array(tight_box(mask)) + away).clip(0, limits)
