"""Slices segmented one after the other by the example of a support set, and how far runs without one case agree.

Bundles carry this as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medseg.geometry import Chain, Pad, Resample
from medseg.networks.sam2 import Features
from medseg.networks.sam2_memory import Memories
from medseg.networks.sam2_sgp import Recalled, Sam2Sgp, Segmented
from medseg.networks.sam2_sgp_matching import Marks
from medseg.volume import Grid, Volume


@dataclass(frozen=True)
class SliceFrame:
    """The way from a slice to the square that the network sees, and back.

    Attributes:
        chain: Resampled to square pixels, then filled up around the middle.
    """

    chain: Chain

    @classmethod
    def of(cls, shape: tuple[int, int], spacing: tuple[float, float], side: int, extent: float) -> SliceFrame:
        """For slices of a shape (rows, columns) and a spacing (mm) in a square of `side` pixels.

        Args:
            shape: Rows and columns.
            spacing: mm per row and column.
            side: Of the square.
            extent: mm across it at least; a larger slice is made to fit.
        """
        grid = Grid((*shape, 1), np.diag([*spacing, 1.0, 1.0]))
        sides = (size * step for size, step in zip(shape, spacing, strict=True))
        pixel = max(extent, *sides) / side
        resample = Resample.to_spacing(grid, (pixel, pixel, 1.0))
        return cls(Chain((resample, Pad.to_shape(resample.after, (side, side, 1)))))

    def enter(self, plane: NDArray[np.floating] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """(rows, columns) to (side, side), float32; ids, which are uint8, take the nearest."""
        kind = "labels" if plane.dtype == np.uint8 else "image"
        volume = Volume(np.asarray(plane)[..., None], self.chain.steps[0].before.affine, kind=kind)
        return self.chain.apply(volume).voxels[..., 0].astype(np.float32)

    def leave(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        """(side, side) back to (rows, columns)."""
        return self.chain.undo(Volume(plane[..., None], self.chain.steps[-1].after.affine)).voxels[..., 0]


@dataclass(frozen=True)
class Pool:
    """The slices that show one structure.

    Attributes:
        likeness: Their embeddings, flat and of length 1, (S, N), float16.
        memory: (S, m, g, g).
        case: Number of the case of each, (S,).
        marks: Where a network matches places; float16.
    """

    likeness: Tensor
    memory: Tensor
    case: Tensor
    marks: Marks | None

    def nearest(self, deep: Tensor, without: Sequence[int | None], count: int) -> Tensor:
        """The slices most like a query (1, C, g, g), for each run without a case, (runs, K)."""
        query = F.normalize(deep.float().flatten(1), dim=1)[0]
        scores = torch.stack([each.float() @ query for each in self.likeness])  # one by one: a pool may be large
        left = [
            (self.case != gone) if gone is not None else torch.ones_like(self.case, dtype=torch.bool)
            for gone in without
        ]
        few = min(count, *(int(allowed.sum()) for allowed in left))
        chosen = [scores.masked_fill(~allowed, -torch.inf).topk(few).indices for allowed in left]
        return torch.stack(chosen)


@dataclass
class _Counts:
    """Pixels of each run, and common to each two, summed over slices."""

    common: NDArray[np.float64]

    def add(self, masks: Tensor) -> None:
        """Masks of one slice, (runs, side, side), boolean."""
        flat = masks.flatten(1).float()
        self.common += (flat @ flat.mT).double().cpu().numpy()

    def agreement(self) -> float | None:
        """Mean Dice of each two runs, 1 where both found nothing; None for a single run."""
        runs = len(self.common)
        if runs < 2:
            return None
        sizes = np.diag(self.common)
        pairs = [(i, j) for i in range(runs) for j in range(i)]
        both = [(2 * self.common[i, j], sizes[i] + sizes[j]) for i, j in pairs]
        return float(np.mean([twice / total if total else 1.0 for twice, total in both]))


@dataclass
class Walk:
    """One pass through slices; every structure and every run remembers its own slices.

    Args:
        network: In evaluation mode.
        pools: One per structure.
        without: The case that each run leaves out; None for the run with all.
        count: Examples per slice.
        device: Of the network.

    Attributes:
        doubt: Of the last slice, (side, side): 0 where all runs agree on every structure, 1 where they are halved.
    """

    network: Sam2Sgp
    pools: Sequence[Pool]
    without: Sequence[int | None]
    count: int
    device: torch.device
    doubt: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    _banks: list[list[Memories]] = field(default_factory=list)
    _counts: list[_Counts] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._banks = [[] for _ in self.pools]
        self._counts = [_Counts(np.zeros((len(self.without),) * 2)) for _ in self.pools]

    @torch.inference_mode()
    def step(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        """Segment the next slice.

        Args:
            plane: (channels, side, side), 0 to 1.

        Returns:
            Probability of each structure, the mean over all runs, (structures, side, side).
        """
        self.doubt = np.zeros(plane.shape[1:], np.float32)
        if not plane.any():  # nothing to be seen, and nothing to be remembered
            return np.zeros((len(self.pools), *plane.shape[1:]), np.float32)
        pixels = torch.from_numpy(plane).to(self.device).expand(3, -1, -1)[None]
        features = self.network.features(pixels)
        return np.stack([self._one(number, features) for number in range(len(self.pools))])

    def agreement(self) -> list[float | None]:
        """Of the runs, per structure, over all slices so far: mean Dice of each two; None with one run."""
        return [counts.agreement() for counts in self._counts]

    def _one(self, number: int, features: Features) -> NDArray[np.float32]:
        """Probability of one structure, (side, side)."""
        network, bank = self.network, self._banks[number]
        found = ask(network, self.pools[number], features, self.without, self.count, bank)
        if network.bank_size:
            bank.append(network.remember(network.memory(found.embedding, found.logits)))
            del bank[: -network.bank_size]
        probability = found.logits[:, 0].float().sigmoid()
        drawn = probability > 0.5
        self._counts[number].add(drawn)
        self.doubt = np.maximum(self.doubt, 1 - (2 * drawn.float().mean(0) - 1).abs().cpu().numpy())
        return probability.mean(0).cpu().numpy()


def ask(
    network: Sam2Sgp,
    pool: Pool,
    features: Features,
    without: Sequence[int | None],
    count: int,
    bank: Sequence[Memories] = (),
) -> Segmented:
    """What each run says of one structure in one slice.

    Args:
        network: In evaluation mode.
        pool: Of the structure.
        features: Of the slice, one image.
        without: The case that each run leaves out.
        count: Examples that it reads.
        bank: What the runs remember of earlier slices.
    """
    chosen = pool.nearest(features.deep, without, count)
    keys = [network.remember(pool.memory[which]) for which in chosen]
    examples = Memories(
        torch.stack([each.tokens.flatten(0, 1) for each in keys]),
        [
            torch.stack([layer.flatten(0, 1) for layer in layers])
            for layers in zip(*(k.keys for k in keys), strict=True)
        ],
    )
    marks = None if pool.marks is None else pool.marks.chosen(chosen).full()
    spread = Features(*(part.expand(len(without), -1, -1, -1) for part in features))
    return network.segment(spread, Recalled(examples, marks).behind(bank))


def runs_without(cases: int, resamples: int) -> list[int | None]:
    """The case that each run leaves out: none first, then one after the other."""
    return [None, *range(min(cases, resamples))]


def planes_of(image: NDArray[np.floating], frame: SliceFrame) -> NDArray[np.float32]:
    """(rows, columns, channels) as the network takes it, (channels, side, side)."""
    channels = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    return np.stack([frame.enter(channel) for channel in channels])


def slices_along(axis: int, prepared: Volume, side: int, extent: float) -> tuple[NDArray[np.float32], SliceFrame]:
    """The slices of a volume in RAS along one of its axes, (n, rows, columns), and the frame that they all have.

    Args:
        axis: 0, 1 or 2.
        prepared: Grey values from 0 to 1.
        side: Of what the network sees.
        extent: mm across it at least.
    """
    stack = np.moveaxis(prepared.voxels, axis, 0)
    rows, columns = (step for number, step in enumerate(prepared.spacing) if number != axis)
    return stack, SliceFrame.of(stack.shape[1:3], (rows, columns), side, extent)


def labelled(
    found: NDArray[np.float32], frame: SliceFrame, ids: Sequence[int], threshold: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Label ids on the pixels of a slice and their probabilities there.

    Args:
        found: Probabilities as `Walk.step` gives them, (structures, side, side).
        frame: Of the slice.
        ids: Of the structures.
        threshold: A pixel is labelled where its largest probability is above.

    Returns:
        (rows, columns) and (structures, rows, columns).
    """
    probability = np.stack([frame.leave(plane) for plane in found])
    likely = probability.max(0) > threshold
    return np.where(likely, np.array(ids, np.uint8)[probability.argmax(0)], 0).astype(np.uint8), probability
