"""The folders of the web application: one private folder per upload and per job, bounded, removed after a time."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

from medseg.errors import InputRefused
from medseg_app.jobs.table import ENDED, Table
from medseg_pipelines.folders import RESULT_MARK
from medseg_pipelines.recipe import imported_models

ENDINGS = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha", ".zip", ".dcm")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_NAME = re.compile(r"[0-9a-f]{32}")
_MOST_FILES = 20_000


class TooLarge(InputRefused):
    """What arrives is more than may be stored."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may lie on the disk, and for how long.

    Attributes:
        upload_bytes: Of one upload with all its files.
        disk_bytes: Of all uploads and results together.
        keep_hours: From the end of the last work on an upload to its removal with all results.
    """

    upload_bytes: int = 4 << 30
    disk_bytes: int = 50 << 30
    keep_hours: float = 72.0


def default_home() -> Path:
    """Where the application keeps its work: beside the imported models."""
    return imported_models().with_name("serve")


class Store:
    """The folders under one home.

    Args:
        home: Made where it is not there, readable by this user only.
        table: Knows what they belong to.
        limits: What may lie there.
    """

    def __init__(self, home: Path, table: Table, limits: Limits) -> None:
        self.limits = limits
        self._table = table
        self._uploads, self._jobs = home / "uploads", home / "jobs"
        self.passing = home / "gradio"  # what `gradio_client` sends and fetches, beside the folder of its job
        for folder in (home, self._uploads, self._jobs, self.passing):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def upload_folder(self, upload: str) -> Path:
        """Where the files of an upload lie."""
        return self._uploads / _checked(upload)

    def job_folder(self, job: str) -> Path:
        """Where a job works; its result is the folder `result` within."""
        return self._jobs / _checked(job)

    def result(self, job: str) -> Path | None:
        """The result of a job, if it is there; it appears whole or not at all."""
        folder = self.job_folder(job) / "result"
        return folder if (folder / RESULT_MARK).is_file() else None

    async def receive(self, upload: str, name: str, content: AsyncIterator[bytes]) -> None:
        """Keep a file of an upload under a neutral name.

        Args:
            upload: Whose file it is.
            name: The file's own name; only its ending is used.
            content: The bytes as they arrive.

        Raises:
            InputRefused: The name ends in nothing known, or there are too many files.
            TooLarge: It is more than one upload may hold, or the disk is full.
        """
        folder = self.upload_folder(upload)
        folder.mkdir(mode=0o700, exist_ok=True)
        number = sum(1 for _ in folder.iterdir())
        if number >= _MOST_FILES:
            raise InputRefused(f"upload must have at most {_MOST_FILES} files, got more; send a zip of one study")
        size = await self._write(folder, folder / kept_name(number, name), content)
        self._table.grow_upload(upload, size)

    async def receive_drawing(self, upload: str, content: AsyncIterator[bytes]) -> str:
        """Keep a corrected label map beside the files of an upload, unseen by what reads these; gives its name.

        Raises:
            TooLarge: It is more than one upload may hold, or the disk is full.
        """
        folder = self.upload_folder(upload)
        name = f".drawing-{secrets.token_hex(8)}.nii"
        await self._write(folder, folder / name, content)
        return name

    def measure(self, upload: str) -> Callable[[int], None]:
        """What hears the bytes of each file that comes into an upload by another way, and refuses what is too much.

        Raises:
            TooLarge: By what is given: more files or bytes than one upload may hold, or the disk is full.
        """
        folder = self.upload_folder(upload)
        folder.mkdir(mode=0o700, exist_ok=True)
        files, room = 0, self._room(folder)

        def hear(size: int) -> None:
            nonlocal files, room
            files, room = files + 1, room - size
            if files > _MOST_FILES or room < 0:
                raise self._full()

        return hear

    def adopt(self, upload: str, files: Sequence[Path]) -> None:
        """Make files that were put into the folder of an upload, out of sight, part of it under neutral names."""
        sizes = [path.stat().st_size for path in files]
        for number, path in enumerate(files):
            path.rename(self.upload_folder(upload) / kept_name(number, path.name))
        for size in sizes:  # only now: an upload without files is not worked on
            self._table.grow_upload(upload, size)

    async def _write(self, folder: Path, target: Path, content: AsyncIterator[bytes]) -> int:
        """Write what arrives, as far as there is room, and gives its bytes; half of it leaves nothing."""
        partial = folder / f".{secrets.token_hex(8)}.partial"
        room = self._room(folder)
        try:
            with partial.open("xb") as file:
                async for piece in content:
                    room -= len(piece)
                    if room < 0:
                        raise self._full()
                    file.write(piece)
            size = partial.stat().st_size
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
        return size

    def used(self) -> int:
        """Bytes of everything kept."""
        return _size(self._uploads) + _size(self._jobs) + _size(self.passing)

    def passing_folder(self, owner: str) -> Path:
        """A new folder for what `gradio_client` of this owner fetches."""
        return Path(mkdtemp(prefix=f"{_tag(owner)}-", dir=self.passing))

    def may_fetch(self, owner: str, path: str) -> bool:
        """Whether a file lies in such a folder of this owner."""
        folder = Path(path).parent
        return ".." not in Path(path).parts and folder.parent == self.passing and folder.name.startswith(_tag(owner))

    def is_full(self) -> bool:
        """Whether nothing more may be stored."""
        return self.used() >= self.limits.disk_bytes

    def remove(self, upload: str) -> None:
        """Remove an upload with every result of it."""
        jobs = self._table.jobs(upload=upload)
        self._table.drop_upload(upload)  # first: what is half removed must not be found any more
        for folder in (self.upload_folder(upload), *(self.job_folder(job.id) for job in jobs)):
            shutil.rmtree(folder, ignore_errors=True)

    def sweep(self, now: float | None = None) -> int:
        """Remove what is older than it may be, and folders that belong to nothing; gives the number of uploads."""
        limit = (now or time.time()) - 3600 * self.limits.keep_hours
        removed = 0
        for upload in self._table.uploads():
            jobs = self._table.jobs(upload=upload.id)
            if self._table.last_work(upload.id) < limit and all(job.state in ENDED for job in jobs):
                self.remove(upload.id)
                removed += 1
        known = {upload.id for upload in self._table.uploads()} | {job.id for job in self._table.jobs()}
        for folder in (*self._uploads.iterdir(), *self._jobs.iterdir()):
            if folder.name not in known and folder.stat().st_mtime < time.time() - 60:
                shutil.rmtree(folder, ignore_errors=True)
        for folder in self.passing.iterdir():
            if folder.stat().st_mtime < limit:
                shutil.rmtree(folder, ignore_errors=True)
        return removed

    def _room(self, folder: Path) -> int:
        """Bytes that may still be written into the folder of an upload."""
        return min(self.limits.upload_bytes - _size(folder), self.limits.disk_bytes - self.used())

    def _full(self) -> TooLarge:
        if self.is_full():
            return TooLarge(
                "disk: the space of this server is used up; delete old work under History, or ask who runs it"
            )
        most = f"{self.limits.upload_bytes / 1e9:.2g} GB"
        return TooLarge(f"upload must be at most {most}, got more; send one series at a time")


def _tag(owner: str) -> str:
    return sha256(owner.encode()).hexdigest()[:32]


def _checked(name: str) -> str:
    """A name of ours; anything else could lead to another folder."""
    if not _NAME.fullmatch(name):
        raise ValueError("name must be 32 hexadecimal digits")
    return name


def kept_name(number: int, name: str) -> str:
    """The neutral name of the file that came as `name`.

    Raises:
        InputRefused: The name ends in nothing known.
    """
    return f"image{number:06d}{_ending(name)}"


def _ending(name: str) -> str:
    lower = name.lower()
    for ending in (*ENDINGS, *PICTURES):
        if lower.endswith(ending):
            return ending
    last = lower.rsplit("/", 1)[-1]
    if "." not in last or re.fullmatch(r"[0-9.]+", last):  # DICOM exporters name files IM0001 or by their UID
        return ".dcm"
    known = ", ".join((*ENDINGS, *PICTURES))
    raise InputRefused(f"file must end in one of {known}, got '.{last.rsplit('.', 1)[-1][:12]}'; export it as one")


def _size(folder: Path) -> int:
    """Bytes of the files in a folder; one that vanishes meanwhile counts as nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total
