"""FreeSurfer volumes, `.mgh` and `.mgz`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import InputRefused
from medseg.io import stream
from medseg.io.header import NO_ORIENTATION, Header, Problem
from medseg.volume import Source

_OFFSET = 284  # header bytes, by definition of the format
_FIELDS = np.dtype(
    [
        *[("version", ">i4"), ("dims", ">i4", (4,)), ("type", ">i4"), ("degrees_of_freedom", ">i4")],
        # Whether the rest is filled in; mm per voxel, direction of each axis as a row, place of the centre.
        *[("has_geometry", ">i2"), ("spacing", ">f4", (3,)), ("directions", ">f4", (3, 3)), ("centre", ">f4", (3,))],
    ]
)
_TYPES = {0: "u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_CORONAL = np.array([[-1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # what the format assumes where it is not filled in


def read_header(path: Path) -> Header:
    """The header of an `.mgh` or `.mgz` file.

    Raises:
        InputRefused: The content is no MGH header.
    """
    packed = _packed(path)
    stream.check_packing(path, packed=packed)
    with stream.unpacked(path, packed=packed) as file:
        head = file.read(_OFFSET)
    if len(head) < _OFFSET or head[:4] != (1).to_bytes(4, "big"):
        raise InputRefused(f"expected an MGH header, got {stream.content(head)}; copy or export the file again")
    fields = np.frombuffer(head, _FIELDS, count=1)[0]
    dims = [int(size) for size in fields["dims"]]
    if min(dims) < 1:
        raise InputRefused(f"expected axes of positive length, got {dims}; export the file again")
    if int(fields["type"]) not in _TYPES:
        raise InputRefused(f"expected an MGH voxel type, got code {int(fields['type'])}; convert it")
    dtype = np.dtype(_TYPES[int(fields["type"])])
    shape = tuple(dims if dims[3] > 1 else dims[:3])
    affine = _affine(fields, dims)
    source = Source(format="MGH", shape=shape, dtype=dtype.newbyteorder("="), affine=affine, byte_order="big")
    problems = []
    if not fields["has_geometry"]:
        problems.append(Problem("warning", NO_ORIENTATION))
    lacking = stream.length_error(
        path, packed=packed, needed=_OFFSET + int(np.prod(dims, dtype=object)) * dtype.itemsize
    )
    if lacking:
        problems.append(Problem("error", lacking))
    return Header(shape, dtype, affine, source, offset=_OFFSET, problems=tuple(problems))


def read_voxels(path: Path, header: Header, time_point: int | None) -> np.ndarray:
    """(X, Y, Z) values of one frame, native byte order.

    Raises:
        InputRefused: The file ends early or its gzip data is damaged.
    """
    count = int(np.prod(header.shape[:3]))
    with stream.unpacked(path, packed=_packed(path)) as file:
        stream.skip(file, _OFFSET + count * (time_point or 0) * header.dtype.itemsize)
        stored = stream.read_array(file, header.dtype, count).reshape(header.shape[:3], order="F")
    return stored.astype(header.dtype.newbyteorder("="), copy=False)


def _affine(fields: np.void, dims: list[int]) -> np.ndarray:
    """(4, 4) voxel index to millimetres in RAS; the format states the place of the centre, at half the size."""
    affine = np.eye(4)
    affine[:3, :3] = _CORONAL
    if fields["has_geometry"]:
        affine[:3, :3] = fields["directions"].T.astype(np.float64) * fields["spacing"]
        affine[:3, 3] = fields["centre"]
    affine[:3, 3] -= affine[:3, :3] @ np.array(dims[:3]) / 2
    return affine


def _packed(path: Path) -> bool:
    return path.suffix.lower() == ".mgz"
