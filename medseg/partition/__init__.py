"""Image to region map: what pixels attend to each other in RAT.

Partitioners read the degraded image as it is. Two need nothing but the image; the third lets Segment Anything propose
masks. None of them loads torch or scikit-image before it is used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medseg.partition.description import AutomaticMasks, Intensity, Superpixels

__all__ = ["AutomaticMasks", "Intensity", "Partitioner", "Superpixels", "partition"]

Partitioner = Intensity | Superpixels | AutomaticMasks


def partition(
    slices: np.ndarray,
    how: Partitioner,
    *,
    spacing: tuple[float, float, float] | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Cut a stack of slices into regions; the same input gives the same regions.

    Args:
        slices: Grey values in any unit, finite, (X, Y, S); the last axis counts slices.
        how: The partitioner and its options.
        spacing: Of the voxels in mm; cubes if not given.
        device: Where the network of `AutomaticMasks` runs.
        progress: Called with the slices done and all slices; may raise to stop.

    Returns:
        Region ids from 1 on, (X, Y, S), int32. An image without contrast is one region. Only `Intensity`, and
        `Superpixels` through slices, give a region the same id in all slices.

    Raises:
        ValueError: The slices do not form a stack, are empty, or hold NaN or infinity.
        ModelMissing: `AutomaticMasks` lacks its checkpoint or its package, or the checkpoint is none of SAM's.
    """
    if slices.ndim != 3 or not slices.size:
        raise ValueError(f"slices must be (X, Y, S) and not empty, got {slices.shape}")
    if not np.isfinite(slices).all():
        raise ValueError("slices must be finite; replace NaN and infinity first")
    spacing = (1.0, 1.0, 1.0) if spacing is None else spacing
    if isinstance(how, Superpixels):
        from medseg.partition import superpixels  # scikit-image takes longer to load than the other partitioner to run

        return superpixels.cut(slices, how, spacing, progress)
    if isinstance(how, AutomaticMasks):
        from medseg.partition import automatic_masks  # loads torch

        return automatic_masks.cut(slices, how, device, progress)
    from medseg.partition import intensity  # loads scipy

    found = intensity.cut(slices, how, spacing)
    if progress:
        progress(slices.shape[2], slices.shape[2])
    return found
