"""Labels as a radiotherapy structure set, outlined on the slices that they were made on (PS3.3 A.19)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from medseg_pipelines.dicom_out.contours import trace
from medseg_pipelines.dicom_out.origin import MANUFACTURER, Origin, Sources, copy_identity, written
from medseg_pipelines.recipe import Label

SERIES_NUMBER = 9002
_DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # class of the study in the reference, retired but still asked for


def structure_set(sources: Sources, labels: np.ndarray, names: Sequence[Label], origin: Origin) -> Any | None:
    """A structure set with one region for each label that occurs, or None where none does.

    Args:
        sources: The images.
        labels: (X, Y, Z) label ids on the grid of the volume that was read.
        names: What the ids mean.
        origin: Who made them.

    Raises:
        InputRefused: The headers of the images do not allow it.
    """
    slices = sources.series.to_slices(labels)
    present = [label for label in names if bool((slices == label.id).any())]
    if not present:
        return None
    with written("the structure set"):
        data = _start(sources, origin)
        data.StructureSetROISequence = Items(
            [_region(number, label, data, origin) for number, label in enumerate(present, start=1)]
        )
        data.ROIContourSequence = Items(
            [_outlines(number, label, slices, sources) for number, label in enumerate(present, start=1)]
        )
        data.RTROIObservationsSequence = Items([_observation(number) for number in range(1, len(present) + 1)])
    return data


def new_object(sop_class: str, modality: str, source: Any, origin: Origin, description: str) -> FileDataset:
    """An empty object of the source's patient and study in a series of its own, made by us now."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), generate_uid()
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    copy_identity(data, source)
    now = datetime.now()
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.InstanceNumber, data.Modality = generate_uid(), 1, modality
    data.SeriesDescription = origin.description(description)
    data.Manufacturer, data.ManufacturerModelName = MANUFACTURER, origin.model[:64]
    data.SoftwareVersions, data.DeviceSerialNumber = origin.version, "none"
    data.InstanceCreationDate, data.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return data


def _start(sources: Sources, origin: Origin) -> FileDataset:
    data = new_object(RTStructureSetStorage, "RTSTRUCT", sources.first, origin, "Structures")
    data.SeriesNumber, data.OperatorsName = SERIES_NUMBER, ""
    data.StructureSetLabel, data.StructureSetName = "MEDSEG", origin.model[:64]
    data.StructureSetDescription = origin.remark
    data.StructureSetDate, data.StructureSetTime = data.InstanceCreationDate, data.InstanceCreationTime
    data.ApprovalStatus = "UNAPPROVED"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = sources.first.SeriesInstanceUID
    series.ContourImageSequence = Items([sources.reference(index) for index in range(len(sources.series.slices))])
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = _DETACHED_STUDY, sources.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame.FrameOfReferenceUID = sources.first.FrameOfReferenceUID
    frame.RTReferencedStudySequence = Items([study])
    data.ReferencedFrameOfReferenceSequence = Items([frame])
    return data


def _region(number: int, label: Label, data: Dataset, origin: Origin) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ROIName = number, label.name[:64]
    item.ReferencedFrameOfReferenceUID = data.FrameOfReferenceUID
    item.ROIGenerationAlgorithm = origin.by
    return item


def _outlines(number: int, label: Label, slices: np.ndarray, sources: Sources) -> Dataset:
    """The contours of one label, slice by slice, in millimetres."""
    item, contours = Dataset(), []
    for index, plane in enumerate(sources.series.slices):
        mask = slices[index] == label.id
        if not mask.any():
            continue
        assert plane.position is not None  # series whose positions are guessed are refused before
        assert plane.directions is not None
        assert plane.spacing is not None
        axes = plane.directions / np.linalg.norm(plane.directions, axis=1, keepdims=True)
        steps = axes * np.array([[plane.spacing[1]], [plane.spacing[0]]])
        for outline in trace(mask):
            contours.append(_contour(plane.position + outline @ steps, sources.reference(index)))
    item.ROIDisplayColor, item.ReferencedROINumber = list(label.color), number
    item.ContourSequence = Items(contours)
    return item


def _contour(points: np.ndarray, image: Dataset) -> Dataset:
    item = Dataset()
    item.ContourImageSequence = Items([image])
    item.ContourGeometricType, item.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    item.ContourData = [f"{value:.3f}" for value in points.ravel()]
    return item


def _observation(number: int) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.RTROIInterpretedType, item.ROIInterpreter = "ORGAN", ""
    return item
