"""The picture of a result as a secondary capture."""

from __future__ import annotations

from typing import Any

import highdicom as hd
import numpy as np
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medseg_pipelines.dicom_out.origin import MANUFACTURER, Origin, Sources, written

SERIES_NUMBER = 9005


def capture(sources: Sources, picture: Image.Image, origin: Origin) -> Any:
    """The picture in colour, in the study of the images.

    Args:
        sources: The images.
        picture: Without anything of the patient in it, as our previews are.
        origin: Who made it.

    Raises:
        InputRefused: The headers of the images do not allow it.
    """
    with written("the picture"):
        made = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=sources.first,
            pixel_array=np.asarray(picture.convert("RGB")),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "P"),
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description=origin.description("Picture"),
        )
        made.ImageType = ["DERIVED", "SECONDARY"]
        made.BurnedInAnnotation = "NO"
        made.ManufacturerModelName, made.SoftwareVersions = origin.model[:64], origin.version
        made.ImageComments = origin.remark
    return made
