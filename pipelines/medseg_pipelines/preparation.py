"""An image as a network sees it, and the exact way back; plain numbers in, so that it also travels in bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.geometry import Chain, Crop, Reorient, Resample, Spacing, Step, foreground_box
from medseg.intensity import rescale_percentiles
from medseg.volume import Grid, Volume

_SAMPLES = 1 << 20  # a million voxels fix a percentile to far below the noise


def prepare(
    volume: Volume,
    *,
    orientation: str | None,
    margin: float | None,
    spacing: Spacing | None,
    percentiles: Sequence[float],
    intensity: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[Volume, Chain]:
    """The image as the network sees it, and the way back.

    What holds nothing but the smallest value is cut off before resampling: the empty frame around a brain whose skull
    was removed costs windows and shifts the percentiles, and nothing is lost with it.

    Args:
        volume: As it was read.
        orientation: "RAS", or None to leave the axes alone.
        margin: mm kept around what is not background; None cuts nothing off.
        spacing: mm; None leaves the spacing alone.
        percentiles: The two that become 0 and 1, where `intensity` is not given.
        intensity: Steps for `rescale`, in their order, in place of the percentiles.
    """
    box = None
    if margin is not None:
        turned = _turn(volume.grid, orientation).apply(volume)
        box = foreground_box(turned, above=float(volume.voxels.min()), margin=margin)
    chain = way(volume.grid, orientation=orientation, box=box, spacing=spacing)
    moved = chain.apply(volume)
    if intensity is None:
        grey = rescale_percentiles(moved.voxels, percentiles[0], percentiles[1])
    else:
        grey = moved.voxels.astype(np.float32)
        for step in intensity:
            grey = rescale(grey, **step)
    return moved.with_voxels(grey), chain


def way(grid: Grid, *, orientation: str | None, box: Sequence[Sequence[int]] | None, spacing: Spacing | None) -> Chain:
    """The steps from a grid to that of the network, rebuilt from plain numbers.

    Args:
        grid: Of the image.
        orientation: "RAS" or None.
        box: First and one past the last index per axis after turning, or None.
        spacing: mm or None.
    """
    steps: list[Step] = [_turn(grid, orientation)]
    if box is not None:
        x, y, z = ((int(low), int(high)) for low, high in box)
        steps.append(Crop.to_box(steps[-1].after, (x, y, z)))
    if spacing is not None:
        steps.append(Resample.to_spacing(steps[-1].after, spacing))
    return Chain(tuple(steps))


def rescale(
    voxels: np.ndarray,
    *,
    kind: str,
    source: Sequence[float] | None = None,
    target: Sequence[float] = (0.0, 1.0),
    clip: bool = False,
    nonzero: bool = False,
) -> np.ndarray:
    """One linear step on grey values.

    Args:
        voxels: float32, any shape.
        kind: "range" maps `source` to `target`; "percentiles" takes `source` as percentiles of all voxels; "extremes"
            maps the smallest and largest value to `target`; "z-score" gives mean 0 and standard deviation 1.
        source: Two rising numbers, for "range" and "percentiles".
        target: What they become.
        clip: Cut off what lies outside `target`.
        nonzero: For "z-score": measure and change only voxels that are not 0.

    Raises:
        ValueError: There is no such kind.
    """
    if kind == "z-score":
        return _standardised(voxels, nonzero=nonzero)
    if kind == "extremes":
        low, high = float(voxels.min()), float(voxels.max())
    elif kind in ("range", "percentiles") and source is not None:
        low, high = source
    else:
        raise ValueError(f"kind must be range, percentiles (both with source), extremes or z-score, got {kind!r}")
    if kind == "percentiles":
        step = max(1, voxels.size // _SAMPLES)
        low, high = (float(v) for v in np.percentile(voxels.reshape(-1)[::step], [low, high]))
    bottom, top = target
    width = (high - low) or 1.0  # a constant image becomes `bottom`
    scaled = (voxels - np.float32(low)) / np.float32(width) * np.float32(top - bottom) + np.float32(bottom)
    return np.clip(scaled, bottom, top, out=scaled) if clip else scaled


def _standardised(voxels: np.ndarray, *, nonzero: bool) -> np.ndarray:
    chosen = voxels != 0 if nonzero else np.ones(voxels.shape, bool)
    if not chosen.any():
        return voxels
    values = voxels[chosen].astype(np.float64)
    deviation = float(values.std()) or 1.0
    return np.where(chosen, (voxels - np.float32(values.mean())) / np.float32(deviation), voxels)


def _turn(grid: Grid, orientation: str | None) -> Reorient:
    if orientation is None:
        return Reorient(grid, grid, (0, 1, 2), (False, False, False))
    return Reorient.to_ras(grid)
