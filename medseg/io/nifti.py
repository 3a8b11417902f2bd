"""NIfTI-1 and NIfTI-2, single files and .hdr/.img pairs.

Nothing is unpacked before the header has been judged, and the fields that hold the geometry are kept as they are: a
quaternion does not survive the way through a matrix exactly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from medseg.errors import InputRefused
from medseg.io import nifti_fields, stream
from medseg.io.header import NO_ORIENTATION, Header, Problem
from medseg.io.voxels import scaled
from medseg.volume import Source, Unit

_MAGIC = {348: (b"n+1", b"ni1"), 540: (b"n+2", b"ni2")}  # single file, pair
UNITS: dict[int, tuple[Unit, float]] = {0: ("unknown", 1.0), 1: ("m", 1e3), 2: ("mm", 1.0), 3: ("um", 1e-3)}
FORM_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"),
)


def read_header(path: Path) -> Header:
    """The header of a `.nii`, `.nii.gz`, `.hdr` or `.img` file; of a pair, either may be named.

    Raises:
        InputRefused: The content is no NIfTI header, or the pair is not complete.
    """
    packed = path.name.lower().endswith(".gz")
    header_path, data_path = _pair(path)
    stream.check_packing(header_path, packed=packed)
    with stream.unpacked(header_path, packed=packed) as file:
        head = file.read(540)
    fields = _fields(head, paired=header_path != data_path)
    header = header_of(fields, offset=_offset(fields, paired=header_path != data_path))
    lacking = stream.length_error(data_path, packed=packed, needed=header.offset + _stored_bytes(header))
    if lacking is None:
        return header
    return replace(header, problems=(Problem("error", lacking), *header.problems))


def read_voxels(path: Path, header: Header, time_point: int | None) -> np.ndarray:
    """(X, Y, Z) scaled values of one time point, in the order of the file.

    Raises:
        InputRefused: The file ends early or its gzip data is damaged.
    """
    shape = header.shape[:3]
    count = int(np.prod(shape))
    before = count * (time_point or 0) * header.dtype.itemsize
    after = _stored_bytes(header) - before - count * header.dtype.itemsize
    with stream.unpacked(_pair(path)[1], packed=path.name.lower().endswith(".gz")) as file:
        stream.skip(file, header.offset + before)
        stored = stream.read_array(file, header.dtype, count).reshape(shape, order="F")
        stream.skip(file, after)
        file.read(1)  # the checksum of gzip data is compared when its end is met
    return scaled(stored, header.source.slope, header.source.intercept)


def _pair(path: Path) -> tuple[Path, Path]:
    """The files with the header and with the voxels."""
    if path.suffix.lower() not in (".hdr", ".img"):
        return path, path
    upper = path.suffix.isupper()
    files = [path.with_suffix(suffix.upper() if upper else suffix) for suffix in (".hdr", ".img")]
    for file in files:
        if not file.is_file():
            raise InputRefused(
                f"expected a pair of .hdr and .img, the {file.suffix} is missing; put both in one folder"
            )
    return files[0], files[1]


def _fields(head: bytes, *, paired: bool) -> np.ndarray:
    """Decoded header fields.

    Raises:
        InputRefused: These bytes are no NIfTI header, or one of the other kind (single file, pair).
    """
    for order in ("little", "big"):
        size = int.from_bytes(head[:4], order)
        if size in nifti_fields.SIZES and len(head) >= size:
            fields = nifti_fields.decode(head, size, big_endian=order == "big")
            magic = fields["magic"].item()
            if magic == _MAGIC[size][int(paired)]:
                return fields
            if magic in _MAGIC[size]:
                raise InputRefused("the name and the header disagree on single file or .hdr/.img pair; rename the file")
            raise InputRefused("expected a NIfTI header, its magic bytes are damaged; copy or export the file again")
    raise InputRefused(f"expected a NIfTI header, got {stream.content(head)}; export the volume as NIfTI")


def _offset(fields: np.ndarray, *, paired: bool) -> int:
    """First byte of the voxels; never inside the header of a single file."""
    offset = float(fields["vox_offset"])
    if not (np.isfinite(offset) and 0 <= offset < 2**62):
        raise InputRefused(f"expected voxels behind the header, got the offset {offset:g}; export the file again")
    return int(offset) if paired else max(int(offset), int(fields["sizeof_hdr"]) + 4)


def header_of(fields: np.ndarray, *, offset: int) -> Header:
    """What the decoded fields say.

    Raises:
        InputRefused: The axes or the voxel type are none.
    """
    shape = _shape(fields)
    unit, scale = UNITS.get(int(fields["xyzt_units"]) & 7, UNITS[0])
    qform, sform = _qform(fields), nifti_fields.sform(fields)
    codes = int(fields["qform_code"]), int(fields["sform_code"])
    affine = np.array(sform if codes[1] > 0 else qform if codes[0] > 0 else _base_affine(fields, shape))
    affine[:3] *= scale
    slope, intercept = _scaling(fields)
    dtype = _dtype(fields)
    source = Source(
        format="NIfTI-1" if int(fields["sizeof_hdr"]) == 348 else "NIfTI-2",
        shape=shape,
        dtype=dtype.newbyteorder("="),
        affine=affine,
        byte_order="big" if nifti_fields.is_big_endian(fields) else "little",
        slope=slope,
        intercept=intercept,
        units=unit,
        qform_code=codes[0],
        sform_code=codes[1],
        qform=qform,
        sform=sform,
        fields={
            name: np.array(fields[name].item() if fields[name].ndim == 0 else fields[name].tolist())
            for name in (*FORM_FIELDS, "pixdim")
        },
    )
    problems = _form_problems(codes, qform, sform, shape, scale)
    if scale != 1.0:
        problems.append(Problem("note", f"lengths were stored in {unit} and converted to mm"))
    return Header(without_last_ones(shape), dtype, affine, source, offset=offset, problems=tuple(problems))


def _shape(fields: np.ndarray) -> tuple[int, ...]:
    rank = int(fields["dim"][0])
    shape = tuple(int(size) for size in fields["dim"][1 : rank + 1]) if 1 <= rank <= 7 else ()
    if not shape or min(shape) < 1:
        raise InputRefused(f"expected 1 to 7 axes of positive length, got {fields['dim'].tolist()}; export it again")
    return shape


def without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape without axes of length 1 behind the third."""
    rank = len(shape)
    while rank > 3 and shape[rank - 1] == 1:
        rank -= 1
    return tuple(int(size) for size in shape[:rank])


