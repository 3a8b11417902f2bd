"""Slices segmented one after the other by the example of a support set, and how far runs without one case agree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medseg.checkpoints import read_checkpoint
from medseg.errors import ModelMissing
from medseg.geometry import Chain, Pad, Resample
from medseg.networks.sam2 import Features
from medseg.networks.sam2_memory import Memories
from medseg.networks.sam2_sgp import Recalled, Sam2Sgp
from medseg.networks.sam2_sgp_matching import Marks
from medseg.volume import Grid, Volume
from medseg.weights import save_weights
from medseg_pipelines.home import home
from medseg_pipelines.support_store import SupportCase, SupportSet


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

    @staticmethod
    def of(examples: Sequence[_Example], device: torch.device) -> Pool:
        """All slices of one structure."""
        marks = [each.marks for each in examples if each.marks is not None]
        return Pool(
            torch.cat([each.likeness for each in examples]),
            torch.cat([each.memory for each in examples]),
            torch.tensor([each.case for each in examples], device=device),
            Marks(*(torch.cat(column) for column in zip(*marks, strict=True))) if marks else None,
        )

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
        runs = len(self.without)
        spread = Features(*(part.expand(runs, -1, -1, -1) for part in features))
        return np.stack([self._one(number, features.deep, spread) for number in range(len(self.pools))])

    def agreement(self) -> list[float | None]:
        """Of the runs, per structure, over all slices so far: mean Dice of each two; None with one run."""
        return [counts.agreement() for counts in self._counts]

    def _one(self, number: int, deep: Tensor, spread: Features) -> NDArray[np.float32]:
        """Probability of one structure, (side, side)."""
        network, pool, bank = self.network, self.pools[number], self._banks[number]
        chosen = pool.nearest(deep, self.without, self.count)
        keys = [network.remember(pool.memory[which]) for which in chosen]
        examples = Memories(
            torch.stack([each.tokens.flatten(0, 1) for each in keys]),
            [
                torch.stack([layer.flatten(0, 1) for layer in layers])
                for layers in zip(*(k.keys for k in keys), strict=True)
            ],
        )
        marks = None if pool.marks is None else pool.marks.chosen(chosen).full()
        found = network.segment(spread, Recalled(examples, marks).behind(bank))
        if network.bank_size:
            bank.append(network.remember(network.memory(found.embedding, found.logits)))
            del bank[: -network.bank_size]
        probability = found.logits[:, 0].float().sigmoid()
        drawn = probability > 0.5
        self._counts[number].add(drawn)
        self.doubt = np.maximum(self.doubt, 1 - (2 * drawn.float().mean(0) - 1).abs().cpu().numpy())
        return probability.mean(0).cpu().numpy()


def runs_without(cases: int, resamples: int) -> list[int | None]:
    """The case that each run leaves out: none first, then one after the other."""
    return [None, *range(min(cases, resamples))]


@torch.inference_mode()
def pools_of(support: SupportSet, network: Sam2Sgp, *, weights: str, side: int, device: torch.device) -> list[Pool]:
    """A support set as a network sees it, one pool per structure.

    Args:
        support: The set.
        network: In evaluation mode.
        weights: Their sha256: encoded slices are kept under it.
        side: Of what the network sees.
        device: Of the network.
    """
    extent = support.extent if support.card.kind == "volumes" else 0.0  # pictures have no common scale
    cache = support.cache or home() / "support-cache"
    parts: dict[int, list[_Example]] = {label.id: [] for label in support.card.labels}
    for number, case in enumerate(support.cases):
        frame = SliceFrame.of(case.labels.shape[1:3], case.spacing, side, extent)
        key = hashlib.sha256(f"{weights} {side} {extent!r} {case.digest()}".encode()).hexdigest()
        known = _embedded(case, frame, network, cache / f"{key}.safetensors", device)
        for label, found in parts.items():
            for at in np.flatnonzero((case.labels == label).any((1, 2))).tolist():
                mask = frame.enter((case.labels[at] == label).astype(np.uint8))
                wanted = torch.from_numpy(mask).to(device)[None, None]
                found.append(_Example.of({name: x[at : at + 1] for name, x in known.items()}, wanted, network, number))
    return [Pool.of(found, device) for found in parts.values()]


class _Example(NamedTuple):
    """One slice of a support set with one structure: likeness and memory as in `Pool`, its marks and its case."""

    likeness: Tensor
    memory: Tensor
    marks: Marks | None
    case: int

    @staticmethod
    def of(known: dict[str, Tensor], mask: Tensor, network: Sam2Sgp, case: int) -> _Example:
        """From what `_embedded` keeps of the slice, and its mask (1, 1, side, side)."""
        deep = known["deep"].to(mask.device).float()
        marks = Marks.of(known["places"].to(mask.device), mask) if "places" in known else None
        return _Example(F.normalize(deep.flatten(1), dim=1).half(), network.outlined(deep, mask), marks, case)


def planes_of(image: NDArray[np.floating], frame: SliceFrame) -> NDArray[np.float32]:
    """(rows, columns, channels) as the network takes it, (channels, side, side)."""
    channels = np.moveaxis(np.asarray(image, np.float32), -1, 0)
    return np.stack([frame.enter(channel) for channel in channels])


def _embedded(
    case: SupportCase, frame: SliceFrame, network: Sam2Sgp, path: Path, device: torch.device
) -> dict[str, Tensor]:
    """Of the slices of a case, `deep` (n, C, g, g) and, where places are matched, `places` (n, P, D); float16.

    Kept in a file named by slices and weights.
    """
    kept = _kept(path)
    if len(kept.get("deep", ())) == len(case.images):
        return kept
    found: dict[str, list[Tensor]] = {}
    matcher = network.matcher
    for image in case.images:
        pixels = torch.from_numpy(planes_of(image, frame)).to(device).expand(3, -1, -1)[None]
        features = network.features(pixels)
        found.setdefault("deep", []).append(features.deep.half().cpu())
        if matcher is not None:
            found.setdefault("places", []).append(matcher(features).half().cpu())
    known = {name: torch.cat(column) for name, column in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(known, path)
    return known


def _kept(path: Path) -> dict[str, Tensor]:
    """What an earlier run kept; nothing where there is none or it is damaged."""
    try:
        return dict(read_checkpoint(path))
    except ModelMissing:
        return {}
