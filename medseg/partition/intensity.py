"""Regions of similar grey value: one-dimensional k-means, solved exactly on a histogram."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medseg.intensity import rescale_percentiles
from medseg.partition.description import Intensity

_BINS = 512
_RANGE = (0.1, 99.9)  # percentiles; the few values outside, metal or wrap-around, join the last clusters


def cut(slices: np.ndarray, how: Intensity, spacing: tuple[float, float, float]) -> np.ndarray:
    """Ids 1, 2, ... from dark to bright, (X, Y, S), int32; the same grey value has the same id in all slices."""
    levels = rescale_percentiles(slices, *_RANGE, top=1.0)
    if how.smoothing:
        sigma = [how.smoothing * min(spacing[:2]) / step for step in spacing]
        ndimage.gaussian_filter(levels, sigma, output=levels, truncate=3.0)
    levels *= _BINS - 1
    bins = np.rint(levels, out=levels).astype(np.int16)
    counts = np.bincount(bins.reshape(-1), minlength=_BINS)
    return cluster_of_bins(counts, how.clusters)[bins]


def cluster_of_bins(counts: np.ndarray, clusters: int) -> np.ndarray:
    """The cut of a histogram into intervals with the least variance inside them; no start values, no chance.

    Best cuts of the first bins into one cluster more follow from those into one less.

    Args:
        counts: Pixels in each bin, (bins,).
        clusters: Most intervals; fewer if fewer bins hold anything.

    Returns:
        Number of each bin's interval from 1 on, (bins,), int32; an empty bin goes with the next lower one.
    """
    used = np.flatnonzero(counts)
    loss = _variances(used.astype(np.float64), counts[used].astype(np.float64))
    best, starts = loss[0], []  # of the first j + 1 bins: least loss, and where their last interval starts
    for _ in range(min(clusters, len(used)) - 1):
        total = loss[1:] + best[:-1, None]  # [i - 1, j]: the last interval starts at bin i
        starts.append(1 + total.argmin(axis=0))
        best = np.concatenate(([np.inf], total.min(axis=0)[1:]))
    firsts, end = np.zeros(len(counts), np.int32), len(used) - 1
    for start in reversed(starts):
        firsts[used[start[end]]] = 1
        end = start[end] - 1
    return firsts.cumsum(dtype=np.int32) + np.int32(1)


def _variances(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted squares around the mean of x[i], ..., x[j] at [i, j]; infinite where i > j."""
    sums = [np.concatenate(([0.0], np.cumsum(weight * x**power))) for power in range(3)]
    mass, first, second = (total[None, 1:] - total[:-1, None] for total in sums)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mass > 0, second - first**2 / mass, np.inf)
