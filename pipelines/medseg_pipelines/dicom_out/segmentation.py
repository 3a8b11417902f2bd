"""Labels as a DICOM segmentation object that refers to the slices it was made on (PS3.3 A.51), through highdicom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, generate_uid

from medseg_pipelines.dicom_out.codes import terms_of
from medseg_pipelines.dicom_out.origin import Origin, Sources, written
from medseg_pipelines.recipe import Label

Encoding = Literal["binary", "labelmap"]

SERIES_NUMBER = 9001


def segmentation(
    sources: Sources, labels: np.ndarray, names: Sequence[Label], origin: Origin, *, encoding: Encoding = "binary"
) -> Any | None:
    """A segmentation object with one segment for each label that occurs, or None where none does.

    Args:
        sources: The images.
        labels: (X, Y, Z) label ids on the grid of the volume that was read.
        names: What the ids mean.
        origin: Who made them.
        encoding: "binary" is what viewers read today; "labelmap" is smaller and newer.

    Raises:
        InputRefused: The headers of the images do not allow it.
    """
    present = [label for label in names if bool((labels == label.id).any())]
    if not present:
        return None
    numbers = np.zeros(max(label.id for label in names) + 1, np.uint8 if len(present) < 256 else np.uint16)
    for number, label in enumerate(present, start=1):
        numbers[label.id] = number
    pixels = _on_frames(sources, numbers[sources.series.to_slices(labels)])
    with written("the segmentation"):
        made = hd.seg.Segmentation(
            source_images=list(sources.datasets),
            pixel_array=pixels,
            segmentation_type=encoding.upper(),
            segment_descriptions=[_describe(label, number, origin) for number, label in enumerate(present, start=1)],
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            transfer_syntax_uid=JPEGLSLossless if encoding == "labelmap" else ExplicitVRLittleEndian,
            content_label="SEGMENTATION",
            content_description=origin.remark[:64],
            series_description=origin.description("Segmentation"),
            omit_empty_frames=True,
            **origin.equipment(),
        )
        made.ContentQualification = "RESEARCH"
    return made


def _on_frames(sources: Sources, slices: np.ndarray) -> np.ndarray:
    """(frames, rows, columns) in the order of the source files; of a multi-frame file, all of its frames."""
    if not sources.multiframe:
        return slices
    frames = np.zeros((int(sources.first.NumberOfFrames), *slices.shape[1:]), slices.dtype)
    for index, plane in enumerate(sources.series.slices):
        frames[plane.frame] = slices[index]
    return frames


def _describe(label: Label, number: int, origin: Origin) -> hd.seg.SegmentDescription:
    terms = terms_of(label)
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name[:64],
        segmented_property_category=terms.category,
        segmented_property_type=terms.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues(origin.by),
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=origin.model[:64],
            family=codes.DCM.ArtificialIntelligence,
            version=origin.version,
            parameters=origin.parameters,
        ),
        tracking_uid=generate_uid(),
        tracking_id=label.name[:64],
        anatomic_regions=list(terms.regions) or None,
        display_color=hd.color.CIELabColor.from_rgb(*label.color),
    )
    if terms.side is not None:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [terms.side]
    return description
