"""NRRD and MetaImage through SimpleITK, and SimpleITK images. ITK speaks LPS; the change to RAS happens here only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name that its own documentation uses

from medseg.errors import InputRefused
from medseg.io import stream
from medseg.io.header import NO_ORIENTATION, Header, Problem
from medseg.io.voxels import storable
from medseg.volume import Source, Volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_FORMATS = {".nrrd": "NRRD", ".mha": "MetaImage", ".mhd": "MetaImage"}
_GEOMETRY = {
    "NRRD": ("space directions", "space origin", "spacings"),
    "MetaImage": ("transformmatrix", "rotation", "orientation", "offset", "position", "origin", "elementspacing"),
}
_ORIENTED = {"NRRD": {"space directions"}, "MetaImage": {"transformmatrix", "rotation", "orientation"}}
_DATA_FILE = {"NRRD": ("data file", "datafile"), "MetaImage": ("elementdatafile",)}
_NUMPY_NAMES = {
    **{f"{sign}Int{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)},
    "Float32": "float32",
    "Float64": "float64",
    "ComplexFloat32": "complex64",
    "ComplexFloat64": "complex128",
}
_TYPES = {
    getattr(sitk, f"sitk{vector}{itk_name}"): name
    for itk_name, name in _NUMPY_NAMES.items()
    for vector in ("", "Vector")
    if not (vector and itk_name.startswith("Complex"))
}


def read_header(path: Path) -> Header:
    """The header of a `.nrrd`, `.mha` or `.mhd` file.

    Raises:
        InputRefused: The content is not of the named format, its geometry is not finite, or its voxels lie elsewhere.
    """
    name = _FORMATS[path.suffix.lower()]
    text, end = _text_header(path, name)
    for key in _GEOMETRY[name]:
        # ITK reads a NaN origin of a MetaImage file as 0, so the text itself is searched.
        if any(word in text.get(key, "").lower() for word in ("nan", "inf")):
            raise InputRefused(
                f"the geometry must be finite, got {text[key]} as {key}; correct the header and try again"
            )
    _check_data_file(path, name, text)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise InputRefused(f"expected a {name} header, got one that cannot be decoded; export the file again") from None
    header = _header(reader, reader.GetNumberOfComponents(), name, _byte_order(text))
    if name == "MetaImage":
        _check_length(path, text, end, header)
    problems = () if _ORIENTED[name] & text.keys() else (Problem("warning", NO_ORIENTATION),)
    return Header(header.shape, header.dtype, header.affine, header.source, header.components, problems=problems)


def read_voxels(path: Path, header: Header, time_point: int | None) -> np.ndarray:
    """(X, Y, Z) values of one time point.

    Raises:
        InputRefused: The voxels are incomplete or damaged.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    if time_point is not None:
        reader.SetExtractSize([*header.shape[:3], 0])
        reader.SetExtractIndex([0, 0, 0, time_point])
    try:
        image = reader.Execute()
    except RuntimeError:
        raise InputRefused("the file is incomplete or damaged: voxels cannot be decoded; export it again") from None
    return sitk.GetArrayFromImage(image).transpose().reshape(header.shape[:3])


def write(volume: Volume, path: Path, like: Volume | None) -> None:
    """Write a `.nrrd`, `.mha` or `.mhd` file, compressed, to exactly this path; `like` has nothing to say in them."""
    sitk.WriteImage(to_sitk(volume), str(path), useCompression=True)


def image_header(image: Any) -> Header:
    """What a SimpleITK image says of itself."""
    return _header(image, image.GetNumberOfComponentsPerPixel(), "memory", "little")


def image_voxels(image: Any, time_point: int | None) -> np.ndarray:
    """(X, Y, Z) values of one time point of a SimpleITK image, as a copy."""
    values = sitk.GetArrayFromImage(image).transpose()
    values = values if time_point is None else values[..., time_point]
    return values.reshape(values.shape[:3])


def to_sitk(volume: Volume) -> Any:
    """The volume as a SimpleITK image in LPS; labels and masks take the smallest integer type.

    Raises:
        ValueError: The axes are not at right angles, which ITK cannot hold.
    """
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    in_lps = _LPS_TO_RAS @ volume.affine
    directions = in_lps[:3, :3] / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4:
        raise ValueError("axes must be at right angles for SimpleITK, got a sheared grid; resample it first")
    voxels = storable(volume)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(in_lps[:3, 3].tolist())
    image.SetDirection(directions.ravel().tolist())
    return image


