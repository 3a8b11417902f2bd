"""How an image is to be cut into regions: plain values, as a recipe holds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


def _require_positive(what: object, *names: str) -> None:
    for name in names:
        if getattr(what, name) <= 0:
            raise ValueError(f"{name} must be above 0, got {getattr(what, name)}")


def _require_smoothing(smoothing: float) -> None:
    if smoothing < 0:
        raise ValueError(f"smoothing must be 0 or more pixels, got {smoothing}")


@dataclass(frozen=True)
class Intensity:
    """Pixels of similar grey value, wherever they lie.

    Args:
        clusters: Most regions that there may be.
        smoothing: Standard deviation of a Gaussian against noise, in pixels of a slice; 0 for none.

    Raises:
        ValueError: A value is out of range.
    """

    clusters: int = 12
    smoothing: float = 1.0

    def __post_init__(self) -> None:
        _require_positive(self, "clusters")
        _require_smoothing(self.smoothing)


@dataclass(frozen=True)
class Superpixels:
    """Connected patches of similar size that follow edges.

    Args:
        count: About how many, per slice or in the volume.
        compactness: How much place weighs against grey value; small ones follow edges, large ones become squares.
        smoothing: Standard deviation of a Gaussian against noise, in pixels of a slice; 0 for none.
        iterations: Steps of the clustering.
        through_slices: Patches reach through slices, instead of being cut in each slice anew.

    Raises:
        ValueError: A value is out of range.
    """

    count: int = 200
    compactness: float = 0.05
    smoothing: float = 1.0
    iterations: int = 10
    through_slices: bool = False

    def __post_init__(self) -> None:
        _require_positive(self, "count", "compactness", "iterations")
        _require_smoothing(self.smoothing)


@dataclass(frozen=True)
class AutomaticMasks:
    """What Segment Anything finds from a grid of points, by the rules of its own mask generator.

    Args:
        checkpoint: Weights of a `vit_b`, `vit_l` or `vit_h`, as published; the size is read from them.
        points: Per side of the grid.
        overlap: Masks need a higher estimated overlap with the truth, up to 1; 0 asks for none.
        stability: Masks need at least this overlap of themselves, cut above and below the border, 0 to 1.
        offset: How far above and below, in logits.
        duplicates: Of masks whose boxes overlap more than this only the best stays, 0 to 1.

    Raises:
        ValueError: A value is out of range.
    """

    checkpoint: Path | None = None
    points: int = 32
    overlap: float = 0.88
    stability: float = 0.95
    offset: float = 1.0
    duplicates: float = 0.7

    def __post_init__(self) -> None:
        _require_positive(self, "points")
