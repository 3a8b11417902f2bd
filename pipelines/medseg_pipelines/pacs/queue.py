"""What a listener has to do, in SQLite: every step is one transaction that survives a crash right after it.

A series is receiving, then closed; its images may be removed later (`removed`: 0 here, 1 gone, 2 gone, but late slices
have come). Each rule that fits it makes a job. A job goes received, segmented, sent, or ends as
refused, failed, withheld or superseded. Each file of a result has one delivery per destination: waiting, sending, sent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from medseg_pipelines.ledger import Ledger
from medseg_pipelines.pacs.archive import Head

INCOMPLETE = "slices came after the others had been removed"
ENDED = ("sent", "refused", "failed", "withheld", "superseded")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, state TEXT NOT NULL, last REAL NOT NULL,
    removed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS instances (
    uid TEXT PRIMARY KEY, series INTEGER NOT NULL REFERENCES series(id) ON DELETE CASCADE);
CREATE INDEX IF NOT EXISTS instances_of ON instances(series);
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY, series INTEGER NOT NULL REFERENCES series(id) ON DELETE CASCADE, rule TEXT NOT NULL,
    digest TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL,
    changed REAL NOT NULL, reason TEXT NOT NULL DEFAULT '', kept INTEGER NOT NULL DEFAULT 1,
    UNIQUE(series, rule, digest));
CREATE TABLE IF NOT EXISTS deliveries (
    job INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE, destination TEXT NOT NULL, file TEXT NOT NULL,
    study TEXT NOT NULL, series TEXT NOT NULL, instance TEXT NOT NULL, state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL, reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY(job, destination, instance));
CREATE INDEX IF NOT EXISTS deliveries_of ON deliveries(instance);
"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One series for one rule."""

    id: int
    series: int
    series_uid: str
    rule: str
    digest: str
    attempts: int


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One file of a result on its way to one destination."""

    job: int
    file: str  # within the folder of the result
    study: str
    series: str
    instance: str
    begun: bool  # it may have arrived already
    attempts: int


def digest_of(instances: Iterable[str]) -> str:
    """The same for the same instances, in whatever order they came."""
    return sha256("\n".join(sorted(instances)).encode()).hexdigest()


class Queue(Ledger):
    """The queue in one file; safe to use from several threads of one process.

    Args:
        path: The SQLite file; made where it is not there.
    """

    SCHEMA = _SCHEMA

    def add(self, head: Head, now: float) -> int:
        """Enter a received instance, whose file is safe already; gives the number of its series."""
        with self._step() as base:
            base.execute(
                "INSERT INTO series(uid, state, last, removed) VALUES(?, 'receiving', ?, 0) "
                "ON CONFLICT(uid) DO UPDATE SET state = excluded.state, last = excluded.last, "
                "removed = iif(removed, 2, 0)",
                (head.series, now),
            )
            number = int(base.execute("SELECT id FROM series WHERE uid = ?", (head.series,)).fetchone()[0])
            base.execute("INSERT OR IGNORE INTO instances(uid, series) VALUES(?, ?)", (head.instance, number))
            return number

    def is_done_with(self, instance: str) -> bool:
        """Whether an instance needs no place here: its series is closed, or it is a result of our own."""
        found = self._all(
            "SELECT 1 FROM instances i JOIN series s ON s.id = i.series WHERE i.uid = ? AND s.state = 'closed' "
            "UNION SELECT 1 FROM deliveries WHERE instance = ?",
            (instance, instance),
        )
        return bool(found)

    def instances(self, series: int) -> list[str]:
        """The instances of a series."""
        return [row[0] for row in self._all("SELECT uid FROM instances WHERE series = ? ORDER BY uid", (series,))]

    def all_instances(self) -> list[str]:
        """Every instance that was ever received and is not forgotten."""
        return [row[0] for row in self._all("SELECT uid FROM instances")]

    def quiet_series(self, before: float) -> list[tuple[int, str]]:
        """Number and UID of series to which nothing was added since."""
        rows = self._all("SELECT id, uid FROM series WHERE state = 'receiving' AND last <= ?", (before,))
        return [(row["id"], row["uid"]) for row in rows]

    def close_series(self, series: int, rules: Sequence[str], now: float) -> bool:
        """Make the jobs of a series, refused where earlier slices were removed; False where it is closed already."""
        with self._step() as base:
            row = base.execute("SELECT state, removed FROM series WHERE id = ?", (series,)).fetchone()
            if row["state"] != "receiving":
                return False
            digest = digest_of(uid for (uid,) in base.execute("SELECT uid FROM instances WHERE series = ?", (series,)))
            base.execute("UPDATE series SET state = 'closed' WHERE id = ?", (series,))
            base.execute(
                "UPDATE jobs SET state = 'superseded', changed = ? "
                "WHERE series = ? AND state = 'received' AND digest != ?",
                (now, series, digest),
            )
            state, reason = (
                ("refused", "slices came after the others had been removed") if row["removed"] else ("received", "")
            )
            base.executemany(
                "INSERT OR IGNORE INTO jobs(series, rule, digest, state, due, changed, reason) "
                "VALUES(?, ?, ?, ?, ?, ?, ?)",
                [(series, rule, digest, state, now, now, reason) for rule in rules],
            )
            return True

    def next_job(self, now: float) -> Job | None:
        """The oldest job that is due to be segmented."""
        rows = self._all(
            "SELECT j.*, s.uid AS series_uid FROM jobs j JOIN series s ON s.id = j.series "
            "WHERE j.state = 'received' AND j.due <= ? ORDER BY j.due, j.id LIMIT 1",
            (now,),
        )
        return next((Job(**{name: row[name] for name in Job.__dataclass_fields__}) for row in rows), None)

    def segmented(self, job: int, files: Sequence[tuple[str, Head]], destinations: Sequence[str], now: float) -> None:
        """The result of a job is safe: enter what has to be sent."""
        with self._step() as base:
            change = "UPDATE jobs SET state = 'segmented', changed = ?, reason = '' WHERE id = ? AND state = 'received'"
            if not base.execute(change, (now, job)).rowcount:
                return  # slices came meanwhile: a job of all of them takes its place
            base.executemany(
                "INSERT OR IGNORE INTO deliveries(job, destination, file, study, series, instance, state, due) "
                "VALUES(?, ?, ?, ?, ?, ?, 'waiting', ?)",
                [
                    (job, name, file, head.study, head.series, head.instance, now)
                    for name in destinations
                    for file, head in files
                ],
            )
            self._finish(base, job, now)

    def end(self, job: int, state: str, reason: str, now: float) -> None:
        """A job ends without a result to send."""
        with self._step() as base:
            base.execute(
                "UPDATE jobs SET state = ?, reason = ?, changed = ? WHERE id = ? AND state = 'received'",
                (state, reason, now, job),
            )

    def retry(self, job: int, reason: str, due: float, now: float) -> None:
        """A segmentation failed and is tried again."""
        with self._step() as base:
            base.execute(
                "UPDATE jobs SET attempts = attempts + 1, reason = ?, due = ?, changed = ? "
                "WHERE id = ? AND state = 'received'",
                (reason, due, now, job),
            )

    def due(self, destination: str, now: float, most: int = 100) -> list[Delivery]:
        """Files that are due for a destination, the oldest job first."""
        rows = self._all(
            "SELECT *, state = 'sending' AS begun FROM deliveries "
            "WHERE destination = ? AND state != 'sent' AND due <= ? ORDER BY job, instance LIMIT ?",
            (destination, now, most),
        )
        return [
            Delivery(**{n: row[n] for n in Delivery.__dataclass_fields__ if n != "begun"}, begun=bool(row["begun"]))
            for row in rows
        ]

    def sending(self, destination: str, deliveries: Iterable[Delivery]) -> None:
        """Say that files are about to leave: from here on they may have arrived."""
        self._mark("state = 'sending'", (), destination, deliveries)

    def sent(self, destination: str, delivery: Delivery, now: float) -> None:
        """A file arrived; the last one ends its job."""
        with self._step() as base:
            self._mark("state = 'sent', reason = ''", (), destination, [delivery])
            self._finish(base, delivery.job, now)

    def not_sent(self, destination: str, deliveries: Iterable[Delivery], reason: str, due: float) -> None:
        """Files did not arrive, as far as is known, and are tried again."""
        self._mark("attempts = attempts + 1, reason = ?, due = ?", (reason, due), destination, deliveries)

    def counts(self) -> dict[str, int]:
        """Series that are being received, and jobs by state."""
        found = {"receiving": self._all("SELECT count(*) FROM series WHERE state = 'receiving'")[0][0]}
        found |= {row[0]: row[1] for row in self._all("SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state")}
        return found

    def listing(self) -> list[dict[str, object]]:
        """Every job with its state, and how many of its files were sent; no UIDs, no names."""
        rows = self._all(
            "SELECT j.id, j.series, j.rule, j.state, j.attempts, j.reason, j.changed, "
            "(SELECT count(*) FROM deliveries d WHERE d.job = j.id) AS files, "
            "(SELECT count(*) FROM deliveries d WHERE d.job = j.id AND d.state = 'sent') AS sent, "
            "(SELECT max(reason) FROM deliveries d WHERE d.job = j.id AND d.state != 'sent') AS waiting "
            "FROM jobs j ORDER BY j.id"
        )
        return [dict(row) for row in rows]

    def revive(self, now: float) -> int:
        """Give every failed job whose images are still here its attempts back; gives their number."""
        with self._step() as base:
            return base.execute(
                "UPDATE jobs SET state = 'received', attempts = 0, due = ?, changed = ? WHERE state = 'failed' "
                "AND series IN (SELECT id FROM series WHERE removed = 0 AND state = 'closed')",
                (now, now),
            ).rowcount

    def sources_to_remove(self, before: float, failed_before: float) -> list[tuple[int, str]]:
        """Closed series whose images no job needs any more."""
        rows = self._all(
            "SELECT id, uid FROM series s WHERE state = 'closed' AND removed != 1 AND last <= ? AND NOT EXISTS ("
            "SELECT 1 FROM jobs j WHERE j.series = s.id "
            "AND (j.state = 'received' OR (j.state = 'failed' AND j.changed > ?)))",
            (before, failed_before),
        )
        return [(row["id"], row["uid"]) for row in rows]

    def sources_removed(self, series: int) -> None:
        """The images of a series are gone; that they were here is remembered."""
        with self._step() as base:
            base.execute("UPDATE series SET removed = 1 WHERE id = ?", (series,))

    def results_to_remove(self, before: float, failed_before: float) -> list[int]:
        """Jobs that ended and whose results nobody needs any more."""
        rows = self._all(
            f"SELECT id FROM jobs WHERE kept = 1 AND state IN {ENDED} AND changed <= iif(state = 'failed', ?, ?)",
            (failed_before, before),
        )
        return [row[0] for row in rows]

    def results_removed(self, job: int) -> None:
        """The result of a job is gone."""
        with self._step() as base:
            base.execute("UPDATE jobs SET kept = 0 WHERE id = ?", (job,))

    def forget(self, before: float) -> None:
        """Drop what is left of series whose files have long been removed."""
        with self._step() as base:
            base.execute(
                "DELETE FROM series WHERE removed = 1 AND state = 'closed' AND last <= ? AND NOT EXISTS ("
                f"SELECT 1 FROM jobs WHERE series = series.id AND (kept = 1 OR state NOT IN {ENDED}))",
                (before,),
            )

    def _mark(self, change: str, values: tuple[object, ...], destination: str, deliveries: Iterable[Delivery]) -> None:
        with self._step() as base:
            base.executemany(
                f"UPDATE deliveries SET {change} WHERE job = ? AND destination = ? AND instance = ?",
                [(*values, each.job, destination, each.instance) for each in deliveries],
            )

    @staticmethod
    def _finish(base: sqlite3.Connection, job: int, now: float) -> None:
        """A job without open deliveries is sent."""
        base.execute(
            "UPDATE jobs SET state = 'sent', changed = ?, reason = '' WHERE id = ? AND state = 'segmented' "
            "AND NOT EXISTS (SELECT 1 FROM deliveries WHERE job = jobs.id AND state != 'sent')",
            (now, job),
        )
