"""A support set as a network sees it; what takes long is kept in files, and found again by weights and slices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.checkpoints import read_checkpoint
from medseg.errors import ModelMissing
from medseg.networks.sam2_sgp import Sam2Sgp
from medseg.networks.sam2_sgp_matching import Marks
from medseg.weights import save_weights
from medseg_pipelines.home import home
from medseg_pipelines.support_store import SupportCase, SupportSet
from medseg_pipelines.support_walk import Pool, SliceFrame, planes_of


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
            for at in case.showing(label):
                mask = frame.enter((case.labels[at] == label).astype(np.uint8))
                wanted = torch.from_numpy(mask).to(device)[None, None]
                found.append(_Example.of({name: x[at : at + 1] for name, x in known.items()}, wanted, network, number))
    return [_pool(found, device) for found in parts.values()]


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


def _pool(examples: Sequence[_Example], device: torch.device) -> Pool:
    """All slices of one structure."""
    marks = [each.marks for each in examples if each.marks is not None]
    return Pool(
        torch.cat([each.likeness for each in examples]),
        torch.cat([each.memory for each in examples]),
        torch.tensor([each.case for each in examples], device=device),
        Marks(*(torch.cat(column) for column in zip(*marks, strict=True))) if marks else None,
    )


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
