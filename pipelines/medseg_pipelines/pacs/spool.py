"""The files of a listener: every one whole and on disk before anybody is told that we have it."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from medseg.errors import UsageError
from medseg_pipelines.pacs.archive import Head
from medseg_pipelines.pacs.receiver import NoRoom


class Spool:
    """Folders for what comes in, what is worked on, and what came out; their names say nothing of a patient.

    Args:
        folder: Of the listener; made for its owner alone.
        quota: Bytes that all files may take.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        self.folder, self._quota = folder, quota
        self._sources, self._work, self._results = (folder / name for name in ("sources", "work", "results"))
        for each in (folder, self._sources, self._work, self._results):
            each.mkdir(mode=0o700, exist_ok=True)
        shutil.rmtree(self._work)  # what was being written when the last run ended
        self._work.mkdir(mode=0o700)
        self._lock = threading.Lock()
        self._used = 0
        self.measure()

    def measure(self) -> int:
        """Bytes in use, counted anew."""
        with self._lock:
            self._used = sum(path.stat().st_size for each in (self._sources, self._results) for path in _files(each))
            return self._used

    def source(self, series: str) -> Path:
        """The folder of a series."""
        return self._sources / _name(series)

    def result(self, job: int) -> Path:
        """The folder of a job's result."""
        return self._results / str(job)

    def keep(self, head: Head, content: bytes) -> None:
        """Put an instance into the folder of its series; it survives a power cut from here on.

        Raises:
            NoRoom: The quota is used up.
        """
        with self._lock:
            if self._used + len(content) > self._quota:
                raise NoRoom
            self._used += len(content)
        partial = self._work / secrets.token_hex(16)
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            folder = self.source(head.series)
            folder.mkdir(mode=0o700, exist_ok=True)
            partial.rename(folder / _file_name(head.instance))
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        _sync(folder)
        _sync(self._sources)

    def unknown(self, instances: Iterable[str]) -> list[Path]:
        """Every file that came in and is none of these instances."""
        known = {_file_name(uid) for uid in instances}
        return [path for path in _files(self._sources) if path.name not in known]

    @contextmanager
    def attempt(self, series: str) -> Iterator[tuple[Path, Path]]:
        """A copy of a series as it is now, by links, and a place for a result; both go away at the end."""
        place = self._work / secrets.token_hex(16)
        images = place / "images"
        images.mkdir(parents=True, mode=0o700)
        try:
            for path in self.source(series).iterdir():
                os.link(path, images / path.name)
            yield images, place / "result"
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def accept(self, result: Path, job: int) -> None:
        """Make a finished folder the result of a job, in one step."""
        result.rename(self.result(job))
        _sync(self._results)

    def remove_source(self, series: str) -> None:
        """Remove the images of a series."""
        shutil.rmtree(self.source(series), ignore_errors=True)

    def remove_result(self, job: int) -> None:
        """Remove the result of a job."""
        shutil.rmtree(self.result(job), ignore_errors=True)


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keep other listeners away from a folder; the system lets go when the process dies.

    Raises:
        UsageError: Another one is at work there, or it cannot be written to.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:
        raise UsageError(
            f"state '{folder.name}' must be a folder of our own, it cannot be written; choose another"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(f"state '{folder.name}' must have one listener, another is at work; stop it first") from None
    try:
        yield
    finally:
        os.close(descriptor)


def _name(uid: str) -> str:
    return sha256(uid.encode()).hexdigest()[:32]


def _file_name(uid: str) -> str:
    return f"{_name(uid)}.dcm"


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (path for name in names if (path := Path(place) / name).is_file())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
