"""Separate things of one kind, such as nuclei that touch: what a network learns of them, and the way back.

A network draws two masks: the things, and the core of each, which is at least half as deep inside as the deepest place.
Cores of neighbours do not touch, so each becomes the seed of one watershed region.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure
from skimage.segmentation import find_boundaries, watershed

OUTPUTS = 2  # of the network: things, and their cores
CORE = 0.5  # of the depth of the deepest place


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How probabilities become separate things.

    Attributes:
        threshold: A pixel belongs to a thing above this probability.
        core: It belongs to a core above this one.
        smallest: Things with fewer pixels are dropped.
        block: Side in pixels of the squares that are cut apart at once.
        halo: Pixels seen around a square; a thing may be that large.
    """

    threshold: float = 0.5
    core: float = 0.5
    smallest: int = 0
    block: int = 1024
    halo: int = 128


def instance_targets(ids: NDArray[np.integer]) -> NDArray[np.float32]:
    """What a network learns of separate things.

    Args:
        ids: One number per thing, 0 for the background, (H, W).

    Returns:
        Things and their cores, (2, H, W), 0 or 1.
    """
    things = ids > 0
    inner = things & ~find_boundaries(ids, connectivity=2, mode="inner")
    depth = np.where(things, np.asarray(ndimage.distance_transform_edt(inner)) + 1, 0)
    deepest = np.zeros(int(ids.max()) + 1)
    np.maximum.at(deepest, ids.ravel(), depth.ravel())
    return np.stack((things, things & (depth >= CORE * deepest[ids] + 0.5))).astype(np.float32)


def separate(found: NDArray[np.uint8], options: Separation) -> NDArray[np.int32]:
    """Cut what a network found into separate things, square by square.

    A thing belongs to the square with the first pixel of its seed, so none is counted twice. Beside the arguments,
    memory holds the result and one square.

    Args:
        found: Probabilities of things and cores, (2, H, W), 0 to 255 for 0 to 1.
        options: Thresholds and sizes.

    Returns:
        1 to n in the order of the squares, 0 for the background, (H, W).
    """
    ids, count = np.zeros(found.shape[1:], np.int32), 0
    for outer, inner in _squares(found.shape[1:], options):
        pieces, firsts = _pieces(found[(slice(None), *outer)], options)
        top, left = outer[0].start, outer[1].start
        own = np.zeros(len(firsts) + 1, np.int32)
        for number, (row, column) in enumerate(firsts, start=1):
            if inner[0].start <= row + top < inner[0].stop and inner[1].start <= column + left < inner[1].stop:
                count += 1
                own[number] = count
        here, new = ids[outer], own[pieces]
        free = (here == 0) & (new > 0)
        here[free] = new[free]
    return _without_small(ids, options.smallest)


def _squares(size: tuple[int, ...], options: Separation) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Each square with its halo, and without."""
    height, width = size
    for row in range(0, height, options.block):
        for column in range(0, width, options.block):
            inner = (slice(row, row + options.block), slice(column, column + options.block))
            yield (
                (
                    slice(max(0, row - options.halo), min(height, row + options.block + options.halo)),
                    slice(max(0, column - options.halo), min(width, column + options.block + options.halo)),
                ),
                inner,
            )


def _pieces(found: NDArray[np.uint8], options: Separation) -> tuple[NDArray[np.int32], list[tuple[int, int]]]:
    """One square cut apart, (h, w), and the first pixel of each seed, row and column."""
    things = found[0] > 255 * options.threshold
    seeds = things & (found[1] > 255 * options.core)
    islands = _islands(things)
    seeded = np.zeros(islands.max() + 1, bool)
    seeded[islands[seeds]] = True
    seeds |= things & ~seeded[islands]  # a thing without a core is its own seed
    markers = _islands(seeds)
    pieces = watershed(255 - found[1], markers, mask=things, connectivity=2)
    where = np.flatnonzero(markers)
    _, first = np.unique(markers.ravel()[where], return_index=True)
    rows, columns = np.divmod(where[first], markers.shape[1])
    return pieces.astype(np.int32), list(zip(rows.tolist(), columns.tolist(), strict=True))


def _islands(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Connected pixels, corners included, numbered from 1."""
    return np.asarray(measure.label(mask, connectivity=2)).astype(np.int32)


def _without_small(ids: NDArray[np.int32], smallest: int) -> NDArray[np.int32]:
    """Things with enough pixels, numbered anew without gaps."""
    sizes = np.bincount(ids.ravel())
    keep = sizes >= max(1, smallest)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[ids]
