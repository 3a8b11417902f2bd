"""Uploads that mean harm or are broken, as they come from strangers: name to ending and content."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import nibabel
import numpy as np


def nifti_bytes(
    shape: tuple[int, ...] = (8, 8, 8), *, affine: np.ndarray | None = None, voxels: bytes | None = None
) -> bytes:
    header = nibabel.nifti1.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((8, 8, 8))
    header.set_sform(np.eye(4) if affine is None else affine, code=1)
    raw = bytearray(header.binaryblock) + b"\0\0\0\0"
    struct.pack_into("<8h", raw, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<f", raw, 108, 352.0)
    return bytes(raw) + (np.arange(512, dtype=np.int16).tobytes() if voxels is None else voxels)


def zip_bytes(*members: tuple[str, bytes], link: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if link:
                entry.create_system, entry.external_attr = 3, 0o120777 << 16
            archive.writestr(entry, content)
    return stream.getvalue()


def _encrypted() -> bytes:
    content = bytearray(zip_bytes(("a.nii", nifti_bytes())))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


NAN = np.diag([np.nan, 1, 1, 1])
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 64
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": (".nii", lambda: b""),
    "no volume": (".nii.gz", lambda: b"<script>alert(1)</script>"),
    "cut off": (".nii", lambda: nifti_bytes()[:600]),
    "more voxels than any disk": (".nii", lambda: nifti_bytes((32000, 32000, 30000))),
    "50,000 slices of nothing": (".mha", lambda: b"ObjectType = Image\nNDims = 3\nDimSize = 512 512 50000\n"
                                 b"ElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = LOCAL\n\0\0"),
    "negative size": (".nii", lambda: nifti_bytes((-8, 8, 8))),
    "NaN geometry": (".nii", lambda: nifti_bytes(affine=NAN)),
    "flat geometry": (".nii", lambda: nifti_bytes(affine=np.diag([1.0, 1, 0, 1]))),
    "gzip bomb": (".nii.gz", lambda: gzip.compress(nifti_bytes((2048, 2048, 1000), voxels=bytes(32 << 20)))),
    "zip bomb": (".zip", lambda: zip_bytes(("a.dcm", bytes(64 << 20)))),
    "zip that leads out": (".zip", lambda: zip_bytes(("../../../tmp/out.nii", nifti_bytes()), ("/etc/a.nii", b"a"))),
    "zip of links": (".zip", lambda: zip_bytes(("a.nii", b"/etc/passwd"), link=True)),
    "zip of zips": (".zip", lambda: zip_bytes(("a.zip", zip_bytes(("a.nii", nifti_bytes()))))),
    "zip of several images": (".zip", lambda: zip_bytes(("a.nii", nifti_bytes()), ("b.nii", nifti_bytes()))),
    "encrypted zip": (".zip", _encrypted),
    "broken zip": (".zip", lambda: b"PK\x03\x04" + b"\0" * 100),
    "empty zip": (".zip", lambda: zip_bytes()),
    "program as a picture": (".png", lambda: b"\x7fELF" + b"\0" * 100),
    "zip behind a picture": (".nii.gz", lambda: PNG + zip_bytes(("a.nii", nifti_bytes()))),
    "picture as DICOM": (".dcm", lambda: PNG),
    "picture bomb": (".png", lambda: _png(60_000)),
    "header that names a file": (".mha", lambda: b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = "
                                 b"MET_UCHAR\nElementSpacing = 1 1 1\nElementDataFile = /etc/passwd\n"),
    "header that names another": (".nrrd", lambda: b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
                                  b"data file: ../../../../etc/passwd\n\n"),
}  # fmt: skip


def _png(side: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
