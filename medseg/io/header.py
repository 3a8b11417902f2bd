"""What is known of a file before its voxels are decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from medseg.volume import Source

if TYPE_CHECKING:  # pydicom is for those who bring DICOM
    from medseg.io.dicom.instances import Plane

Severity = Literal["error", "warning", "note"]

NO_ORIENTATION = "the file states no orientation: left and right are unknown, and were assumed"


@dataclass(frozen=True)
class Problem:
    """One finding about a file.

    Attributes:
        severity: "error" the file is refused, "warning" results may suffer, "note" it was repaired or is harmless.
        text: One plain sentence without file name: the thing, what was expected, what came, the way out.
    """

    severity: Severity
    text: str


@dataclass(frozen=True, eq=False)
class Header:
    """A decoded file header.

    Attributes:
        shape: All stored axes; axes of length 1 after the third are dropped.
        dtype: Stored voxel type with the file's byte order; structured for colour.
        components: Values per voxel; 1 for a scalar image.
        affine: (4, 4) voxel index to millimetres in RAS as the file says it, unchecked.
        source: What the volume remembers of the file; its affine is not yet the checked one.
        offset: First byte of the voxels in the (unpacked) file.
        problems: What parsing found.
        decoded_itemsize: Bytes that a voxel takes while it is decoded, where the reader scales slice by slice.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    source: Source
    components: int = 1
    offset: int = 0
    problems: tuple[Problem, ...] = ()
    decoded_itemsize: int | None = None


@dataclass(frozen=True, eq=False)
class SeriesSummary:
    """One DICOM series among those behind a path; free text of the files is not repeated.

    Attributes:
        number: Place in the list, from 1, by which it is chosen.
        uid: Series instance UID.
        series_number: Series number as stated.
        modality: As stated, for example "CT".
        kind: "image", "localiser", or "other" for what has no pixels.
        files: How many files it has.
        images: How many frames.
        shape: Columns, rows and slices of one time point.
        spacing: Millimetres along these, where they form a grid.
        orientation: Three letters such as "LPS", where they form a grid.
        time_points: Volumes at the same place.
        problems: What was found, errors where it cannot be read.
        middle: Middle slice of the first time point, its pixels not yet read; None where none of its files is usable.
    """

    number: int
    uid: str
    series_number: int | None
    modality: str
    kind: Literal["image", "localiser", "other"]
    files: int
    images: int = 0
    shape: tuple[int, int, int] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    time_points: int = 1
    problems: tuple[Problem, ...] = ()
    middle: Plane | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a look at the header tells, for damaged files as well; None where the file did not say.

    Attributes:
        name: File name without its folder.
        format: "NIfTI-1", "NIfTI-2", "MGH", "NRRD", "MetaImage", "DICOM", or None.
        shape: All stored axes.
        spacing: Millimetres per voxel along the first three axes.
        orientation: Three letters such as "RAS".
        affine: (4, 4) voxel index to millimetres in RAS, after repair.
        dtype: Stored voxel type, for example "int16".
        byte_order: "little" or "big".
        scaling: Slope and intercept; (1.0, 0.0) without scaling.
        units: Unit that the file states: "mm", "um", "m" or "unknown".
        qform_code: NIfTI qform code.
        sform_code: NIfTI sform code.
        memory: Bytes that one decoded time point takes.
        problems: Findings, errors first.
        series: Every DICOM series behind the path; empty for other formats.
    """

    name: str
    format: str | None = None
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, float, float] | None = None
    orientation: str | None = None
    affine: np.ndarray | None = None
    dtype: str | None = None
    byte_order: str | None = None
    scaling: tuple[float, float] | None = None
    units: str | None = None
    qform_code: int | None = None
    sform_code: int | None = None
    memory: int | None = None
    problems: tuple[Problem, ...] = ()
    series: tuple[SeriesSummary, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether the header gives no reason to refuse the file."""
        return all(problem.severity != "error" for problem in self.problems)
