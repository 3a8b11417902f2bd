"""Bytes in and out: bounded reading of plain or gzip files, and writing that leaves the whole result or none."""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from medseg.errors import InputRefused

_CHUNK = 8 << 20
_GZIP = b"\x1f\x8b"
_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this many times its size

_FOOTER = 1 << 16  # bytes that may follow the voxels, as the tags of an MGH file do

_CONTENTS = (
    (_GZIP, "gzip data"),
    (b"NRRD", "an NRRD file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89HDF", "an HDF5 file"),
    (b"ObjectType", "a MetaImage file"),
    (b"%PDF", "a PDF document"),
)


def content(head: bytes) -> str:
    """What the first bytes of a file look like, as words for a message."""
    if head[128:132] == b"DICM":
        return "a DICOM file"
    if head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2"):
        return "an uncompressed NIfTI file"
    named = next((name for magic, name in _CONTENTS if head.startswith(magic)), None)
    if named is None and head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return "plain text"
    return named or "unknown bytes"


def first_bytes(path: Path, count: int = 512) -> bytes:
    """Up to `count` bytes from the start of the file, as they are on disk.

    Raises:
        InputRefused: The file is empty.
    """
    with path.open("rb") as stream:
        head = stream.read(count)
    if not head:
        raise InputRefused("expected a volume, got an empty file (0 bytes); copy or export it again")
    return head


def check_packing(path: Path, *, packed: bool) -> None:
    """Refuse a file whose compression is not what its name says.

    Raises:
        InputRefused: A gzip name without gzip data, or the reverse, or an empty file.
    """
    head = first_bytes(path)
    if packed and not head.startswith(_GZIP):
        raise InputRefused(f"the name says gzip, the content is {content(head)}; rename the file to what it is")
    if not packed and head.startswith(_GZIP):
        raise InputRefused("the name says uncompressed, the content is gzip data; rename the file, adding .gz")


@contextmanager
def unpacked(path: Path, *, packed: bool) -> Iterator[BinaryIO]:
    """The file's bytes, gzip taken off.

    Raises:
        InputRefused: The gzip data ends early or is damaged.
    """
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            yield cast("BinaryIO", stream)
    except EOFError:
        raise InputRefused("the file is incomplete: its gzip data ends early; copy or export it again") from None
    except (gzip.BadGzipFile, zlib.error):
        raise InputRefused("the file is damaged: its gzip data cannot be unpacked; copy or export it again") from None


def length_error(path: Path, *, packed: bool, needed: int) -> str | None:
    """Why the file cannot hold `needed` unpacked bytes, or None if nothing speaks against it.

    Costs next to nothing for a sound file. Where the length noted at the end of a gzip file is not the expected one,
    the file is unpacked once to be sure, since joined gzip files are legal and note only their last part.
    """
    size = path.stat().st_size
    if not packed:
        return incomplete(needed, size) if size < needed else None
    if size * _DEFLATE_RATIO < needed:
        return incomplete(needed, f"at most {size * _DEFLATE_RATIO}")
    with path.open("rb") as stream:
        stream.seek(max(0, size - 4))
        noted = int.from_bytes(stream.read(4), "little")
    if (noted - needed) % 2**32 <= _FOOTER:
        return None
    try:
        with unpacked(path, packed=True) as stream:
            skip(stream, needed)
            stream.read(1)
    except InputRefused as refusal:
        return str(refusal)
    return None


def read_array(stream: BinaryIO, dtype: np.dtype, count: int) -> np.ndarray:
    """The next `count` values, one-dimensional.

    Raises:
        InputRefused: The stream ends before.
    """
    values = np.empty(count, dtype)
    target = memoryview(values.view(np.uint8).data)
    at = 0
    while at < len(target):
        got = cast("int", stream.readinto(target[at : at + _CHUNK]))  # pyright: ignore[reportAttributeAccessIssue] all have it
        if not got:
            raise InputRefused(incomplete(len(target), at))
        at += got
    return values


def skip(stream: BinaryIO, count: int) -> None:
    """Pass over the next `count` bytes.

    Raises:
        InputRefused: The stream ends before.
    """
    left = count
    while left > 0:
        got = len(stream.read(min(left, _CHUNK)))
        if not got:
            raise InputRefused(incomplete(count, count - left))
        left -= got


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path with the same file name in a hidden folder beside the target; on success its files move into place.

    Whatever lies in the hidden folder is flushed to disk and moved over the target's folder, the named file last, so
    a header never appears before the voxels that it describes. On any exception nothing is left behind; a process that
    is killed leaves at most the hidden folder.
    """
    folder = Path(tempfile.mkdtemp(prefix=".medseg-", dir=path.parent))
    try:
        draft = folder / path.name
        yield draft
        for written in sorted(folder.iterdir(), key=lambda file: file == draft):
            _flush(written)
            written.replace(path.parent / written.name)
        if os.name == "posix":  # elsewhere a folder cannot be opened to be flushed
            _flush(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def incomplete(expected: int, got: int | str) -> str:
    """The sentence for a file with fewer bytes than its header announces."""
    return f"the file is incomplete: {expected} bytes expected, {got} there; copy or export it again"
