"""One DICOM file as a picture: from cameras, endoscopes and microscopes, and single slices where they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space

from medseg.errors import InputRefused
from medseg.io import pictures
from medseg.io.dicom.decoding import read_dataset, refusing
from medseg.picture import Picture, PictureSource

_CAMERAS = ("OP", "XC", "ES", "GM", "DMS", "SMR")  # modalities whose images are photographs
_HEADER = ["Modality", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns"]


def shows_picture(path: Path) -> bool:
    """Whether the file holds one colour image or a photograph; False where its header cannot be read."""
    try:
        with path.open("rb") as stream:
            found = read_dataset(stream, _HEADER)
            coloured = int(found.get("SamplesPerPixel", 1)) == 3
            palette = found.get("PhotometricInterpretation") == "PALETTE COLOR"
            return coloured or palette or found.get("Modality") in _CAMERAS
    except (InputRefused, TypeError, ValueError):
        return False


def read(path: Path, limit: int) -> Picture:
    """The picture in a DICOM file: colours as RGB, grey values as its window shows them, in 16 bit.

    Args:
        path: The file.
        limit: Bytes that reading may take.

    Raises:
        InputRefused: The file has no pixels, several frames, or cannot be decoded.
    """
    with path.open("rb") as stream:
        head = read_dataset(stream)
    with refusing(f"{path.name}: the DICOM header cannot be decoded; export the file again"):
        size = int(head.get("Columns", 0)), int(head.get("Rows", 0))
        frames = int(head.get("NumberOfFrames", 1) or 1)
    if min(size) < 1:
        raise InputRefused(f"{path.name}: expected an image, got DICOM without pixels; choose another file")
    if frames > 1:
        raise InputRefused(f"{path.name}: expected one picture, got {frames} frames; export one of them")
    pictures.refuse_large(path.name, *size, limit)
    with refusing(f"{path.name}: pixels cannot be decoded: they are incomplete or damaged; export the file again"):
        dataset = pydicom.dcmread(path, force=True)
        pixels = _pixels(dataset)
        spacing = _spacing(dataset)
    told = f"{'grey' if pixels.shape[2] == 1 else 'RGB'}, {8 * pixels.dtype.itemsize} bit"
    return Picture(np.ascontiguousarray(pixels), spacing, PictureSource(format="DICOM", mode=told))


def _pixels(dataset: Any) -> NDArray[np.integer]:
    """(H, W, 1 or 3), uint8 or uint16."""
    values, kind = dataset.pixel_array, str(dataset.PhotometricInterpretation)
    if kind == "PALETTE COLOR":
        return _eight_or_sixteen(apply_color_lut(values, dataset)[..., :3])
    if values.ndim == 3:
        # pixel_array has already turned the compressed forms of YBR into RGB
        full = kind.startswith("YBR_FULL") and not dataset.file_meta.TransferSyntaxUID.is_compressed
        return _eight_or_sixteen(convert_color_space(values, "YBR_FULL", "RGB") if full else values)
    shown = apply_voi_lut(apply_modality_lut(values, dataset), dataset).astype(np.float64)
    low, high = float(shown.min()), float(shown.max())
    grey = (shown - low) * (65535 / (high - low if high > low else 1.0))
    grey = 65535 - grey if kind == "MONOCHROME1" else grey
    return grey.round().astype(np.uint16)[..., None]


def _eight_or_sixteen(values: NDArray[Any]) -> NDArray[np.integer]:
    return values if values.dtype in (np.uint8, np.uint16) else values.astype(np.uint16)


def _spacing(dataset: Any) -> tuple[float, float] | None:
    """mm from row to row and from column to column, on the thing itself where that is stated."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        found = dataset.get(keyword)
        if found and len(found) == 2 and min(float(v) for v in found) > 0:
            return float(found[0]), float(found[1])
    return None
