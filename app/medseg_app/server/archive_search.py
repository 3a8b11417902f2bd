"""Searching the archives that the operator opened to every user, and bringing a series of them into a new upload."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

from pydicom import Dataset

from medseg.errors import MedsegError, UsageError
from medseg_app.jobs.store import Store
from medseg_app.jobs.table import Table
from medseg_app.server.audit import AuditLog
from medseg_pipelines.pacs.address import Address
from medseg_pipelines.pacs.archive import Archive, Level, Outcome, dicom_files, retrieve, search

_MOST = 50  # series of one answer
_MOST_STUDIES = 20
_AT_ONCE = 2
_OF_ONE_USER = 2
_TOLD_FOR = 3600.0  # seconds that a retrieval which has ended is still known
_PATTERN = "*?\\"  # what stands for other characters, or for several values, in a search of DICOM


@dataclass(frozen=True, kw_only=True)
class Match:
    """One series that an archive holds; `patient` is empty unless it was asked for."""

    study: str
    series: str
    date: str
    modality: str
    description: str
    images: int | None
    patient: str


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """One series on its way into an upload, or there."""

    upload: str
    state: Literal["fetching", "done", "failed"] = "fetching"
    done: int = 0
    total: int = 0
    reason: str = ""
    ended: float | None = None


class Search:
    """Searches and retrieves on behalf of users; what they look for is in no log.

    Args:
        archives: By name; empty where nobody may search.
        table: Knows the uploads.
        store: Where they lie.
        audit: Hears that there was a search or a retrieval, by whom and where.
    """

    def __init__(self, archives: Mapping[str, Archive], table: Table, store: Store, audit: AuditLog) -> None:
        self._archives, self._table, self._store, self._audit = archives, table, store, audit
        self._lock = threading.Lock()
        self._told: dict[str, tuple[str, Retrieval]] = {}  # upload to its owner and how it stands
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="retrieval")

    def names(self) -> list[str]:
        """The archives that may be searched."""
        return list(self._archives)

    def find(self, name: str, criteria: Mapping[str, str], who: str, *, show_patient: bool) -> tuple[list[Match], bool]:
        """The series whose study fits every criterion, a bounded number, and whether there may be more.

        Args:
            name: Of the archive.
            criteria: DICOM keyword of a study to its exact value; empty values do not count.
            who: For the audit log.
            show_patient: Tell name and id of the patients, too.

        Raises:
            UsageError: There is no criterion, or one holds a wildcard.
            ArchiveFailed: The archive does not play along.
        """
        wanted = {keyword: value.strip() for keyword, value in criteria.items() if value.strip()}
        if not wanted:
            raise UsageError("search needs a patient id, an accession number or a date, got none; fill in one of them")
        if any(sign in value for value in wanted.values() for sign in _PATTERN):
            raise UsageError(
                "search must be for whole values, got * or ? or \\; write the value as it is in the archive"
            )
        self._audit.record("search", who, archive=name, patients_shown=show_patient)
        archive, found = self._archives[name], list[Match]()
        studies = search(archive, "study", wanted, _MOST_STUDIES)
        for study in studies:
            # An archive may pass over a criterion that it does not know, and would then show other patients.
            if all(_text(study, keyword).casefold() == value.casefold() for keyword, value in wanted.items()):
                above = {"StudyInstanceUID": _text(study, "StudyInstanceUID")}
                series = search(archive, "series", above, _MOST - len(found))
                found += [_match(study, one, show_patient=show_patient) for one in series]
            if len(found) >= _MOST:
                break
        return found, len(found) >= _MOST or len(studies) >= _MOST_STUDIES

    def begin(self, name: str, study: str, series: str, who: str) -> Retrieval:
        """Bring a series into a new upload of this user; it goes on after this.

        Raises:
            UsageError: This user has as many on their way as one may have.
        """
        with self._lock:
            now = time.time()
            self._told = {key: one for key, one in self._told.items() if now - (one[1].ended or now) < _TOLD_FOR}
            if sum(owner == who and one.ended is None for owner, one in self._told.values()) >= _OF_ONE_USER:
                raise UsageError(f"at most {_OF_ONE_USER} series may be on their way at once; wait for one to arrive")
            upload = self._table.add_upload(who, name).id
            begun = Retrieval(upload=upload)
            self._told[upload] = who, begun
        self._audit.record("retrieve", who, archive=name, upload=upload)
        self._pool.submit(self._retrieve, name, study, series, upload)
        return begun

    def told(self, upload: str, who: str) -> Retrieval | None:
        """How a retrieval of this user stands; None where there is none."""
        with self._lock:
            owner, found = self._told.get(upload, ("", None))
            return found if owner == who else None

    def close(self) -> None:
        """Begin nothing more; what is on its way fails."""
        self._stopping.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _retrieve(self, name: str, study: str, series: str, upload: str) -> None:
        count, reason = 0, ""
        try:
            count = self._fetched(self._archives[name], study, series, upload)
        except MedsegError as fault:
            reason = str(fault)
        except Exception as fault:  # its text may quote a path or a value
            reason = f"it failed ({type(fault).__name__})"
        if reason:
            self._store.remove(upload)
        self._change(upload, state="failed" if reason else "done", reason=reason, ended=time.time())
        self._audit.record("retrieved", self._told[upload][0], archive=name, upload=upload, files=count)

    def _fetched(self, archive: Archive, study: str, series: str, upload: str) -> int:
        """Retrieve and make part of the upload; gives the number of files."""
        measure = self._store.measure(upload)

        def hear(size: int) -> None:
            if self._stopping.is_set():
                raise UsageError("the server stopped; open it again")
            measure(size)

        folder = self._store.upload_folder(upload) / ".retrieved"
        bounded = _Bounded(archive, hear)
        retrieve(
            bounded, study, series, folder, progress=lambda done, total: self._change(upload, done=done, total=total)
        )
        files = dicom_files([folder])
        self._store.adopt(upload, files)
        rmtree(folder)
        return len(files)

    def _change(self, upload: str, **change: Any) -> None:
        with self._lock:
            owner, now = self._told[upload]
            self._told[upload] = owner, replace(now, **change)


class _Bounded:
    """An archive of which no more is taken than there is room for.

    Args:
        archive: Which one.
        hear: Gets the bytes of each file before it is kept; raises where there is no room.
    """

    def __init__(self, archive: Archive, hear: Callable[[int], None]) -> None:
        self._archive, self._hear = archive, hear

    @property
    def address(self) -> Address:
        """See `Archive.address`."""
        return self._archive.address

    def find(self, level: Level, filters: dict[str, str], limit: int | None = None) -> list[Dataset]:
        """See `Archive.find`."""
        return self._archive.find(level, filters, limit)

    def fetch(self, study: str, series: str, classes: frozenset[str], store: Callable[[bytes], None]) -> None:
        """See `Archive.fetch`."""

        def keep(content: bytes) -> None:
            self._hear(len(content))
            store(content)

        self._archive.fetch(study, series, classes, keep)

    def send(self, paths: Iterable[Path]) -> Iterator[Outcome]:
        """See `Archive.send`."""
        return self._archive.send(paths)


def _match(study: Dataset, series: Dataset, *, show_patient: bool) -> Match:
    images = _text(series, "NumberOfSeriesRelatedInstances")
    who = [_text(study, "PatientName"), _text(study, "PatientID")] if show_patient else []
    return Match(
        study=_text(study, "StudyInstanceUID"),
        series=_text(series, "SeriesInstanceUID"),
        date=_text(study, "StudyDate"),
        modality=_text(series, "Modality"),
        description=_text(series, "SeriesDescription"),
        images=int(images) if images.isdecimal() else None,
        patient=", ".join(part for part in who if part),
    )


def _text(match: Dataset, keyword: str) -> str:
    return str(match.get(keyword) or "").strip()
