"""Volumes as a structured report (TID 1500), each measured on a segment of the segmentation written beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from medseg import __version__
from medseg_pipelines.dicom_out.codes import terms_of
from medseg_pipelines.dicom_out.origin import MANUFACTURER, Origin, Sources, written
from medseg_pipelines.recipe import Label
from medseg_pipelines.statistics import Structure

SERIES_NUMBER = 9004
_MILLILITRE = Code("ml", "UCUM", "milliliter")
_DEVICE = "1.2.826.0.1.3680043.10.1520.1"  # one identifier for this software as observer, not for a machine


def report(
    sources: Sources, segments: Any, structures: Sequence[Structure], names: Sequence[Label], origin: Origin
) -> Any:
    """A measurement report with the volume of each segment.

    Args:
        sources: The images.
        segments: The segmentation object that was made of the same labels.
        structures: What was measured.
        names: What the label ids mean.
        origin: Who measured.

    Raises:
        InputRefused: The headers of the images do not allow it.
    """
    by_name = {label.name: label for label in names}
    measured = {structure.name: structure for structure in structures}
    with written("the report"):
        groups = [
            _group(
                int(item.SegmentNumber),
                by_name[item.SegmentLabel],
                measured[item.SegmentLabel],
                segments,
                sources,
                origin,
            )
            for item in segments.SegmentSequence
            if item.SegmentLabel in by_name
        ]
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=_observer(origin)),
            procedure_reported=codes.LN.CTUnspecifiedBodyRegion if sources.series.modality == "CT" else _IMAGING,
            imaging_measurements=groups,
            title=codes.DCM.ImagingMeasurementReport,
        )
        made = hd.sr.Comprehensive3DSR(
            evidence=[segments, *sources.datasets],
            content=content[0],
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            series_description=origin.description("Volumes"),
        )
        made.ManufacturerModelName, made.SoftwareVersions = origin.model[:64], origin.version
        made.ContentQualification = "RESEARCH"
    return made


_IMAGING = Code("363679005", "SCT", "Imaging procedure")


def _observer(origin: Origin) -> hd.sr.ObserverContext:
    identity = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=_DEVICE,
        name=MANUFACTURER,
        manufacturer_name=MANUFACTURER,
        model_name=f"{origin.model} {__version__}, {origin.remark}",
    )
    return hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=identity)


def _group(
    number: int, label: Label, structure: Structure, segments: Any, sources: Sources, origin: Origin
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """The volume of one segment, and whether the image shows the whole of it."""
    terms = terms_of(label)
    site = hd.sr.FindingSite(anatomic_location=terms.kind, laterality=terms.side)
    images = [
        hd.sr.SourceImageForSegmentation(
            referenced_sop_class_uid=data.SOPClassUID, referenced_sop_instance_uid=data.SOPInstanceUID
        )
        for data in sources.datasets
    ]
    volume = hd.sr.Measurement(name=codes.SCT.Volume, value=float(structure.ml or 0.0), unit=_MILLILITRE)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=segments.SegmentSequence[number - 1].TrackingUID, identifier=f"{label.name} ({structure.status})"
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segments.SOPClassUID,
            sop_instance_uid=segments.SOPInstanceUID,
            segment_number=number,
            source_images=images,
        ),
        finding_category=terms.category,
        finding_type=terms.kind,
        finding_sites=[site],
        algorithm_id=hd.sr.AlgorithmIdentification(name=origin.model, version=origin.version),
        measurements=[volume],
    )