def _header(image: Any, components: int, name: str, byte_order: Any) -> Header:
    """From an image or from a reader that has read the header: both answer the same questions."""
    size = list(image.GetSize())
    rank = len(size)
    while rank > 3 and size[rank - 1] == 1:
        rank -= 1
    # A file of two axes has its own small direction matrix; it is refused for its shape, and needs no affine.
    affine = np.eye(4)
    if rank >= 3:
        directions = np.reshape(image.GetDirection(), (len(size), len(size)))[:3, :3]
        spacing = np.array(image.GetSpacing()[:3])
        affine[:3, :3] = np.where(spacing == 0, 0, directions * spacing)  # without a spacing ITK has NaN directions
        affine[:3, 3] = image.GetOrigin()[:3]
        affine = _LPS_TO_RAS @ affine
    kind = image.GetPixelIDValue()
    if kind not in _TYPES:
        raise InputRefused(f"expected numeric voxels, got {image.GetPixelIDTypeAsString()}; convert to float32")
    dtype = np.dtype(_TYPES[kind])
    source = Source(format=name, shape=tuple(size), dtype=dtype, affine=affine, byte_order=byte_order)
    return Header(tuple(size[:rank]), dtype, affine, source, components=components)


def _text_header(path: Path, name: str) -> tuple[dict[str, str], int]:
    """Keys in lower case and values of the text in front of the voxels, and the bytes that it takes.

    Raises:
        InputRefused: The file does not start like its format.
    """
    head = stream.first_bytes(path, 1 << 16)
    lines = head.split(b"\n")
    started = head.startswith(b"NRRD") if name == "NRRD" else any(line.lstrip().startswith(b"NDims") for line in lines)
    if not started:
        raise InputRefused(f"expected a {name} header, got {stream.content(head)}; rename the file to what it is")
    fields: dict[str, str] = {}
    end = 0
    for line in lines:
        end += len(line) + 1
        text = line.decode("latin-1").strip()
        if not text and name == "NRRD":
            break
        key, _, value = text.partition(":" if name == "NRRD" else "=")
        fields[key.strip().lower()] = value.strip("= ")
        if fields.keys() & {"elementdatafile"}:
            break
    return fields, end


def _check_data_file(path: Path, name: str, text: dict[str, str]) -> None:
    """Voxels may lie in a file beside the header, never in another folder: a header must not open other files."""
    data = next((text[key] for key in _DATA_FILE[name] if key in text), "LOCAL")
    if data.upper() == "LOCAL":
        return
    if name == "NRRD" or Path(data).name != data or "\\" in data or "%" in data or data.upper().startswith("LIST"):
        raise InputRefused(
            "expected the voxels in one file beside the header, got another place; export it as one file"
        )
    beside = path.with_name(data)
    if not beside.is_file():
        raise InputRefused(f"expected the voxels in {data} beside the header, the file is missing; put it there")


def _check_length(path: Path, text: dict[str, str], end: int, header: Header) -> None:
    """Compare the bytes that are there with those that the header announces: ITK would complain past Python, on stderr.

    Args:
        path: The MetaImage file.
        text: Its header.
        end: Bytes that the header takes.
        header: The same, decoded.
    """
    data = text["elementdatafile"]
    inside = data.upper() == "LOCAL"
    there = path.stat().st_size - end if inside else path.with_name(data).stat().st_size
    needed = int(np.prod(header.source.shape, dtype=object)) * header.components * header.dtype.itemsize
    if text.get("compresseddata", "").lower() == "true":
        noted = text.get("compresseddatasize", "")
        needed = int(noted) if noted.isdigit() else 0
    elif text.get("binarydata", "true").lower() != "true":
        needed = 0  # numbers written as text have no fixed length
    if there < needed:
        raise InputRefused(stream.incomplete(needed, there))


def _byte_order(text: dict[str, str]) -> str:
    msb = text.get("binarydatabyteordermsb", text.get("elementbyteordermsb", "false")).lower() == "true"
    return "big" if msb or text.get("endian", "").lower() == "big" else "little"
