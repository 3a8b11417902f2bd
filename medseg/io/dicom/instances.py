"""One DICOM file as far as a volume needs it: what kind of object it is, and where each of its frames lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import InputRefused
from medseg.io.dicom import decoding
from medseg.io.dicom.files import File

_PIXEL_TAGS = {b"\x7f\xe0\x00\x10", b"\x7f\xe0\x00\x08", b"\x7f\xe0\x00\x09"}  # integer, float and double pixels
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"  # both little endian, without compression
_DEFLATED = "1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_SEGMENTATION = {"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"}
_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"

# What may tell two images at one place apart, the most telling first.
PHASES = {
    "TemporalPositionIdentifier": "temporal position",
    "TemporalPositionIndex": "temporal position",
    "TemporalPositionTimeOffset": "time offset",
    "TriggerTime": "trigger time",
    "NominalCardiacTriggerDelayTime": "trigger time",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "InversionTime": "inversion time",
    "FlipAngle": "flip angle",
    "DiffusionBValue": "b-value",
    "AcquisitionNumber": "acquisition number",
    "FrameAcquisitionDateTime": "acquisition time",
    "AcquisitionDateTime": "acquisition time",
    "AcquisitionTime": "acquisition time",
    "ContentTime": "content time",
}

TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber"),
    *("Modality", "ImageType", "FrameOfReferenceUID", "GantryDetectorTilt"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *PHASES,
)


@dataclass(frozen=True, eq=False)
class Instance:
    """The facts that all frames of one file share; "" or None where the file does not say.

    Attributes:
        file: Where it lies.
        number: Instance number.
        flaw: Why it cannot become part of a volume, one plain sentence; None where nothing speaks against it.
        dtype: Of the stored values.
        bits: Of them in use.
        plain_at: Byte of the file at which the pixels begin, where they are stored as they are in little-endian order.
    """

    file: File
    sop_class: str
    uid: str
    study: str
    series: str
    series_number: int | None
    modality: str
    image_type: tuple[str, ...]
    frame_of_reference: str
    number: int | None
    rows: int
    columns: int
    photometric: str
    dtype: np.dtype
    bits: int
    tilt: float | None
    flaw: str | None
    plain_at: int | None = None

    @property
    def localiser(self) -> bool:
        """Whether the image was taken to plan others."""
        return "LOCALIZER" in self.image_type


@dataclass(frozen=True, eq=False)
class Plane:
    """One frame: a slice.

    Attributes:
        instance: The file it is part of.
        frame: Its place there, from 0.
        position: (3,) centre of the first pixel, mm in LPS.
        directions: (2, 3) along a row and down a column, LPS, as stated.
        spacing: mm between rows, and between columns.
        depth: mm to the next slice, or else the thickness, as stated.
        slope: Of the modality values.
        intercept: Of the modality values.
        table: Whether a look-up table stands in place of slope and intercept.
        phases: What may tell it from another frame at the same place, by the keys of `PHASES`.
    """

    instance: Instance
    frame: int
    position: np.ndarray | None
    directions: np.ndarray | None
    spacing: tuple[float, float] | None
    depth: float | None
    slope: float
    intercept: float
    table: bool
    phases: dict[str, str]

    @property
    def name(self) -> str:
        """How a message calls it; file names are not repeated, they may hold names of patients."""
        if self.instance.number is None:
            return f"frame {self.frame + 1}"
        return f"instance {self.instance.number}" + (f" frame {self.frame + 1}" if self.frame else "")


def read_instance(file: File) -> tuple[Instance, list[Plane]]:
    """One file and its frames; what is not an image has no frames.

    Raises:
        InputRefused: It is no DICOM, or cannot be decoded.
    """
    with file.open() as stream:
        dataset = decoding.read_dataset(stream, TAGS)
        at = stream.tell()
        head = stream.read(12)
    if not dataset:
        raise InputRefused("expected a DICOM header, got none of its elements; export the file again")
    with decoding.refusing("expected a DICOM header, got one with damaged elements; export the file again"):
        found = decoding.elements(dataset)
        syntax = _text(decoding.elements(getattr(dataset, "file_meta", {})), "TransferSyntaxUID")
        instance = _instance(file, found, syntax, head, at)
        frames = _count(found) if instance.rows else 0
        return instance, [_plane(instance, found, frame) for frame in range(frames)]


def _instance(file: File, found: dict[str, Any], syntax: str, head: bytes, at: int) -> Instance:
    rows, columns, allocated = (_whole(found, name) or 0 for name in ("Rows", "Columns", "BitsAllocated"))
    image = rows > 0 and columns > 0
    floats = {b"\x7f\xe0\x00\x08": "f4", b"\x7f\xe0\x00\x09": "f8"}.get(_tag(head, syntax))
    sign = "i" if _whole(found, "PixelRepresentation") == 1 else "u"
    return Instance(
        file=file,
        sop_class=_text(found, "SOPClassUID"),
        uid=_text(found, "SOPInstanceUID"),
        study=_text(found, "StudyInstanceUID"),
        series=_text(found, "SeriesInstanceUID"),
        series_number=_whole(found, "SeriesNumber"),
        modality=_text(found, "Modality")[:16],
        image_type=tuple(str(value) for value in _values(found, "ImageType")),
        frame_of_reference=_text(found, "FrameOfReferenceUID"),
        number=_whole(found, "InstanceNumber"),
        rows=rows if image else 0,
        columns=columns if image else 0,
        photometric=_text(found, "PhotometricInterpretation"),
        dtype=np.dtype(floats or f"{sign}{max(1, allocated // 8)}" if allocated in (1, 8, 16, 32, 64) else "u2"),
        bits=_whole(found, "BitsStored") or allocated,
        tilt=_number(found, "GantryDetectorTilt"),
        flaw=_flaw(file, found, syntax, head),
        plain_at=at + (8 if syntax == _IMPLICIT else 12) if syntax in (_IMPLICIT, _EXPLICIT) else None,
    )


def _flaw(file: File, found: dict[str, Any], syntax: str, head: bytes) -> str | None:
    """The first thing that keeps the pixels of a file out of a volume."""
    rows, columns, samples = (_whole(found, name) for name in ("Rows", "Columns", "SamplesPerPixel"))
    sop_class, photometric = _text(found, "SOPClassUID"), _text(found, "PhotometricInterpretation")
    if sop_class in _SEGMENTATION:
        return "expected an image, got a segmentation object; give the series that it was made from"
    if not rows or not columns:
        return f"expected an image, got a {_text(found, 'Modality')[:16] or 'DICOM'} object without pixels"
    if (samples or 1) > 1 or not photometric.startswith("MONOCHROME") or sop_class == _WHOLE_SLIDE:
        return f"expected one grey value per voxel, got colour ({photometric or 'several values'}); export it as grey"
    if _whole(found, "BitsAllocated") not in (8, 16, 32, 64):
        return f"expected 8, 16, 32 or 64 bits per value, got {_whole(found, 'BitsAllocated')}; export it again"
    if not syntax:
        return None  # without the file's own header pydicom goes by the bytes
    if not decoding.decodable(syntax):
        return f"expected a known compression, got the transfer syntax {syntax}; export it uncompressed"
    return _pixel_flaw(file, found, syntax, head, rows * columns)


def _pixel_flaw(file: File, found: dict[str, Any], syntax: str, head: bytes, pixels: int) -> str | None:
    """Whether the pixels that the header announces can be there."""
    if syntax == _DEFLATED:
        return None  # where they begin is known only after unpacking
    if _tag(head, syntax) not in _PIXEL_TAGS:
        return "expected an image, got a header without pixels; export the file again"
    if _compressed(syntax):
        return None
    needed = pixels * _count(found) * (_whole(found, "BitsAllocated") or 8) // 8
    long = head[4:6] in (b"OW", b"OB", b"OF", b"OD", b"UN")
    order = "big" if syntax == _BIG_ENDIAN else "little"
    noted = int.from_bytes(head[8:12] if long else head[4:8], order)
    if noted >= needed and file.size >= needed:
        return None
    return f"the file is incomplete: {needed} bytes of pixels expected, {min(noted, file.size)} there; export it again"


def _compressed(syntax: str) -> bool:
    return syntax.startswith("1.2.840.10008.1.2.4") or syntax == "1.2.840.10008.1.2.5"


def _tag(head: bytes, syntax: str) -> bytes:
    """The tag of the element at which reading stopped, group first, high bytes first."""
    if syntax == _BIG_ENDIAN:
        return head[:4]
    return head[1::-1] + head[3:1:-1] if len(head) >= 4 else b""


def _plane(instance: Instance, found: dict[str, Any], frame: int) -> Plane:
    groups = _Groups(found, frame)
    spacing = groups.numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    spacing = spacing if spacing is not None else _numbers(found, "ImagerPixelSpacing", 2)
    directions = groups.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    depth = groups.numbers("PixelMeasuresSequence", "SpacingBetweenSlices", 1)
    depth = depth if depth is not None else groups.numbers("PixelMeasuresSequence", "SliceThickness", 1)
    slope = groups.numbers("PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = groups.numbers("PixelValueTransformationSequence", "RescaleIntercept", 1)
    return Plane(
        instance=instance,
        frame=frame,
        position=groups.numbers("PlanePositionSequence", "ImagePositionPatient", 3),
        directions=None if directions is None else directions.reshape(2, 3),
        spacing=None if spacing is None else (float(spacing[0]), float(spacing[1])),
        depth=None if depth is None else abs(float(depth[0])),
        slope=1.0 if slope is None or slope[0] == 0 else float(slope[0]),
        intercept=0.0 if intercept is None else float(intercept[0]),
        table="ModalityLUTSequence" in found,
        phases=groups.phases(),
    )


class _Groups:
    """Where a frame's attributes stand: in its own group, in the shared one, or in the file itself."""

    def __init__(self, found: dict[str, Any], frame: int) -> None:
        self._found = found
        own, shared = (
            _values(found, f"{name}FunctionalGroupsSequence") if f"{name}FunctionalGroupsSequence" in found else []
            for name in ("PerFrame", "Shared")
        )
        self._groups = [*own[frame : frame + 1], *shared[:1]]

    def numbers(self, sequence: str, keyword: str, count: int) -> np.ndarray | None:
        """`count` finite numbers, or None."""
        for group in self._groups:
            for item in _values(group, sequence):
                if keyword in item:
                    return _numbers(item, keyword, count)
        return _numbers(self._found, keyword, count)

    def phases(self) -> dict[str, str]:
        """What is said under the keys of `PHASES`, as text."""
        said = {name: _text(self._found, name) for name in PHASES if name in self._found}
        for group in reversed(self._groups):
            for element in group:
                for item in element.value if element.VR == "SQ" else ():
                    said |= {name: _text(item, name) for name in PHASES if name in item}
        return {name: value for name, value in said.items() if value}


def _count(found: dict[str, Any]) -> int:
    return max(1, _whole(found, "NumberOfFrames") or 1)


def _values(found: Any, keyword: str) -> list[Any]:
    """The values of an element as a list; empty where it is absent or cannot be decoded."""
    try:
        value = found.get(keyword)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError, OverflowError):
        return []
    if value is None or value == "":
        return []
    return [value] if isinstance(value, str | bytes | int | float) or not hasattr(value, "__iter__") else list(value)


def _text(found: Any, keyword: str) -> str:
    return "\\".join(str(value) for value in _values(found, keyword)).strip()


def _numbers(found: Any, keyword: str, count: int) -> np.ndarray | None:
    try:
        numbers = np.array([float(value) for value in _values(found, keyword)])
    except (ValueError, TypeError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _number(found: Any, keyword: str) -> float | None:
    numbers = _numbers(found, keyword, 1)
    return None if numbers is None else float(numbers[0])


def _whole(found: Any, keyword: str) -> int | None:
    number = _number(found, keyword)
    return None if number is None else int(number)
