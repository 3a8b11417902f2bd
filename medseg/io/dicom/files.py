"""The files behind a path: of a folder, a zip archive, a DICOMDIR, or the one file itself. Nothing is unpacked to disk.

Members of an archive are read from where they are, so no name inside it ever becomes a path on this machine.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from medseg.errors import InputRefused
from medseg.io.dicom.decoding import directory_entries
from medseg.io.header import Problem

_MARK = b"DICM"
_MOST_FILES = 200_000
_LARGEST_MEMBER = 4 << 30  # bytes of one unpacked file
_LARGEST_ARCHIVE = 64 << 30  # bytes of all unpacked files together
_RATIO = 200  # unpacked over packed; images do not shrink that far, bombs do
_SMALL = 16 << 20  # bytes below which a member may shrink as it likes
_SMALL_ARCHIVE = 1 << 30  # the same of all members together


@dataclass(frozen=True)
class File:
    """One file that may hold DICOM.

    Attributes:
        path: The file, or the archive that holds it.
        member: Its name within the archive.
        size: Bytes.
        archive: The archive, open; its list of members is read once for all of them.
    """

    path: Path
    member: str | None
    size: int
    archive: zipfile.ZipFile | None = field(default=None, repr=False, compare=False)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Its bytes, seekable.

        Raises:
            InputRefused: The archive is damaged.
        """
        if self.member is None or self.archive is None:
            with self.path.open("rb") as stream:
                yield stream
            return
        try:
            content = self.archive.read(self.member)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
            raise InputRefused("the archive is damaged: a file cannot be unpacked; copy or export it again") from None
        yield io.BytesIO(content)


def find_files(path: Path) -> tuple[list[File], list[Problem]]:
    """The files behind a path in a fixed order, and what was left out.

    Raises:
        InputRefused: An archive or a DICOMDIR is damaged, names files outside itself, or is too large.
    """
    if path.is_dir():
        return _in_folder(path), []
    if path.suffix.lower() == ".zip":
        return _in_archive(path)
    if path.name.upper() == "DICOMDIR":
        return _in_directory(path)
    return [File(path, None, path.stat().st_size)], []


def looks_like_dicom(stream: BinaryIO) -> bool:
    """Whether the bytes begin as DICOM does; the stream is back at its start afterwards.

    A file without the 128 bytes in front and without the mark begins with an element of group 2 or 8.
    """
    head = stream.read(132)
    stream.seek(0)
    if head[128:] == _MARK:
        return True
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    length = int.from_bytes(head[4:8], "little")
    return head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00" and (explicit or length < 1 << 16)


def _in_folder(path: Path) -> list[File]:
    found = []
    for entry in sorted(path.rglob("*")):
        if entry.is_file() and not entry.name.startswith("."):
            found.append(File(entry, None, entry.stat().st_size))
        if len(found) > _MOST_FILES:
            raise InputRefused(f"expected at most {_MOST_FILES} files, got more; give the folder of one study")
    return found


def _in_archive(path: Path) -> tuple[list[File], list[Problem]]:
    try:
        archive = zipfile.ZipFile(path)  # closed with the last of its files
        members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError):
        raise InputRefused("expected a zip archive, got damaged data; copy or export it again") from None
    if len(members) > _MOST_FILES:
        raise InputRefused(f"expected at most {_MOST_FILES} files in the archive, got {len(members)}; split it")
    unpacked = sum(member.file_size for member in members)
    if unpacked > _LARGEST_ARCHIVE:
        raise InputRefused(f"expected at most {_LARGEST_ARCHIVE >> 30} GiB unpacked, got more; split the archive")
    if unpacked > max(_SMALL_ARCHIVE, _RATIO * path.stat().st_size):
        size = f"{unpacked / 2**30:.2g} GiB from {path.stat().st_size} bytes"
        raise InputRefused(f"expected images in the archive, got files that unpack to {size}; it is not opened")
    inside = [member for member in members if _stays_inside(member.filename)]
    problems = []
    if len(inside) < len(members):
        text = f"{len(members) - len(inside)} entries whose names lead out of the archive were left out"
        problems.append(Problem("warning", text))
    for member in inside:
        _check_member(member)
    kept = sorted((m for m in inside if not _clutter(m.filename)), key=lambda m: m.filename)
    return [File(path, member.filename, member.file_size, archive) for member in kept], problems


def _check_member(member: zipfile.ZipInfo) -> None:
    if member.flag_bits & 1:
        raise InputRefused("expected a plain zip archive, got an encrypted one; unpack it with its password first")
    bomb = member.file_size > _SMALL and member.file_size > _RATIO * max(1, member.compress_size)
    if bomb or member.file_size > _LARGEST_MEMBER:
        size = f"{member.file_size / 2**30:.2g} GiB from {member.compress_size} bytes"
        raise InputRefused(f"expected images in the archive, got a file that unpacks to {size}; it is not opened")


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/"))
    return not (parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name)


def _clutter(name: str) -> bool:
    """What systems add of their own accord."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def _in_directory(path: Path) -> tuple[list[File], list[Problem]]:
    """The image files that a DICOMDIR lists, none of them outside its own folder."""
    root = path.parent.resolve()
    found, missing = [], 0
    for parts in directory_entries(path):
        file = root.joinpath(*parts)
        if not file.resolve().is_relative_to(root):
            raise InputRefused("expected a DICOMDIR that lists files beside it, got one outside its folder; re-export")
        if file.is_file():
            found.append(File(file, None, file.stat().st_size))
        else:
            missing += 1
    if not found:
        raise InputRefused("expected the files that the DICOMDIR lists beside it, got none; copy the whole medium")
    text = f"{missing} files that the DICOMDIR lists are not there"
    return found, [Problem("warning", text)] if missing else []
