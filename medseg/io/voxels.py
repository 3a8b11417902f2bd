"""Stored values to the values of a volume, and labels to the smallest type that holds them."""

from __future__ import annotations

import numpy as np

from medseg.errors import InputRefused
from medseg.io.checks import scaled_dtype
from medseg.volume import Kind, Volume

_LABEL_TYPES = (np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64)  # smallest and most widely read first
_LABEL_ROUNDING = 1e-3  # 2.9999998 is a 3 that went through float32; 2.5 is no label


def scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """slope * stored + intercept, computed in float64 slice by slice; native byte order.

    Args:
        stored: (X, Y, Z) as the file holds them.
        slope: Finite and not 0; with 1.0 and an intercept of 0.0 the values keep their type.
        intercept: Finite.
    """
    if slope == 1.0 and intercept == 0.0:
        return stored.astype(stored.dtype.newbyteorder("="), copy=False)
    values = np.empty(stored.shape, scaled_dtype(stored.dtype), order="F")
    for z in range(stored.shape[2]):
        values[..., z] = stored[..., z].astype(np.float64) * slope + intercept
    return values


def finished(values: np.ndarray, kind: Kind) -> tuple[np.ndarray, list[str]]:
    """Values that are finite and, for labels, whole; and one sentence for each thing that was changed.

    Args:
        values: (X, Y, Z), any real type; may be changed in place.
        kind: "image" refuses a single value everywhere, "labels" refuses fractions.

    Raises:
        InputRefused: No finite voxel, a constant image, or labels that are no whole numbers.
    """
    low, high, notes = values.min(), values.max(), []
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max carry a NaN along, so no mask is needed before
        values, notes = _without_gaps(values)
        low, high = values.min(), values.max()
    if kind == "labels":
        return _whole(values), notes
    if low == high:
        raise InputRefused(f"expected an image with contrast, got the value {low:g} in every voxel; check its export")
    return values, notes


def narrowest(labels: np.ndarray) -> np.ndarray:
    """The same whole numbers in the smallest integer type that holds them."""
    low, high = int(labels.min()), int(labels.max())
    fits = (t for t in _LABEL_TYPES if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return labels.astype(next(fits, np.uint64), copy=False)


def storable(volume: Volume) -> np.ndarray:
    """Voxels in a type that every format has: labels and masks in the smallest integers, half precision in single."""
    voxels = volume.voxels
    if volume.kind == "labels" or voxels.dtype == bool:
        return narrowest(voxels)
    return voxels.astype(np.float32) if voxels.dtype == np.float16 else voxels


def _without_gaps(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    gaps = ~np.isfinite(values)
    if gaps.all():
        raise InputRefused("expected finite voxels, got none; check the export")
    undefined = int(np.isnan(values).sum())
    infinite = int(gaps.sum()) - undefined
    values = values if values.flags.writeable else values.copy()
    values[gaps] = 0
    counts = ((undefined, "NaN"), (infinite, "infinite"))
    return values, [f"{count} {name} voxels replaced by 0" for count, name in counts if count]


def _whole(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f":
        rounded = np.rint(values)
        off = float(np.abs(values - rounded).max())
        if off > _LABEL_ROUNDING:
            raise InputRefused(f"expected whole numbers as labels, got values off by {off:.2g}; read it as an image")
        if float(np.abs(rounded).max()) >= 2**53:
            raise InputRefused("expected labels below 2**53, got larger ones; read it as an image")
        values = rounded.astype(np.int64)
    return narrowest(values)
