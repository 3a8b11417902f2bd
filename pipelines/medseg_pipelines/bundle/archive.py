"""A bundle as a folder, wherever it came from: archives are unpacked only after every entry has been judged."""

from __future__ import annotations

import json
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from medseg.errors import InputRefused, UsageError
from medseg_pipelines.case import hash_file

MANIFEST = "MANIFEST.json"
METADATA = "configs/metadata.json"
_MOST_FILES = 10_000
_MOST_BYTES = 16 << 30  # unpacked; the largest published bundles take a tenth of it
_MOST_RATIO = 200  # unpacked over packed, where it matters; weights and text stay far below
_SMALL = 1 << 20
_LITTLE = 64 << 20  # unpacked, of all entries: no harm, however it is packed
_CHUNK = 1 << 20
_PACKED_ON = (1980, 1, 1, 0, 0, 0)  # the same content gives the same archive


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """The root folder of a bundle; a zip is unpacked to a temporary place for as long as it is needed.

    Raises:
        UsageError: There is nothing at `path`.
        InputRefused: It is no bundle, or an archive that tries to harm.
    """
    if not path.exists():
        raise UsageError(f"bundle '{path.name}' is not there; check the path")
    if path.is_dir():
        _refuse_links(path)
        yield _root(path)
        return
    with tempfile.TemporaryDirectory(prefix="medseg-bundle-") as place:
        unpack(path, Path(place))
        yield _root(Path(place))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip into a folder.

    Raises:
        InputRefused: It is no zip, or an entry leaves the folder, is a link, comes twice or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(archive) as source:
            entries = [entry for entry in source.infolist() if not entry.is_dir()]
            _judge(archive, entries)
            for entry in entries:
                _write(source, entry, folder.joinpath(*PurePosixPath(entry.filename).parts))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise InputRefused(f"bundle '{archive.name}' must be a folder or a whole zip: {error}") from None


def pack(folder: Path, archive: Path) -> Path:
    """Put a folder, under the name of the archive, into a zip; it appears whole or not at all."""
    partial = archive.with_name(f".{archive.name}.partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as target:
        for name in file_names(folder):
            entry = zipfile.ZipInfo(f"{archive.stem}/{name}", _PACKED_ON)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with (folder / name).open("rb") as source, target.open(entry, "w", force_zip64=True) as sink:
                while chunk := source.read(_CHUNK):
                    sink.write(chunk)
    return partial.replace(archive)


def file_names(folder: Path) -> list[str]:
    """Every file below a folder, as sorted relative names with slashes; what Python leaves beside code is left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def checksums(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a bundle but the manifest itself."""
    return {name: hash_file(folder / name)[0] for name in file_names(folder) if name != MANIFEST}


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file of a bundle.

    Raises:
        InputRefused: It is absent, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputRefused(f"bundle file {path.name} must be JSON: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputRefused(f"bundle file {path.name} must be a JSON object, got {type(content).__name__}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object where its folder may not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _root(folder: Path) -> Path:
    """The folder itself, or the only one in it."""
    if (folder / METADATA).is_file():
        return folder
    inner = [path for path in folder.iterdir() if (path / METADATA).is_file()]
    if len(inner) == 1:
        return inner[0]
    raise InputRefused(f"bundle must hold {METADATA}, found none; this is no MONAI bundle")


def _refuse_links(folder: Path) -> None:
    links = [path.name for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise InputRefused(f"bundle must hold plain files only, '{links[0]}' is a link; copy what it points to")


def _judge(archive: Path, entries: list[zipfile.ZipInfo]) -> None:
    faults = [fault for entry in entries if (fault := _fault(entry))]
    names = [entry.filename.casefold() for entry in entries]
    if len(set(names)) != len(names):
        faults.append("two entries have the same name")
    if len(entries) > _MOST_FILES:
        faults.append(f"{len(entries)} files, {_MOST_FILES} at most")
    whole, packed = sum(entry.file_size for entry in entries), archive.stat().st_size
    if whole > _MOST_BYTES:
        faults.append(f"it unpacks to more than {_MOST_BYTES >> 30} GiB")
    if whole > max(_LITTLE, _MOST_RATIO * packed):  # many small entries, or entries that share their content
        faults.append(f"it unpacks to {whole // max(1, packed)} times its size")
    if faults:
        raise InputRefused(f"bundle '{archive.name}' is refused, nothing was unpacked: {faults[0]}")


def _fault(entry: zipfile.ZipInfo) -> str | None:
    name, path = entry.orig_filename, PurePosixPath(entry.filename)
    if "\\" in name or "\0" in name or ":" in name or path.is_absolute() or ".." in path.parts:
        return f"entry {name!r} leads out of its folder"
    mode = entry.external_attr >> 16
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        return f"entry {name!r} is a link or a device"
    if entry.file_size > _SMALL and entry.file_size > _MOST_RATIO * max(1, entry.compress_size):
        return f"entry {name!r} unpacks to {entry.file_size // max(1, entry.compress_size)} times its size"
    if entry.flag_bits & 1:
        return f"entry {name!r} is encrypted"
    return None


def _write(source: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Unpack one entry, never more than its header said."""
    path.parent.mkdir(parents=True, exist_ok=True)
    left = entry.file_size
    with source.open(entry) as packed, path.open("xb") as target:
        while chunk := packed.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                raise InputRefused(f"bundle entry {entry.filename!r} holds more than it says; the archive is forged")
            target.write(chunk)
