"""What was brought and what is to be done with it, in SQLite: every step is one transaction that survives a crash.

A job goes queued, running, then done, failed, refused or cancelled; "cancelling" while its worker is being stopped.
Every question names the owner, so that nobody sees the work of others.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medseg_pipelines.ledger import Ledger

State = Literal["queued", "running", "cancelling", "done", "failed", "refused", "cancelled"]
OPEN: tuple[State, ...] = ("queued", "running", "cancelling")
ENDED: tuple[State, ...] = ("done", "failed", "refused", "cancelled")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS uploads (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, files INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, upload TEXT NOT NULL REFERENCES uploads(id) ON DELETE CASCADE,
    kind TEXT NOT NULL, request TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL, started REAL, ended REAL,
    stage TEXT NOT NULL DEFAULT '', done INTEGER NOT NULL DEFAULT 0, total INTEGER NOT NULL DEFAULT 0,
    seconds_left REAL, attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS jobs_open ON jobs(state, kind);
CREATE INDEX IF NOT EXISTS jobs_of ON jobs(owner, created);
"""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Files that one user brought."""

    id: str
    owner: str
    name: str  # the file's own name, for its owner's eyes only; on the disk it has a neutral one
    files: int
    bytes: int
    created: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work on an upload."""

    id: str
    owner: str
    upload: str
    kind: str
    request: dict[str, Any]
    state: State
    created: float
    started: float | None
    ended: float | None
    stage: str
    done: int
    total: int
    seconds_left: float | None
    attempts: int
    reason: str


