"""What every DICOM object of ours says of where it comes from, and the source data sets that it refers to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medseg import __version__
from medseg.errors import InputRefused
from medseg.io.dicom import DicomSeries, quiet
from medseg_pipelines.words import MANUALLY_CORRECTED, RESEARCH_USE, UNTRAINED

MANUFACTURER = "medseg"
NOT_FOR_DIAGNOSIS = "not for diagnosis"

_EMPTY_IF_ABSENT = (  # attributes that may be empty, but that whoever writes an object of the same study repeats
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who made a result.

    Attributes:
        model: Name of the model.
        weights: First digits of the checksum of its weights.
        trained: Whether the model was trained at all.
        warnings: What has to be known beside the result.
        correction: What a person has changed, as the manifest has it; None for a result as the model gave it.
    """

    model: str
    weights: str
    trained: bool
    warnings: tuple[str, ...] = ()
    correction: Mapping[str, Any] | None = None

    @property
    def version(self) -> str:
        """Of the software and the model."""
        return f"{__version__} {self.weights}"[:64]

    def description(self, what: str) -> str:
        """A series description: what it is, that it is not for diagnosis, and if need be that it means nothing."""
        prefix = "" if self.trained else "UNTRAINED, NO MEANING: "
        what = what if self.correction is None else f"{what}, corrected"
        return f"{prefix}{what} ({NOT_FOR_DIAGNOSIS}) {self.model}"[:64]

    @property
    def remark(self) -> str:
        """The sentences that stand in every object."""
        untrained = () if self.trained else (UNTRAINED,)
        corrected = () if self.correction is None else (MANUALLY_CORRECTED,)
        return " ".join((*untrained, *corrected, RESEARCH_USE))

    @property
    def by(self) -> str:
        """The algorithm type of DICOM: the model alone, or the model and a person."""
        return "AUTOMATIC" if self.correction is None else "SEMIAUTOMATIC"

    @property
    def parameters(self) -> dict[str, str] | None:
        """From which result a corrected one was made, and how much of it was changed."""
        if self.correction is None:
            return None
        return {"corrected": self.correction["of_sha256"], "voxels": str(self.correction["changed_voxels"])}

    def equipment(self) -> dict[str, Any]:
        """The arguments by which highdicom describes the maker."""
        return {
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.model[:64],
            "software_versions": self.version,
            "device_serial_number": "none",
        }


@dataclass(frozen=True, eq=False)
class Sources:
    """The slices that a result refers to.

    Attributes:
        series: As it was read.
        datasets: One data set per file, without pixels; complete enough to be repeated.
    """

    series: DicomSeries
    datasets: tuple[Any, ...]

    @classmethod
    def of(cls, series: DicomSeries) -> Sources:
        """The data sets behind a series.

        Raises:
            InputRefused: The images lack an identity of their own.
        """
        found = series.datasets()
        frame_of_reference = found[0].get("FrameOfReferenceUID") or generate_uid()
        for data in found:
            for keyword in _EMPTY_IF_ABSENT:
                if keyword not in data:
                    setattr(data, keyword, "")
            if not data.get("FrameOfReferenceUID"):
                data.FrameOfReferenceUID = frame_of_reference
            if not (data.get("SOPInstanceUID") and data.get("StudyInstanceUID") and data.get("SeriesInstanceUID")):
                raise InputRefused("images must carry study, series and instance UIDs to be referred to, some do not")
        return cls(series, tuple(found))

    @property
    def first(self) -> Any:
        """The data set of the first slice."""
        return self.datasets[0]

    @property
    def multiframe(self) -> bool:
        """Whether frames of one file are the slices."""
        return "NumberOfFrames" in self.first and int(self.first.NumberOfFrames) > 1

    def of_slice(self, index: int) -> Any:
        """The data set of the file that holds a slice."""
        if len(self.datasets) == len(self.series.slices):
            return self.datasets[index]
        uid = self.series.slices[index].instance.uid
        return next(data for data in self.datasets if data.SOPInstanceUID == uid)

    def reference(self, index: int) -> Dataset:
        """The reference to a slice as image: class, instance, and frame where there are several."""
        data, item = self.of_slice(index), Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
        if self.multiframe:
            item.ReferencedFrameNumber = self.series.slices[index].frame + 1
        return item


@contextmanager
def written(what: str) -> Iterator[None]:
    """A library's complaint about a source header becomes one line; its own words may quote the patient.

    Args:
        what: Name of the object, for the message.

    Raises:
        InputRefused: The library gave up.
    """
    try:
        with quiet():
            yield
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        raise InputRefused(
            f"{what} cannot be written for these images: {type(error).__name__} in their headers; leave out --format"
        ) from error


def copy_identity(target: Dataset, source: Any) -> None:
    """Patient, study and frame of reference of the source, nothing else of it."""
    keywords = (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID", "StudyDate"),
        *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription", "FrameOfReferenceUID"),
        *("PositionReferenceIndicator", "SpecificCharacterSet", "PatientIdentityRemoved", "DeidentificationMethod"),
    )
    for keyword in keywords:
        if keyword in source:
            target[keyword] = source[keyword]
