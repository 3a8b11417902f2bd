"""Threads that give jobs to worker processes, watch them, and say in the table how they ended."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from medseg_app.jobs.process import WORKER, Gone, WorkerProcess
from medseg_app.jobs.store import Store
from medseg_app.jobs.table import Job, State, Table

LIGHT = ("check", "correct", "support")  # quick work that must not wait behind long runs
HEAVY = ("run",)

_LOOK_EVERY = 0.2  # seconds
_SWEEP_EVERY = 60.0
_MOST_ATTEMPTS = 3
_IDLE = 600.0  # seconds after which a worker without work is let go, with the memory of its model

Ended = Callable[[Job], None]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What the workers may take.

    Attributes:
        runs: How many runs at once.
        memory: Bytes of one worker.
        minutes: Of one job.
    """

    runs: int = 1
    memory: int = 16 << 30
    minutes: float = 120.0


class Supervisor:
    """All worker threads; `start` takes up what an earlier server left.

    Args:
        table: The jobs.
        store: Their folders.
        bounds: What workers may take.
        command: What runs a worker.
        ended: Told of every job that ended.
    """

    def __init__(
        self,
        table: Table,
        store: Store,
        bounds: Bounds,
        *,
        command: Sequence[str] = WORKER,
        ended: Ended = lambda job: None,
    ) -> None:
        self._stop = threading.Event()
        kinds = [LIGHT] + [HEAVY] * bounds.runs
        self._slots = [_Slot(table, store, bounds, tuple(command), ended, these, self._stop) for these in kinds]
        self._table, self._store = table, store
        self._sweeper = threading.Thread(target=self._sweep, name="sweeper", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        for job in self._table.left_running():
            _settle(self._table, self._store, job)
        for thread in (*self._slots, self._sweeper):
            thread.start()

    def stop(self) -> None:
        """Stop every worker; jobs that were running begin again with the next server."""
        self._stop.set()
        for thread in (*self._slots, self._sweeper):
            if thread.is_alive():
                thread.join(10)

    def alive(self) -> bool:
        """Whether every thread works."""
        return all(thread.is_alive() for thread in self._slots)

    def workers(self) -> list[WorkerProcess]:
        """The worker processes that are there now."""
        return [slot.process for slot in self._slots if slot.process is not None]

    def _sweep(self) -> None:
        while not self._stop.wait(_SWEEP_EVERY):
            self._store.sweep()


class _Slot(threading.Thread):
    """One thread with one worker process at a time; the thread lives as long as the server, and so may the process."""

    def __init__(
        self,
        table: Table,
        store: Store,
        bounds: Bounds,
        command: tuple[str, ...],
        ended: Ended,
        kinds: tuple[str, ...],
        stop: threading.Event,
    ) -> None:
        super().__init__(name=f"jobs: {', '.join(kinds)}", daemon=True)
        self.process: WorkerProcess | None = None
        self._table, self._store, self._bounds, self._command = table, store, bounds, command
        self._ended, self._kinds, self._stopping = ended, kinds, stop

    def run(self) -> None:
        """Take job after job until the server stops."""
        idle_since = time.monotonic()
        if self._kinds == LIGHT:
            self.process = WorkerProcess(self._command)  # ready before the first upload
        while not self._stopping.is_set():
            job = self._table.claim(self._kinds)
            if job is None:
                if self._kinds != LIGHT and time.monotonic() - idle_since > _IDLE:
                    self._drop()
                self._stopping.wait(_LOOK_EVERY)
                continue
            self._one(job)
            idle_since = time.monotonic()
        self._drop()

    def _one(self, job: Job) -> None:
        try:
            state, reason = self._work(job)
        except Gone:
            self._drop()
            _settle(self._table, self._store, job, counted=not self._stopping.is_set())
        else:
            if state == "cancelled":
                shutil.rmtree(self._store.job_folder(job.id), ignore_errors=True)
            self._table.end(job.id, state, reason)
        now = self._table.find(job.id)
        if now is not None and now.ended is not None:
            self._ended(now)

    def _work(self, job: Job) -> tuple[State, str]:
        """Run a job to its end.

        Raises:
            Gone: The worker ended without an answer, or the server stops.
        """
        if self._store.result(job.id) is not None:  # finished by a worker of an earlier server
            return "done", ""
        folder = self._store.job_folder(job.id)
        folder.mkdir(mode=0o700, exist_ok=True)
        if self.process is None or not self.process.alive():
            self._drop()
            self.process = WorkerProcess(self._command)
        upload = self._store.upload_folder(job.upload)
        task = {"kind": job.kind, "folder": str(folder), "upload": str(upload), "request": job.request}
        self.process.send(task | {"memory_limit": self._bounds.memory})
        deadline = time.monotonic() + 60 * self._bounds.minutes
        while True:
            said = self.process.receive(_LOOK_EVERY)
            if said is not None and "end" in said:
                return said["end"], said["reason"]
            if said is not None:
                self._table.progress(job.id, **said)
            if self._stopping.is_set():
                raise Gone
            end = self._judge(job, self.process, deadline)
            if end is not None:
                self._drop()
                return end

    def _judge(self, job: Job, process: WorkerProcess, deadline: float) -> tuple[State, str] | None:
        """Why a running job must end now, if it must."""
        if self._table.unwanted(job.id):
            return "cancelled", ""
        if process.memory() > self._bounds.memory:
            limit = f"{self._bounds.memory / 1e9:.1f} GB"
            return "refused", f"job needs more than the {limit} of memory that this server allows; crop the image"
        if time.monotonic() > deadline:
            return "failed", f"job took longer than the {self._bounds.minutes:g} minutes that this server allows"
        return None

    def _drop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process = None


def _settle(table: Table, store: Store, job: Job, *, counted: bool = True) -> None:
    """Decide about a job whose worker is no more: its result is either whole or not there."""
    if store.result(job.id) is not None:
        table.end(job.id, "done")
    elif table.unwanted(job.id):
        table.end(job.id, "cancelled")
    elif counted and job.attempts >= _MOST_ATTEMPTS:
        table.end(
            job.id, "failed", "the worker stopped without an answer, three times; the image may need too much memory"
        )
    else:
        table.requeue(job.id, counted=counted)
    if store.result(job.id) is None:
        shutil.rmtree(store.job_folder(job.id), ignore_errors=True)
