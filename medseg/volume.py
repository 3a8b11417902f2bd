"""Voxels with an affine. Spacing and orientation follow from the affine and are never stored beside it.

Axes are those of the array, (X, Y, Z); the affine takes a voxel index to millimetres in RAS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from typing import Any, Literal

import numpy as np

Kind = Literal["image", "labels"]
Unit = Literal["mm", "um", "m", "unknown"]

_LETTERS = ("LR", "PA", "IS")  # per world axis: its negative and its positive end


@dataclass(frozen=True, eq=False)
class Grid:
    """Where voxels lie: a shape and an affine.

    Args:
        shape: Voxels per array axis, three positive integers.
        affine: (4, 4) voxel index to millimetres in RAS; finite and invertible.

    Raises:
        ValueError: The shape is not three positive integers, or the affine is not a finite invertible (4, 4) matrix.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape must be three positive integers, got {self.shape}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", _checked_affine(self.affine))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel along each array axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def axes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Per array axis: the world axis (0 right, 1 anterior, 2 superior) that it lies closest to, and its sign."""
        return closest_axes(self.affine)

    @property
    def orientation(self) -> str:
        """Three letters such as "RAS": towards which side of the patient each array axis points."""
        world, signs = self.axes
        return "".join(_LETTERS[axis][int(sign > 0)] for axis, sign in zip(world, signs, strict=True))

    def equals(self, other: Grid, *, tolerance: float = 1e-6) -> bool:
        """Whether both shapes are equal and no entry of the affines differs by more than `tolerance` (mm)."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, rtol=0.0, atol=tolerance))


@dataclass(frozen=True, eq=False)
class Source:
    """What the file or image object said beyond voxels and affine; neither its path nor its free text.

    Attributes:
        format: "NIfTI-1", "NIfTI-2", "MGH", "NRRD", "MetaImage", "DICOM", or "memory".
        shape: Stored axes, time and vector axes included.
        dtype: Stored voxel type, in native byte order.
        byte_order: Byte order of the stored voxels.
        slope: What stored values were multiplied by; 1.0 without scaling.
        intercept: What was added after that; 0.0 without scaling.
        units: Unit of the spatial axes as the file states it; the Volume is always in millimetres.
        affine: Affine that the Volume got when it was read, (4, 4), millimetres in RAS.
        qform_code: NIfTI qform code; None where the format has none.
        sform_code: NIfTI sform code; None where the format has none.
        qform: (4, 4) NIfTI qform in the file's own unit, or None.
        sform: (4, 4) NIfTI sform in the file's own unit, or None.
        fields: The NIfTI header fields that hold the geometry, bit for bit, so that writing can repeat them.
        series: The `medseg.io.dicom.DicomSeries` that the volume came from, so that DICOM results can refer to it.
    """

    format: str
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    byte_order: Literal["little", "big"] = "little"
    slope: float = 1.0
    intercept: float = 0.0
    units: Unit = "mm"
    qform_code: int | None = None
    sform_code: int | None = None
    qform: np.ndarray | None = None
    sform: np.ndarray | None = None
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    series: Any = field(default=None, repr=False)  # typed as what it is only in `io`, which lies above this file


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional image or label map in its place.

    Args:
        voxels: (X, Y, Z) in array order; real values, with the file's slope and intercept applied.
        affine: (4, 4) voxel index to millimetres in RAS.
        kind: "image" for intensities, "labels" for one integer per voxel with 0 as background.
        source: What the file said beyond this, if the volume came from one.
        notes: What reading found or repaired, one plain sentence each.

    Raises:
        ValueError: The voxels are not a three-dimensional numeric array, or the affine is not finite and invertible.
    """

    voxels: np.ndarray
    affine: np.ndarray
    kind: Kind = "image"
    source: Source | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.voxels.size == 0:
            raise ValueError(f"voxels must be (X, Y, Z) and not empty, got shape {self.voxels.shape}")
        if self.voxels.dtype.kind not in "biuf":
            raise ValueError(f"voxels must be boolean, integer or real, got {self.voxels.dtype}")
        if self.kind not in ("image", "labels"):
            raise ValueError(f'kind must be "image" or "labels", got {self.kind!r}')
        object.__setattr__(self, "affine", _checked_affine(self.affine))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per array axis."""
        return self.grid.shape

    @property
    def grid(self) -> Grid:
        """Shape and affine."""
        x, y, z = self.voxels.shape
        return Grid((x, y, z), self.affine)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres per voxel along each array axis."""
        return self.grid.spacing

    @property
    def orientation(self) -> str:
        """Three letters such as "RAS": towards which side of the patient each array axis points."""
        return self.grid.orientation

    def with_voxels(self, voxels: np.ndarray, *, kind: Kind | None = None) -> Volume:
        """Other values on this grid, with the same source.

        Args:
            voxels: (X, Y, Z), the shape of this volume.
            kind: What the values are; by default what they were.

        Raises:
            ValueError: The shapes differ.
        """
        if voxels.shape != self.voxels.shape:
            raise ValueError(f"voxels must have shape {self.voxels.shape} to stay on this grid, got {voxels.shape}")
        return replace(self, voxels=voxels, kind=kind or self.kind)


def closest_axes(affine: np.ndarray) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Per array axis, the world axis that it lies closest to, and the sign of its direction along it.

    Args:
        affine: (4, 4), finite and invertible.

    Returns:
        World axes, a permutation of (0, 1, 2), and signs, each 1 or -1.
    """
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # All six assignments are compared: column by column, two oblique axes could claim the same world axis.
    world = max(permutations(range(3)), key=lambda chosen: sum(abs(columns[w, a]) for a, w in enumerate(chosen)))
    signs = tuple(1 if columns[w, a] > 0 else -1 for a, w in enumerate(world))
    return (world[0], world[1], world[2]), (signs[0], signs[1], signs[2])


def _checked_affine(affine: np.ndarray) -> np.ndarray:
    """A float64 copy that cannot be written to."""
    matrix = np.array(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError(f"affine must be a finite (4, 4) matrix with last row 0 0 0 1, got {matrix.tolist()}")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() == 0 or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-6:
        raise ValueError(f"affine must be invertible, got {matrix.tolist()}")
    matrix.setflags(write=False)
    return matrix
