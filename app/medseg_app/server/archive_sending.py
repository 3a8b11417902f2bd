"""Results on their way from the web application to the archives that its operator named."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError, UsageError
from medseg_app.jobs.store import Store
from medseg_app.server.audit import AuditLog
from medseg_pipelines.formats import DICOM_FOLDER
from medseg_pipelines.pacs.address import access_for, parse_address
from medseg_pipelines.pacs.archive import Archive, dicom_files, read_head
from medseg_pipelines.pacs.connect import open_archive
from medseg_pipelines.pacs.sending import patient_of, require_trained

_FILE = "sends.json"  # beside the result of a job, and removed with it
_AT_ONCE = 2
_REASONS = 3  # of files that were not stored, each told once
_SECONDS = 20.0  # that the page may have to wait for the end of a sending when the server stops


def open_archives(addresses: Mapping[str, str]) -> dict[str, Archive]:
    """The archives by the names that the operator gave them; nobody else names one.

    Args:
        addresses: Name to address.

    Raises:
        UsageError: An address, or what the environment says of it, makes no sense.
    """
    parsed = {name: parse_address(text) for name, text in addresses.items()}
    return {name: open_archive(address, access_for(address, name)) for name, address in parsed.items()}


class Sends:
    """Sends results and remembers with each job what became of it.

    Args:
        archives: By name.
        store: Where results lie.
        audit: Hears of every beginning and every end.
    """

    def __init__(self, archives: Mapping[str, Archive], store: Store, audit: AuditLog) -> None:
        self._archives = archives
        self._store, self._audit = store, audit
        self._lock = threading.Lock()
        self._running: set[tuple[str, int]] = set()  # job and number of its sending
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="archive")

    def destinations(self) -> dict[str, str]:
        """Name of each, and where it is; without user, password or path."""
        return {name: str(archive.address) for name, archive in self._archives.items()}

    def obstacle(self, job: str) -> str:
        """Why the result of a job cannot be sent, in one sentence; "" where it can."""
        try:
            self._files(job)
        except UsageError as fault:
            return str(fault)
        return ""

    def content(self, job: str) -> tuple[str, dict[str, int]]:
        """Of whom the result of a job is, and how many objects of each modality it holds.

        Raises:
            UsageError: It cannot be sent.
        """
        files = self._files(job)
        return patient_of(files[0]), dict(Counter(read_head(path).modality for path in files))

    def begin(self, job: str, destination: str, who: str) -> int:
        """Send the result of a job; gives the number of this sending.

        Raises:
            UsageError: It cannot be sent, or is being sent there now.
        """
        files = self._files(job)
        with self._lock:
            told = self._read(job)
            if any(one["destination"] == destination and one["state"] == "sending" for one in told):
                raise UsageError(f"result is on its way to {destination}; wait until it has arrived")
            number = len(told) + 1
            begun = {"number": number, "destination": destination, "state": "sending", "files": len(files)}
            self._running.add((job, number))
            self._write(job, [*told, {**begun, "stored": 0, "reasons": [], "begun": time.time(), "ended": None}])
        self._audit.record("send", who, job=job, destination=destination, files=len(files))
        self._pool.submit(self._send, job, number, files, who)
        return number

    def told(self, job: str) -> list[dict[str, Any]]:
        """Every sending of a job, the oldest first."""
        with self._lock:
            return self._read(job)

    def close(self) -> None:
        """Begin nothing more; what is on its way may arrive for a while."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + _SECONDS
        while self._running and time.monotonic() < until:
            time.sleep(0.05)

    def _files(self, job: str) -> list[Path]:
        result = self._store.result(job)
        if result is None or not (result / DICOM_FOLDER).is_dir():
            raise UsageError(
                "result must hold DICOM objects to be sent, it has none; run the model on DICOM images, "
                "and choose a DICOM format with it"
            )
        files = dicom_files([result / DICOM_FOLDER])
        require_trained(files)
        return files

    def _send(self, job: str, number: int, files: list[Path], who: str) -> None:
        destination = next(one["destination"] for one in self.told(job) if one["number"] == number)
        stored, reasons = 0, list[str]()
        try:
            for _, fault in self._archives[destination].send(files):
                stored += fault is None
                if fault is not None:
                    reasons.append(fault)
        except MedsegError as fault:
            reasons.append(str(fault))
        except Exception as fault:  # its text may quote a path or a value
            reasons.append(f"it failed ({type(fault).__name__})")
        ended = {
            "state": "sent" if stored == len(files) else "failed",
            "stored": stored,
            "reasons": list(dict.fromkeys(reasons))[:_REASONS],
            "ended": time.time(),
        }
        with self._lock:
            self._running.discard((job, number))
            told = self._read(job)
            self._write(job, [one | ended if one["number"] == number else one for one in told])
        self._audit.record("sent", who, job=job, destination=destination, files=len(files), stored=stored)

    def _read(self, job: str) -> list[dict[str, Any]]:
        """What stands in the file; what a server that was killed left behind has failed."""
        path = self._store.job_folder(job) / _FILE
        told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for one in told:
            if one["state"] == "sending" and (job, one["number"]) not in self._running:
                one |= {"state": "failed", "reasons": ["it was interrupted; send it again, nothing arrives twice"]}
        return told

    def _write(self, job: str, told: list[dict[str, Any]]) -> None:
        path = self._store.job_folder(job) / _FILE
        if not path.parent.is_dir():
            return  # the job was deleted meanwhile
        draft = path.with_suffix(".partial")
        draft.write_text(json.dumps(told), encoding="utf-8")
        draft.replace(path)
