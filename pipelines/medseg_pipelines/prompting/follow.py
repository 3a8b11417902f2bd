"""From the slices that were prompted to their neighbours, up and down, until the structure is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from scipy import ndimage

from medseg_pipelines.prompting.given import Given, Target, around
from medseg_pipelines.prompting.stack import Stack

_OFFSET = 1.0  # logits above and below the border, between which a stable mask hardly changes
_LEAST_SPREAD = 8.0  # grey values of 255; what is evenly grey is still allowed to change a little


@dataclass(frozen=True, eq=False)
class Drawn:
    """What the network says of one slice.

    Attributes:
        logits: (rows, columns), positive inside.
        memory: What it may be told about the next slice; its own low-resolution logits.
        estimate: How much it overlaps with the truth, 0 where nothing is, where the network has learned to tell.
    """

    logits: np.ndarray
    memory: object = None
    estimate: float | None = None

    @property
    def mask(self) -> np.ndarray:
        """(rows, columns), boolean."""
        return self.logits > 0


Draw = Callable[[int, Given, object], Drawn]
"""A slice, what is said of it, and the memory of its neighbour, to what the network says."""
Keep = Callable[[int, np.ndarray], None]
"""Gets every slice that holds the structure, with its logits."""


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How neighbours are prompted.

    Attributes:
        margin: Pixels by which a neighbour's box grows.
        presence: The walk ends where the score is below this, 0 to 1.
    """

    margin: float
    presence: float


def follow(
    stack: Stack,
    grey: Callable[[int], np.ndarray],
    target: Target,
    draw: Draw,
    keep: Keep,
    *,
    manner: Manner | None,
) -> dict[int, float]:
    """Draw a structure on the prompted slices and, both ways, on those between and beyond.

    A slice without a prompt gets the box of its neighbour's mask, grown by a margin, and the neighbour's own answer.
    The walk skips to the next prompt, or ends, where `presence` falls below the threshold.

    Args:
        stack: The slices.
        grey: A slice as 8-bit grey values, (rows, columns).
        target: The structure.
        draw: The network.
        keep: Called once for each slice that holds the structure.
        manner: How to go on; None stays on the prompted slices.

    Returns:
        The presence score by slice; 1 where it was prompted.
    """
    start = target.start
    begun = draw(start, target.given[start], None)
    if not begun.mask.any():
        return {start: 0.0}
    keep(start, begun.logits)
    scores = {start: 1.0}
    inside = grey(start)[begun.mask].astype(np.float64)
    likes = (float(inside.mean()), max(float(inside.std()), _LEAST_SPREAD))
    for step in (1, -1):
        last, at, before = begun, start + step, True
        while target.first <= at <= target.last:
            given = target.given.get(at)
            if given is None and (manner is None or not before):
                at += step
                continue
            found = draw(at, *_request(stack, target, given, last if before else None, manner))
            if given is None:
                found = joined(found, last.mask)
            score = 1.0 if given is not None else presence(found, last.mask, grey(at), likes)
            scores[at] = round(score, 4)
            before = bool(found.mask.any()) and (manner is None or given is not None or score >= manner.presence)
            if before:
                keep(at, found.logits)
                last = found
            at += step
    return scores


def _request(
    stack: Stack, target: Target, given: Given | None, last: Drawn | None, manner: Manner | None
) -> tuple[Given, object]:
    """What the network is told of a slice: its own prompts first, its neighbour's where they say less."""
    if last is None or manner is None:
        assert given is not None, "a slice without prompt and neighbour is not drawn"
        return given, None
    carried = target.within_frame(around(last.mask, stack, manner.margin))
    if given is None:
        return Given(box=carried), last.memory
    return (given if given.box is not None else replace(given, box=carried)), None


def joined(found: Drawn, neighbour: np.ndarray) -> Drawn:
    """What was drawn without the pieces that lie nowhere on the mask of the neighbour: these are something else.

    Where the box of a neighbour reaches over another structure, a walk would go on with that one.
    """
    pieces, count = cast("tuple[np.ndarray, int]", ndimage.label(found.mask))
    if count < 2:
        return found
    kept = np.isin(pieces, np.unique(pieces[neighbour & found.mask]))
    return replace(found, logits=np.where(found.mask & ~kept, -np.abs(found.logits), found.logits))


def presence(found: Drawn, neighbour: np.ndarray, grey: np.ndarray, likes: tuple[float, float]) -> float:
    """Whether a structure is still there, 0 to 1: the network says so, and it lies on its neighbour.

    A network that has not learned to tell is judged by its mask: the border is certain, and the inside looks the same.

    Args:
        found: What was drawn.
        neighbour: Mask of the slice before, (rows, columns), not empty.
        grey: Of the slice, alike, 0 to 255.
        likes: Mean and spread of the grey values where the walk began.

    Returns:
        Overlap with the neighbour (share of the smaller) times the estimate of the network; without one, times
        stability (overlap of the masks one logit above and below the border) and exp(-d^2 / 2), d the distance of the
        mean grey values in units of the first spread.
    """
    mask, logits = found.mask, found.logits
    if not mask.any():
        return 0.0
    overlap = float((mask & neighbour).sum()) / float(min(mask.sum(), neighbour.sum()))
    if found.estimate is not None:
        return overlap * min(1.0, max(0.0, found.estimate))
    stability = float((logits > _OFFSET).sum()) / float((logits > -_OFFSET).sum())
    distance = (float(grey[mask].mean()) - likes[0]) / likes[1]
    return stability * overlap * float(np.exp(-(distance**2) / 2))