def _dtype(fields: np.ndarray) -> np.dtype:
    dtype = nifti_fields.voxel_dtype(fields)
    if dtype is None:
        raise InputRefused(f"expected a NIfTI voxel type, got code {int(fields['datatype'])}; convert to float32")
    return dtype


def _scaling(fields: np.ndarray) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 or without a value means that the voxels are stored as they are."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 or not np.isfinite(slope):
        return 1.0, 0.0
    return slope, intercept if np.isfinite(intercept) else 0.0


def _qform(fields: np.ndarray) -> np.ndarray:
    """The qform matrix; NaN where the quaternion is none."""
    sizes = np.abs(np.asarray(fields["pixdim"], np.float64)[1:4])
    rotation = nifti_fields.rotation(fields)
    if rotation is None:
        return np.full((4, 4), np.nan)
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * sizes
    if fields["pixdim"][0] < 0:  # only -1 turns the third axis round; 0 counts as 1
        matrix[:3, 2] *= -1
    matrix[:3, 3] = [float(fields[f"qoffset_{axis}"]) for axis in "xyz"]
    return matrix


def _base_affine(fields: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Left to right reversed and centred, as tools agree for files that state no orientation."""
    sizes = np.abs(np.asarray(fields["pixdim"], np.float64)[1:4]) * (-1, 1, 1)
    affine = np.diag([*sizes, 1.0])
    affine[:3, 3] = -sizes * (np.array([*shape, 1, 1][:3]) - 1) / 2
    return affine


def _form_problems(
    codes: tuple[int, int], qform: np.ndarray, sform: np.ndarray, shape: tuple[int, ...], scale: float
) -> list[Problem]:
    if codes == (0, 0):
        return [Problem("warning", NO_ORIENTATION)]
    if min(codes) <= 0 or not (np.isfinite(qform).all() and np.isfinite(sform).all()):
        return []
    corners = np.stack(np.meshgrid(*[(0, size - 1) for size in [*shape, 1, 1][:3]]), axis=-1).reshape(-1, 3)
    apart = np.linalg.norm(corners @ (qform - sform)[:3, :3].T + (qform - sform)[:3, 3], axis=1).max() * scale
    if apart < 0.1 * scale * np.linalg.norm(sform[:3, :3], axis=0).min():
        return []
    # Different codes name different spaces, for example scanner and template: then both may be right.
    severity = "warning" if codes[0] == codes[1] else "note"
    return [Problem(severity, f"sform and qform disagree by up to {apart:.3g} mm; the sform is used")]


def _stored_bytes(header: Header) -> int:
    return int(np.prod(header.source.shape, dtype=object)) * header.dtype.itemsize
