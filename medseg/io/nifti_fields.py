"""The fixed part of a NIfTI header, decoded with numpy alone: importing nibabel costs longer than reading most files.

Field names and places are those of the standard (nifti1.h, nifti2.h). Fields without meaning for a volume are skipped.
"""

from __future__ import annotations

import numpy as np

SIZES = (348, 540)  # NIfTI-1, NIfTI-2

_COLOUR = {3: [("R", "u1"), ("G", "u1"), ("B", "u1")], 4: [("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")]}
_VOXEL_TYPES: dict[int, str] = dict(
    zip(
        (2, 4, 8, 16, 32, 64, 256, 512, 768, 1024, 1280, 1792),
        ("u1", "i2", "i4", "f4", "c8", "f8", "i1", "u2", "u4", "i8", "u8", "c16"),
        strict=True,
    )
)
_WIDE = {1536: "V16", 2048: "V32"}  # real and complex of 128 bits a number: no layout that all machines share

_FORMS = [
    *[("qform_code", "i{code}", 1), ("sform_code", "i{code}", 1)],
    *[(f"quatern_{axis}", "f{real}", 1) for axis in "bcd"],
    *[(f"qoffset_{axis}", "f{real}", 1) for axis in "xyz"],
    *[(f"srow_{axis}", "f{real}", 4) for axis in "xyz"],
]


def _layout(fields: dict[str, tuple[str, int, int]], size: int, code: int, real: int, forms: int) -> np.dtype:
    """A structured type with gaps: the fields given, and those of the two forms one behind the other."""
    names, formats, offsets = [], [], []
    for name, (kind, count, offset) in fields.items():
        names.append(name)
        formats.append((kind, (count,)) if count > 1 else kind)
        offsets.append(offset)
    at = forms
    for name, kind, count in _FORMS:
        one = np.dtype(kind.format(code=code, real=real))
        names.append(name)
        formats.append((one, (count,)) if count > 1 else one)
        offsets.append(at)
        at += one.itemsize * count
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


_LAYOUTS = {
    348: _layout(
        {
            "sizeof_hdr": ("i4", 1, 0),
            "dim": ("i2", 8, 40),
            "datatype": ("i2", 1, 70),
            "pixdim": ("f4", 8, 76),
            "vox_offset": ("f4", 1, 108),
            "scl_slope": ("f4", 1, 112),
            "scl_inter": ("f4", 1, 116),
            "xyzt_units": ("u1", 1, 123),
            "magic": ("S4", 1, 344),
        },
        size=348,
        code=2,
        real=4,
        forms=252,
    ),
    540: _layout(
        {
            "sizeof_hdr": ("i4", 1, 0),
            "magic": ("S4", 1, 4),
            "datatype": ("i2", 1, 12),
            "dim": ("i8", 8, 16),
            "pixdim": ("f8", 8, 104),
            "vox_offset": ("i8", 1, 168),
            "scl_slope": ("f8", 1, 176),
            "scl_inter": ("f8", 1, 184),
            "xyzt_units": ("i4", 1, 500),
        },
        size=540,
        code=4,
        real=8,
        forms=344,
    ),
}


def decode(head: bytes, size: int, *, big_endian: bool) -> np.ndarray:
    """The header as one structured element, in its own byte order.

    Args:
        head: At least `size` bytes.
        size: 348 or 540.
        big_endian: Its byte order.
    """
    return np.frombuffer(head, _LAYOUTS[size].newbyteorder(">" if big_endian else "<"), count=1).reshape(())


def is_big_endian(fields: np.ndarray) -> bool:
    """Its byte order."""
    assert fields.dtype.fields is not None  # it comes from `decode`
    return fields.dtype.fields["dim"][0].base.str.startswith(">")


def voxel_dtype(fields: np.ndarray) -> np.dtype | None:
    """The stored voxel type with the file's byte order, structured for colour; None for an unknown code."""
    code = int(fields["datatype"])
    if code in (128, 2304):
        return np.dtype(_COLOUR[3 if code == 128 else 4])
    if code in _WIDE:
        return np.dtype(_WIDE[code])
    found = _VOXEL_TYPES.get(code)
    return None if found is None else np.dtype(found).newbyteorder(">" if is_big_endian(fields) else "<")


def sform(fields: np.ndarray) -> np.ndarray:
    """(4, 4) matrix of the sform, in the file's own unit."""
    rows = [np.asarray(fields[f"srow_{axis}"], np.float64) for axis in "xyz"]
    return np.array([*rows, [0.0, 0.0, 0.0, 1.0]])


def rotation(fields: np.ndarray) -> np.ndarray | None:
    """(3, 3) rotation of the quaternion (nifti1.h, method 2); None where b, c and d are longer than 1."""
    x, y, z = (float(fields[f"quatern_{part}"]) for part in "bcd")
    rounding = 3 * float(np.finfo(np.float32 if int(fields["sizeof_hdr"]) == 348 else np.float64).eps)
    rest = 1.0 - (x * x + y * y + z * z)
    if not rest >= -rounding:  # also where it is NaN
        return None
    w = 0.0 if rest < rounding else float(np.sqrt(rest))
    scale = 2.0 / (w * w + x * x + y * y + z * z)
    return np.array(
        [
            [1 - scale * (y * y + z * z), scale * (x * y - w * z), scale * (x * z + w * y)],
            [scale * (x * y + w * z), 1 - scale * (x * x + z * z), scale * (y * z - w * x)],
            [scale * (x * z - w * y), scale * (y * z + w * x), 1 - scale * (x * x + y * y)],
        ]
    )
