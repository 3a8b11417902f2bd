"""A restored volume as a series of its own that says what it is: derived, from which images, not for diagnosis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, MRImageStorage, SecondaryCaptureImageStorage, generate_uid

from medseg.volume import Volume
from medseg_pipelines.dicom_out.origin import Origin, Sources, written
from medseg_pipelines.dicom_out.structures import new_object
from medseg_pipelines.words import RESTORED

SERIES_NUMBER = 9003

_CLASSES = {"CT": CTImageStorage, "MR": MRImageStorage}
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ACQUISITION = (  # what stays true of a derived image, and what its class asks for
    *("PatientPosition", "BodyPartExamined", "KVP", "ScanningSequence", "SequenceVariant", "ScanOptions"),
    *("MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime", "InversionTime", "MagneticFieldStrength"),
    *("ImageOrientationPatient", "RescaleType", "AcquisitionNumber", "AcquisitionDate", "AcquisitionTime"),
    *("WindowCenter", "WindowWidth", "Laterality"),
)


def derived_series(sources: Sources, volume: Volume, origin: Origin, *, what: str) -> Iterator[Any]:
    """One image per slice of the volume, from the first to the last.

    Values are stored like those of the source where they fit, else in 65536 equal steps between the extremes.

    Args:
        sources: The images that the volume was made of.
        volume: On its own grid, which need not be that of the images.
        origin: Who made it.
        what: What was done, for the series description.

    Raises:
        InputRefused: The headers of the images do not allow it.
    """
    series_uid = generate_uid()
    scale = _Scale.of(sources, volume.voxels)
    nearest = _nearest_slices(sources, volume)
    for index in range(volume.shape[2]):
        with written("the derived series"):
            data = _image(sources, nearest[index], origin, what)
            data.SeriesInstanceUID, data.InstanceNumber = series_uid, index + 1
            _place(data, volume, index)
            scale.store(data, volume.voxels[:, :, index].transpose())
        yield data


class _Scale:
    """How real values become stored ones: slope, intercept and type."""

    def __init__(self, slope: float, intercept: float, dtype: np.dtype) -> None:
        self.slope, self.intercept, self.dtype = slope, intercept, dtype

    @classmethod
    def of(cls, sources: Sources, voxels: np.ndarray) -> _Scale:
        """That of the source if every value fits, and otherwise one that uses all 16 bits."""
        low, high = float(voxels.min()), float(voxels.max())
        plane = sources.series.slices[0]
        stored = plane.instance.dtype
        if stored.kind in "iu" and stored.itemsize == 2:
            limits = np.iinfo(stored)
            ends = [(value - plane.intercept) / plane.slope for value in (low, high)]
            same = len({(p.slope, p.intercept) for p in sources.series.slices}) == 1
            if same and plane.slope == 1.0 and limits.min <= min(ends) and max(ends) <= limits.max and high - low > 255:
                return cls(plane.slope, plane.intercept, stored)
        return cls(float(f"{(high - low) / 65535 or 1.0:.10g}"), float(f"{low:.10g}"), np.dtype(np.uint16))

    def store(self, data: Dataset, values: np.ndarray) -> None:
        """Put (rows, columns) values into an image."""
        limits = np.iinfo(self.dtype)
        stored = np.rint((values.astype(np.float64) - self.intercept) / self.slope).clip(limits.min, limits.max)
        data.Rows, data.Columns = values.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, int(self.dtype.kind == "i")
        data.RescaleSlope, data.RescaleIntercept = f"{self.slope:.10g}", f"{self.intercept:.10g}"
        if "RescaleType" not in data:
            data.RescaleType = "US"
        data.PixelData = np.ascontiguousarray(stored.astype(self.dtype)).tobytes()


def _image(sources: Sources, index: int, origin: Origin, what: str) -> FileDataset:
    """Everything but place and pixels of one image, derived from a slice."""
    source = sources.of_slice(index)
    modality = str(source.Modality)
    sop_class = _CLASSES.get(modality, SecondaryCaptureImageStorage)
    data = new_object(sop_class, modality, source, origin, what)
    for keyword in _ACQUISITION:
        if keyword in source:
            data[keyword] = source[keyword]
    data.SeriesNumber = SERIES_NUMBER
    data.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    data.DerivationDescription = f"{what} by {origin.model} {origin.version}. {RESTORED} {origin.remark}"[:1024]
    data.ImageComments = origin.remark
    data.BurnedInAnnotation = "NO"
    reference = sources.reference(index)
    reference.PurposeOfReferenceCodeSequence = Items([_purpose()])
    data.SourceImageSequence = Items([reference])
    if sop_class == SecondaryCaptureImageStorage:
        data.ConversionType = "WSD"
    return data


def _purpose() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "121322", "DCM"
    item.CodeMeaning = "Source image for image processing operation"
    return item


def _place(data: Dataset, volume: Volume, index: int) -> None:
    """Where the slice lies, by the grid of the volume."""
    affine = _LPS @ volume.affine
    columns, rows, depth = volume.spacing
    directions = affine[:3, :2] / [columns, rows]
    data.ImagePositionPatient = _decimals(affine[:3] @ [0, 0, index, 1])
    data.ImageOrientationPatient = _decimals(directions.T.ravel())
    data.PixelSpacing = _decimals(np.array([rows, columns]))
    data.SliceThickness, data.SpacingBetweenSlices = _decimals(np.array([depth, depth]))


def _decimals(values: np.ndarray) -> list[str]:
    """Numbers in at most 16 characters each."""
    return [f"{value:.9g}" if abs(value) >= 1e-4 else f"{value:.9f}" for value in np.asarray(values, np.float64)]


def _nearest_slices(sources: Sources, volume: Volume) -> list[int]:
    """For each slice of the volume, the source slice whose centre lies nearest to its own."""
    centres = []
    for plane in sources.series.slices:
        if plane.position is None or plane.directions is None or plane.spacing is None:
            return list(range(volume.shape[2]))  # guessed positions: the slices are those that were stacked
        half = np.array([(plane.instance.columns - 1) * plane.spacing[1], (plane.instance.rows - 1) * plane.spacing[0]])
        centres.append(plane.position + half / 2 @ plane.directions)
    middle = (np.array(volume.shape[:2]) - 1) / 2
    affine = _LPS @ volume.affine
    places = [affine[:3] @ [*middle, index, 1] for index in range(volume.shape[2])]
    return [int(np.argmin(np.linalg.norm(np.array(centres) - place, axis=1))) for place in places]
