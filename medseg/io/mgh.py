"""FreeSurfer volumes, `.mgh` and `.mgz`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from nibabel.freesurfer.mghformat import MGHError, MGHHeader

from medseg.errors import InputRefused
from medseg.io import stream
from medseg.io.header import NO_ORIENTATION, Header, Problem
from medseg.volume import Source

_OFFSET = 284  # header bytes, by definition of the format
_GEOMETRY_FLAG = slice(28, 30)  # nibabel sets the decoded flag itself when it fills in the default geometry


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
    fields = MGHHeader(head, check=False)
    dims = [int(size) for size in fields["dims"]]
    if min(dims) < 1:
        raise InputRefused(f"expected axes of positive length, got {dims}; export the file again")
    try:
        dtype = np.dtype(cast("Any", fields.get_data_dtype()))  # nibabel's own annotation is wider than what it returns
    except (MGHError, KeyError):
        raise InputRefused(f"expected an MGH voxel type, got code {int(fields['type'])}; convert it") from None
    shape = tuple(dims if dims[3] > 1 else dims[:3])
    affine = np.asarray(fields.get_affine(), np.float64)
    source = Source(format="MGH", shape=shape, dtype=dtype.newbyteorder("="), affine=affine, byte_order="big")
    problems = []
    if head[_GEOMETRY_FLAG] == bytes(2):
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


def _packed(path: Path) -> bool:
    return path.suffix.lower() == ".mgz"
