"""Made-up DICOM series for tests: every grid, and the ways in which real exporters bend one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
NAME, BIRTH = "Musterfrau^Erika", "19630812"  # made up; no message may repeat them
PRIVATE = (NAME, "Musterfrau", "Erika", BIRTH, "PAT-4711", "Followup of Erika")

Edit = Callable[[Dataset, int], None]


def rotation(axis: Sequence[float], degrees: float) -> np.ndarray:
    """(3, 3) rotation about an axis."""
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def noise(shape: tuple[int, int, int] = (5, 7, 6), seed: int = 0) -> np.ndarray:
    """(Z, rows, columns) values, all different from slice to slice."""
    return np.random.default_rng(seed).integers(0, 2000, shape).astype(np.int16)


@dataclass
class Case:
    """A series to be written.

    Attributes:
        pixels: (Z, rows, columns) stored values.
        axes: (3, 3) columns: along a row, down a column, from slice to slice; LPS, unit length.
        spacing: mm between rows, between columns, between slices.
        origin: mm, first pixel of the first slice, LPS.
        shear: (mm along a row, mm down a column) by which each slice slides against the one before.
        heights: mm of the slices along the normal, in place of even ones.
        decimals: Digits of directions and positions; None for all of them.
        series: Series instance UID.
        edit: Changes the data set of each slice before it is written.
    """

    pixels: np.ndarray = field(default_factory=noise)
    axes: np.ndarray = field(default_factory=lambda: np.eye(3))
    spacing: tuple[float, float, float] = (0.7, 0.9, 2.5)
    origin: tuple[float, float, float] = (-31.5, 12.25, 107.0)
    shear: tuple[float, float] = (0.0, 0.0)
    heights: Sequence[float] | None = None
    decimals: int | None = None
    series: str = field(default_factory=generate_uid)
    study: str = field(default_factory=generate_uid)
    frame_of_reference: str = field(default_factory=generate_uid)
    edit: Edit | None = None

    def position(self, index: int) -> np.ndarray:
        """(3,) mm in LPS of the first pixel of a slice."""
        height = index * self.spacing[2] if self.heights is None else self.heights[index]
        slides = height / self.spacing[2] * np.array(self.shear)
        return np.array(self.origin) + self.axes @ np.array([*slides, height])

    def affine(self) -> np.ndarray:
        """(4, 4) (column, row, slice) to millimetres in RAS, for even slices without shear."""
        affine = np.eye(4)
        affine[:3, :3] = self.axes * np.array([self.spacing[1], self.spacing[0], self.spacing[2]])
        affine[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    def numbers(self, values: np.ndarray) -> list[Any]:
        """Decimal strings as an exporter writes them: all digits, however long, or rounded."""
        flat = [float(value) for value in np.ravel(values)]
        if self.decimals is None:
            return [repr(value) for value in flat]
        return [f"{value:.{self.decimals}f}" for value in flat]

    def write(self, folder: Path, *, shuffled: int | None = None, start: int = 0) -> Path:
        """Write one file per slice.

        Args:
            folder: Where; made if need be.
            shuffled: Seed of the order of instance numbers and names; None for slice order.
            start: First number of the file names.
        """
        folder.mkdir(exist_ok=True)
        order = np.arange(len(self.pixels))
        if shuffled is not None:
            order = np.random.default_rng(shuffled).permutation(order)
        for number, index in enumerate(order):
            data = self.dataset(int(index), number + 1)
            with pydicom.config.disable_value_validation():
                data.save_as(folder / f"{start + number:04d}.dcm", enforce_file_format=True)
        return folder

    def dataset(self, index: int, number: int) -> FileDataset:
        """One slice."""
        with pydicom.config.disable_value_validation():
            data = _start(CT, "CT", self)
            data.InstanceNumber = number
            data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            data.ImagePositionPatient = self.numbers(self.position(index))
            data.ImageOrientationPatient = self.numbers(self.axes[:, :2].T)
            data.PixelSpacing = [self.spacing[0], self.spacing[1]]
            data.SliceThickness = self.spacing[2]
            data.RescaleSlope, data.RescaleIntercept = 1, 0
            _set_pixels(data, self.pixels[index])
            if self.edit:
                self.edit(data, index)
        return data

    def write_multiframe(self, path: Path) -> Path:
        """Write all slices as one enhanced MR object."""
        with pydicom.config.disable_value_validation():
            data = _start(ENHANCED_MR, "MR", self)
            data.InstanceNumber = 1
            data.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
            _set_pixels(data, self.pixels)
            data.NumberOfFrames = len(self.pixels)
            shared = Dataset()
            shared.PixelMeasuresSequence = [_item(PixelSpacing=[self.spacing[0], self.spacing[1]], SliceThickness=1.5)]
            directions = self.numbers(self.axes[:, :2].T)
            shared.PlaneOrientationSequence = [_item(ImageOrientationPatient=directions)]
            data.SharedFunctionalGroupsSequence = [shared]
            data.PerFrameFunctionalGroupsSequence = [self._frame(index) for index in range(len(self.pixels))]
            if self.edit:
                self.edit(data, 0)
            data.save_as(path, enforce_file_format=True)
        return path

    def _frame(self, index: int) -> Dataset:
        item = Dataset()
        item.PlanePositionSequence = [_item(ImagePositionPatient=self.numbers(self.position(index)))]
        item.FrameContentSequence = [_item(DimensionIndexValues=[1, index + 1])]
        item.PixelValueTransformationSequence = [_item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")]
        return item


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _start(sop_class: str, modality: str, case: Case) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = case.study, case.series
    data.FrameOfReferenceUID, data.PositionReferenceIndicator = case.frame_of_reference, ""
    data.Modality, data.SeriesNumber, data.StudyID = modality, 3, "7"
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = NAME, "PAT-4711", BIRTH, "F"
    data.SeriesDescription, data.StudyDescription = "Followup of Erika", "Followup of Erika"
    data.StudyDate, data.StudyTime, data.ContentDate, data.ContentTime = "20240102", "101112", "20240102", "101112"
    data.AccessionNumber, data.ReferringPhysicianName, data.Manufacturer = "A1", "", "Nobody"
    data.ManufacturerModelName, data.SoftwareVersions, data.DeviceSerialNumber = "None", "1", "1"
    data.Laterality, data.PatientPosition = "", "HFS"
    return data


def _set_pixels(data: Dataset, pixels: np.ndarray) -> None:
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