class Table(Ledger):
    """Uploads and jobs in one file; safe to use from several threads.

    Args:
        path: The SQLite file; made where it is not there.
    """

    SCHEMA = _SCHEMA

    def add_upload(self, owner: str, name: str) -> Upload:
        """An upload without files yet, under a name that nobody can guess."""
        made = Upload(id=secrets.token_hex(16), owner=owner, name=name, files=0, bytes=0, created=time.time())
        with self._step() as base:
            base.execute(
                "INSERT INTO uploads(id, owner, name, created) VALUES(?, ?, ?, ?)",
                (made.id, owner, name, made.created),
            )
        return made

    def grow_upload(self, upload: str, size: int) -> None:
        """One more file of an upload has arrived."""
        with self._step() as base:
            base.execute("UPDATE uploads SET files = files + 1, bytes = bytes + ? WHERE id = ?", (size, upload))

    def upload(self, owner: str, upload: str) -> Upload | None:
        """An upload of this owner."""
        rows = self._all("SELECT * FROM uploads WHERE id = ? AND owner = ?", (upload, owner))
        return Upload(**dict(rows[0])) if rows else None

    def uploads(self, owner: str | None = None) -> list[Upload]:
        """The uploads of an owner, or all of them, the newest first."""
        rows = self._all("SELECT * FROM uploads WHERE ? IS NULL OR owner = ? ORDER BY created DESC", (owner, owner))
        return [Upload(**dict(row)) for row in rows]

    def drop_upload(self, upload: str) -> None:
        """Forget an upload and its jobs."""
        with self._step() as base:
            base.execute("DELETE FROM uploads WHERE id = ?", (upload,))

    def last_work(self, upload: str) -> float:
        """When an upload was last worked on or used, in seconds since 1970: a support set is used by runs elsewhere."""
        rows = self._all(
            "SELECT created AS at FROM uploads WHERE id = ? UNION ALL SELECT coalesce(ended, created) FROM jobs "
            "WHERE upload = ? OR json_extract(request, '$.support') IN (SELECT id FROM jobs WHERE upload = ?)",
            (upload, upload, upload),
        )
        return max((row["at"] for row in rows), default=0.0)

    def add_job(self, owner: str, upload: str, kind: str, request: dict[str, Any]) -> Job:
        """A job at the end of the queue."""
        name = secrets.token_hex(16)
        with self._step() as base:
            base.execute(
                "INSERT INTO jobs(id, owner, upload, kind, request, state, created) VALUES(?, ?, ?, ?, ?, 'queued', ?)",
                (name, owner, upload, kind, json.dumps(request), time.time()),
            )
        return _job(self._all("SELECT * FROM jobs WHERE id = ?", (name,))[0])

    def job(self, owner: str, job: str) -> Job | None:
        """A job of this owner."""
        rows = self._all("SELECT * FROM jobs WHERE id = ? AND owner = ?", (job, owner))
        return _job(rows[0]) if rows else None

    def find(self, job: str) -> Job | None:
        """A job, whoever owns it; for workers, never for a question of a user."""
        rows = self._all("SELECT * FROM jobs WHERE id = ?", (job,))
        return _job(rows[0]) if rows else None

    def jobs(self, owner: str | None = None, upload: str | None = None) -> list[Job]:
        """The jobs of an owner or an upload, the newest first."""
        rows = self._all(
            "SELECT * FROM jobs WHERE (? IS NULL OR owner = ?) AND (? IS NULL OR upload = ?) "
            "ORDER BY created DESC, rowid DESC",
            (owner, owner, upload, upload),
        )
        return [_job(row) for row in rows]

    def claim(self, kinds: Sequence[str]) -> Job | None:
        """Begin the job whose turn it is, if there is one."""
        with self._step() as base:
            turn = self.queue(kinds)
            if not turn:
                return None
            base.execute(
                "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1, stage = 'starting', "
                "done = 0, total = 0, seconds_left = NULL, reason = '' WHERE id = ?",
                (time.time(), turn[0]),
            )
            return self.find(turn[0])

    def queue(self, kinds: Sequence[str]) -> list[str]:
        """The waiting jobs in the order of their turns: owners take turns, the one served longest ago first."""
        marks = ",".join("?" * len(kinds))
        rows = self._all(
            f"SELECT id, owner FROM jobs WHERE state = 'queued' AND kind IN ({marks}) ORDER BY created, rowid", kinds
        )
        served = {
            row["owner"]: (row["busy"], row["last"] or 0.0)
            for row in self._all(
                "SELECT owner, sum(state IN ('running', 'cancelling')) AS busy, max(started) AS last "
                f"FROM jobs WHERE kind IN ({marks}) GROUP BY owner",
                kinds,
            )
        }
        waiting: dict[str, list[str]] = {}
        for row in rows:
            waiting.setdefault(row["owner"], []).append(row["id"])
        owners = sorted(waiting, key=lambda owner: served[owner])
        longest = max(map(len, waiting.values()), default=0)
        return [waiting[owner][turn] for turn in range(longest) for owner in owners if turn < len(waiting[owner])]

    def progress(self, job: str, *, stage: str, done: int, total: int, seconds_left: float | None) -> None:
        """What a running job is at."""
        with self._step() as base:
            base.execute(
                "UPDATE jobs SET stage = ?, done = ?, total = ?, seconds_left = ? WHERE id = ? AND state = 'running'",
                (stage, done, total, seconds_left, job),
            )

    def end(self, job: str, state: State, reason: str = "") -> bool:
        """A job ends, once; False where it had ended already or is not there any more."""
        with self._step() as base:
            change = base.execute(
                "UPDATE jobs SET state = ?, reason = ?, ended = ?, seconds_left = NULL "
                "WHERE id = ? AND state IN ('queued', 'running', 'cancelling')",
                (state, reason, time.time(), job),
            )
            return change.rowcount == 1

    def requeue(self, job: str, *, counted: bool = True) -> None:
        """A job whose worker died begins again; not `counted` where that was no fault of the job."""
        with self._step() as base:
            base.execute(
                "UPDATE jobs SET state = 'queued', stage = '', done = 0, total = 0, attempts = attempts - ? "
                "WHERE id = ? AND state = 'running'",
                (0 if counted else 1, job),
            )

    def cancel(self, owner: str, job: str) -> bool:
        """Cancel a waiting job at once, ask for the end of a running one; False where there is nothing to cancel."""
        with self._step() as base:
            change = base.execute(
                "UPDATE jobs SET ended = iif(state = 'queued', ?, NULL), "
                "state = iif(state = 'queued', 'cancelled', 'cancelling') "
                "WHERE id = ? AND owner = ? AND state IN ('queued', 'running')",
                (time.time(), job, owner),
            )
            return change.rowcount == 1

    def unwanted(self, job: str) -> bool:
        """Whether a running job is to be stopped: cancelled, or deleted with its upload."""
        rows = self._all("SELECT state FROM jobs WHERE id = ?", (job,))
        return not rows or rows[0]["state"] == "cancelling"

    def left_running(self) -> list[Job]:
        """Jobs that a server which is no more was working on."""
        return [_job(row) for row in self._all("SELECT * FROM jobs WHERE state IN ('running', 'cancelling')")]

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        return {row[0]: row[1] for row in self._all("SELECT state, count(*) FROM jobs GROUP BY state")}

    def seconds_of(self, model: str) -> float | None:
        """What the last run of a model took on this machine."""
        rows = self._all(
            "SELECT ended - started FROM jobs WHERE kind = 'run' AND state = 'done' "
            "AND json_extract(request, '$.model') = ? ORDER BY ended DESC LIMIT 1",
            (model,),
        )
        return rows[0][0] if rows else None


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "request": json.loads(row["request"])})
