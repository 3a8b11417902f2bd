"""One series that was opened: its header, its volumes, and the way of a result back to its slices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medseg.io.dicom import decoding, pixels
from medseg.io.dicom.instances import Plane
from medseg.io.dicom.listing import Found
from medseg.io.dicom.stack import Stack
from medseg.io.header import Header, Problem
from medseg.volume import Source


@dataclass(frozen=True, eq=False, repr=False)
class DicomSeries:
    """Slices that form a volume; kept with it so that results can refer to them. It prints without any of its content.

    Attributes:
        found: The series as it lies on disk.
        stack: Its slices in order.
        time_point: Which of the time points is meant.
    """

    found: Found
    stack: Stack
    time_point: int = 0

    @property
    def uid(self) -> str:
        """Series instance UID."""
        return self.found.uid

    @property
    def modality(self) -> str:
        """As stated, for example "CT"."""
        return self.found.modality

    @property
    def slices(self) -> tuple[Plane, ...]:
        """The slices of the time point, from the first to the last along the third axis."""
        return self.stack.phases[self.time_point]

    @property
    def bytes_on_disk(self) -> int:
        """Size of all its files."""
        return sum(instance.file.size for instance in self.found.instances)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the volume along columns, rows and slices."""
        if self.stack.correction is not None:
            return self.stack.correction.shape
        first = self.slices[0].instance
        return first.columns, first.rows, len(self.slices)

    def header(self, problems: tuple[Problem, ...] = ()) -> Header:
        """What a volume of this series will be; NaN as affine where there is none.

        Args:
            problems: What was found before the series was chosen.
        """
        affine = np.full((4, 4), np.nan) if self.stack.affine is None else self.stack.affine
        phases = len(self.stack.phases)
        shape = (*self.shape, phases) if phases > 1 else self.shape
        scales = {(plane.slope, plane.intercept) for plane in self.slices}
        slope, intercept = scales.pop() if len(scales) == 1 else (1.0, 0.0)
        stored = self.slices[0].instance.dtype
        dtype = self._dtype()
        source = Source("DICOM", shape, stored, affine, slope=slope, intercept=intercept, series=self)
        found = (*problems, *self.stack.problems, *self._remarks())
        return Header(shape, dtype, affine, source, problems=found, decoded_itemsize=dtype.itemsize)

    def read_voxels(self, time_point: int | None) -> np.ndarray:
        """(X, Y, Z) modality values of one time point.

        Raises:
            InputRefused: A slice cannot be decoded; the message names it.
        """
        planes = self.stack.phases[time_point or 0]
        correction = self.stack.correction
        if correction is None:
            return pixels.read_stack(planes)
        low = pixels.read_plane(planes[0]).min()
        return correction.apply(lambda index: pixels.read_plane(planes[index]), fill=float(low))

    def at_time(self, time_point: int | None) -> DicomSeries:
        """The same series with another time point in view."""
        return replace(self, time_point=time_point or 0)

    def to_slices(self, voxels: np.ndarray) -> np.ndarray:
        """(N, rows, columns) values on the slices as they were taken; nearest voxel where the grid was corrected.

        Args:
            voxels: (X, Y, Z) on the grid of the volume.

        Raises:
            ValueError: They have another shape.
        """
        if voxels.shape != self.shape:
            raise ValueError(f"voxels must have the shape of the volume {self.shape}, got {voxels.shape}")
        correction = self.stack.correction
        return (voxels if correction is None else correction.to_slices(voxels)).transpose()

    def datasets(self) -> list[Any]:
        """The pydicom data set of each file of the slices, without pixels, in the order of the slices; each file once.

        They hold the identity of the patient: for DICOM objects of the same patient, and for nothing else.

        Raises:
            InputRefused: A file has been damaged since.
        """
        files = dict.fromkeys(plane.instance.file for plane in self.slices)
        found = []
        for file in files:
            with file.open() as stream:
                found.append(decoding.read_dataset(stream))
        return found

    def _dtype(self) -> np.dtype:
        if self.stack.correction is not None:
            return np.dtype(np.float32)
        return pixels.value_dtype(self.slices)

    def _remarks(self) -> list[Problem]:
        if not any(plane.instance.photometric == "MONOCHROME1" for plane in self.slices):
            return []
        return [Problem("warning", "low values are meant to be shown bright (MONOCHROME1); the values stay as stored")]
