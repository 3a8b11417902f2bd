"""What makes a header unusable, and what is repaired. The header alone decides; no voxel is touched here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from medseg.io.header import Header, Problem
from medseg.volume import Grid

ROUNDING = 1e-5  # directions stored in float32 or with six decimals are this exact
REPAIRABLE = 1e-2  # about half a degree; beyond it the grid is sheared on purpose (gantry tilt) or wrong
SMALLEST_SPACING = 1e-6  # mm
THICK_SLICES = 4.0  # slice thickness over pixel width
_FALLBACK_LIMIT = 8 << 30


def judge(
    header: Header, *, time_point: int | None, memory_limit: int | None
) -> tuple[np.ndarray | None, list[Problem]]:
    """The affine to use, None if there is none, and all findings.

    Args:
        header: As the reader found it.
        time_point: The chosen index into the fourth axis, if any.
        memory_limit: Bytes that decoded voxels may take; None for `default_memory_limit()`.
    """
    problems = list(header.problems)
    problems += _voxel_type_problems(header) + _shape_problems(header.shape, time_point)
    problems += _memory_problems(header, default_memory_limit() if memory_limit is None else memory_limit)
    affine, findings = repaired_affine(header.affine, header.shape)
    problems += findings
    if affine is not None and len(header.shape) >= 3:
        problems += _sampling_problems(Grid(header.shape[:3], affine))
    return affine, problems


def decoded_bytes(header: Header) -> int:
    """Bytes that one time point takes while it is decoded: the stored values, and the scaled ones beside them."""
    count = int(np.prod(header.shape[:3], dtype=object)) * header.components
    if header.decoded_itemsize is not None:
        return count * header.decoded_itemsize
    scaled = (header.source.slope, header.source.intercept) != (1.0, 0.0)
    return count * (header.dtype.itemsize + (scaled_dtype(header.dtype).itemsize if scaled else 0))


def scaled_dtype(stored: np.dtype) -> np.dtype:
    """The real type that holds slope times value plus intercept as exactly as the stored type deserves."""
    return np.dtype(np.float32 if stored.itemsize <= 2 or stored == np.float32 else np.float64)


def default_memory_limit() -> int:
    """Half of the memory of this machine or of this container, in bytes."""
    if not hasattr(os, "sysconf"):
        return _FALLBACK_LIMIT
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (text := container.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total // 2


def repaired_affine(affine: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray | None, list[Problem]]:
    """The affine with directions at right angles, or None where it cannot be used.

    Directions are replaced by the nearest orthonormal ones; spacings and the centre of the volume stay where they are.

    Args:
        affine: (4, 4) as the file says.
        shape: Voxels per axis.
    """
    if not np.isfinite(affine).all():
        return None, [
            _error("the affine must be finite, got NaN or infinite entries; set sform or qform and try again")
        ]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if lengths.min() < SMALLEST_SPACING:
        sizes = " x ".join(f"{size:.4g}" for size in lengths)
        return None, [_error(f"the voxel size must be positive, got {sizes} mm; correct the header and try again")]
    directions = affine[:3, :3] / lengths
    off = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if off <= ROUNDING:
        return affine, []
    if off > REPAIRABLE:
        kind = "an affine that is singular" if abs(np.linalg.det(directions)) < 1e-6 else "a sheared grid"
        text = (
            f"axes must be at right angles, got {kind}: direction cosines off by {off:.2g}, {REPAIRABLE:g} is repaired"
        )
        return None, [_error(f"{text}; resample the volume onto a right-angled grid")]
    left, _, right = np.linalg.svd(directions)
    repaired = affine.copy()
    repaired[:3, :3] = (left @ right) * lengths
    centre = (np.array([*shape[:3], 1, 1, 1][:3]) - 1) / 2
    repaired[:3, 3] += (affine[:3, :3] - repaired[:3, :3]) @ centre
    return repaired, [Problem("note", f"direction cosines were off by {off:.1g} and made orthonormal")]


def _voxel_type_problems(header: Header) -> list[Problem]:
    dtype = header.dtype
    if dtype.fields or header.components > 1:
        what = "colour (RGB)" if dtype.fields else f"{header.components} values"
        return [_error(f"expected one value per voxel, got {what} per voxel; convert to a grey-scale volume")]
    if dtype.kind == "c":
        return [_error(f"expected real voxels, got {dtype.name}; export magnitude or phase")]
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        return [_error(f"expected integer or real voxels of up to 64 bits, got {dtype.name}; convert to float32")]
    return []


def _shape_problems(shape: tuple[int, ...], time_point: int | None) -> list[Problem]:
    sizes = " x ".join(str(size) for size in shape)
    if len(shape) < 3:
        return [_error(f"expected a volume with three axes, got {len(shape)} ({sizes}); stack the slices to a volume")]
    if len(shape) > 4:
        return [_error(f"expected a scalar volume, got {len(shape)} axes ({sizes}); extract one component")]
    if len(shape) == 4 and time_point is None:
        return [
            _error(
                f"expected one volume, got {shape[3]} time points ({sizes}); "
                f"choose one from 0 to {shape[3] - 1} with --time-point"
            )
        ]
    return []


def _memory_problems(header: Header, limit: int) -> list[Problem]:
    needed = decoded_bytes(header)
    if needed <= limit:
        return []
    sizes = " x ".join(str(size) for size in header.shape[:3])
    text = f"{sizes} voxels need {needed / 2**30:.3g} GiB, the memory limit is {limit / 2**30:.3g} GiB"
    return [_error(f"{text}; crop or downsample the volume, or raise the limit")]


def _sampling_problems(grid: Grid) -> list[Problem]:
    ratio = max(grid.spacing) / min(grid.spacing)
    if min(grid.shape) == 1:
        return [Problem("warning", "the volume is a single slice; three-dimensional models need more")]
    if ratio > THICK_SLICES:
        return [
            Problem("warning", f"slices are {ratio:.1f} times thicker than pixels are wide; results are less reliable")
        ]
    return []


def _error(text: str) -> Problem:
    return Problem("error", text)
