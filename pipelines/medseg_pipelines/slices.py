"""A volume as the slices that a 2D network restores: which way they lie, how they are scaled, what it sees of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medseg.guide import MARGIN, non_local_means, tissue_noise
from medseg.noise import noise_map
from medseg.volume import Volume

_COARSER = 1.1  # an axis whose spacing exceeds the others by less is taken as equal to them
_SAMPLES = 1 << 20


class SliceOptions(Protocol):
    """What is asked of the `slices` section of a recipe, or of the like of it in a bundle."""

    @property
    def context(self) -> int:
        """Slices that the network sees at once, an odd number."""
        ...

    @property
    def noise_map(self) -> bool:
        """Whether it sees the noise level too."""
        ...

    @property
    def guide(self) -> bool:
        """Whether it sees the volume by non-local means too, and starts from that."""
        ...

    @property
    def alike(self) -> float:
        """Noise levels within which voxels of the result look alike; 0: no structure is given back."""
        ...

    @property
    def source(self) -> tuple[float, float] | None:
        """Grey values that become 0 and 1; None: 0 and the percentile."""
        ...

    @property
    def percentile(self) -> float:
        """Of all voxels."""
        ...

    @property
    def limits(self) -> tuple[float, float]:
        """Where scaled values are cut off."""
        ...

    @property
    def batch(self) -> int:
        """Slices at once."""
        ...


@dataclass(frozen=True)
class PlainSlices:
    """The options as plain values, which need no recipe."""

    context: int
    noise_map: bool
    guide: bool
    alike: float
    source: tuple[float, float] | None
    percentile: float
    limits: tuple[float, float]
    batch: int

    @classmethod
    def of(cls, options: SliceOptions) -> PlainSlices:
        """Those of a recipe."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Scaling:
    """The linear step from grey values to what the network sees: `low` becomes 0, `high` becomes 1."""

    low: float
    high: float

    @classmethod
    def of(cls, voxels: np.ndarray, options: SliceOptions) -> Scaling:
        """The scaling that a recipe asks for on these grey values, any shape."""
        if options.source is not None:
            return cls(*options.source)
        return cls.of_percentile(voxels, options.percentile)

    @classmethod
    def of_percentile(cls, voxels: np.ndarray, percentile: float) -> Scaling:
        """0 stays 0, and a percentile of all voxels becomes 1."""
        step = max(1, voxels.size // _SAMPLES)
        high = float(np.percentile(voxels.reshape(-1)[::step], percentile))
        return cls(0.0, high if high > 0 else float(voxels.max()) or 1.0)

    @property
    def width(self) -> float:
        """Grey values per unit."""
        return self.high - self.low

    def apply(self, voxels: np.ndarray) -> np.ndarray:
        """Grey values to float32 in units of the network."""
        return (voxels.astype(np.float32) - np.float32(self.low)) / np.float32(self.width)


def slice_axis(volume: Volume) -> int:
    """The array axis that slices are stacked along: the coarsest one, else the one nearest to foot-head."""
    spacing = np.asarray(volume.spacing)
    coarse = int(spacing.argmax())
    if spacing[coarse] > _COARSER * np.delete(spacing, coarse).max():
        return coarse
    return volume.grid.axes[0].index(2)


def stacked(voxels: np.ndarray, axis: int) -> np.ndarray:
    """The axis of the slices moved to the end, a view."""
    return np.moveaxis(voxels, axis, 2)


def unstacked(stack: np.ndarray, axis: int) -> np.ndarray:
    """The way back from `stacked`, a view."""
    return np.moveaxis(stack, 2, axis)


def find_guide(stack: np.ndarray, chosen: list[int], level: float | None = None) -> np.ndarray:
    """Some slices by non-local means among all of them; see `medseg.guide`.

    Args:
        stack: (X, Y, S), in units of the network, cut off at the recipe's limits.
        chosen: Indices of the slices.
        level: Noise level in units of the network; None to estimate it.

    Returns:
        (X, Y, chosen), float32.
    """
    image = torch.from_numpy(stack)
    level = tissue_noise(image) if level is None else level
    first, last = max(0, min(chosen) - MARGIN), min(stack.shape[2], max(chosen) + 1 + MARGIN)
    found = non_local_means(image[:, :, first:last], level).numpy()
    return found[:, :, [number - first for number in chosen]]


def network_input(
    stack: np.ndarray,
    chosen: list[int],
    options: SliceOptions,
    level: float | None = None,
    guide: np.ndarray | None = None,
    noise: np.ndarray | None = None,
) -> Tensor:
    """What the network sees of some slices: their neighbours, themselves, the guide, and the noise level.

    Args:
        stack: (X, Y, S), in units of the network, cut off at the recipe's limits.
        chosen: Indices of the slices to restore.
        options: Of the recipe.
        level: Noise level in units of the network, None to estimate it around every pixel.
        guide: The chosen slices from `find_guide`, which is called where they are needed and not given.
        noise: The noise level of every pixel of the chosen slices, found here where no level is given.

    Returns:
        (B, context + guide + noise map, X, Y); beyond the first and last slice those are repeated.
    """
    reach = options.context // 2
    around = np.clip(np.asarray(chosen)[:, None] + np.arange(-reach, reach + 1), 0, stack.shape[2] - 1)
    channels = [np.moveaxis(stack[:, :, around], (2, 3), (0, 1))]
    if options.guide:
        guide = find_guide(stack, chosen, level) if guide is None else guide
        channels.append(np.moveaxis(guide, 2, 0)[:, None])
    if options.noise_map:
        middle = stack[:, :, chosen]
        if noise is None:
            noise = noise_map(middle) if level is None else np.full(middle.shape, level, np.float32)
        channels.append(np.moveaxis(noise, 2, 0)[:, None])
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(channels, axis=1), np.float32))


def holds_magnitudes(options: SliceOptions) -> bool:
    """Whether voxels are magnitudes, as in MR: nothing else that is restored here is never negative."""
    return options.limits[0] >= 0


def channels_of(options: SliceOptions, *, colours: int = 1) -> int:
    """Channels that the network must take."""
    return options.context * colours + int(options.guide) + int(options.noise_map)


def restored_slice(seen: Tensor, found: Tensor, *, context: int, guide: bool) -> Tensor:
    """The restored slices among what the network gives.

    With a guide the network says two things of each pixel: what is to be added to the guide, and which share is given
    back of what the guide took from the slice. Both start at 0.

    Args:
        seen: From `network_input`, (B, C, X, Y).
        found: What the network made of it: its input with something added, same shape.
        context: Slices that it saw.
        guide: Whether it saw one.

    Returns:
        (B, 1, X, Y).
    """
    middle = context // 2
    whole = found[:, middle : middle + 1]
    if not guide:
        return whole
    noisy, clean = seen[:, middle : middle + 1], seen[:, context : context + 1]
    return found[:, context : context + 1] + (whole - noisy) * (noisy - clean)
