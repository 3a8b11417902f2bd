"""Everything the routes of one server share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg_app.jobs.process import WORKER
from medseg_app.jobs.store import Limits, Store
from medseg_app.jobs.supervisor import HEAVY, LIGHT, Bounds, Supervisor
from medseg_app.jobs.table import Job, Table
from medseg_app.server.accounts import Accounts
from medseg_app.server.archive_search import Search
from medseg_app.server.archive_sending import Sends, open_archives
from medseg_app.server.audit import AuditLog
from medseg_app.server.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server was asked to run.

    Attributes:
        home: Folder of its work.
        hosts: Names under which it may be called; empty for any.
        accounts: User name to hash; None where nobody has to log in.
        limits: Of the disk.
        bounds: Of the workers.
        device: On which models run.
        archives: Name to address of what results may be sent to.
        search: Whether every user may search these archives and open what is in them.
        worker: What runs a worker.
        open_jobs: How many jobs one user may have waiting and running.
    """

    home: Path
    hosts: tuple[str, ...] = ()
    accounts: dict[str, str] | None = None
    limits: Limits = field(default_factory=Limits)
    bounds: Bounds = field(default_factory=Bounds)
    device: str = "auto"
    archives: Mapping[str, str] = field(default_factory=dict)
    search: bool = False
    worker: Sequence[str] = WORKER
    open_jobs: int = 20


class Place:
    """The parts of a server, made from its settings; `open` and `close` begin and end the work."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.table = Table(settings.home / "jobs.sqlite")
        self.store = Store(settings.home, self.table, settings.limits)
        self.audit = AuditLog(settings.home / "audit.jsonl")
        archives = open_archives(settings.archives)
        self.sends = Sends(archives, self.store, self.audit)
        self.search = Search(archives if settings.search else {}, self.table, self.store, self.audit)
        self.metrics = Metrics()
        self.accounts = None if settings.accounts is None else Accounts(settings.accounts)
        self.supervisor = Supervisor(
            self.table, self.store, settings.bounds, command=settings.worker, ended=self._ended
        )

    def open(self) -> None:
        """Begin to work on jobs."""
        self.store.sweep()
        self.supervisor.start()

    def close(self) -> None:
        """Stop; running jobs begin again with the next server."""
        self.supervisor.stop()
        self.sends.close()
        self.search.close()
        self.table.close()

    def turn(self, job: Job) -> int | None:
        """The place of a waiting job in its queue, from 1."""
        if job.state != "queued":
            return None
        queue = self.table.queue(LIGHT if job.kind in LIGHT else HEAVY)
        return queue.index(job.id) + 1 if job.id in queue else None

    def removed_after(self, upload: str) -> float:
        """When an upload is removed with its results, in seconds since 1970, unless work on it goes on."""
        return self.table.last_work(upload) + 3600 * self.settings.limits.keep_hours

    def _ended(self, job: Job) -> None:
        self.metrics.ended(job)
        self.audit.record("ended", job.owner, job=job.id, kind=job.kind, state=job.state)
