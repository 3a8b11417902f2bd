"""Figures for Prometheus, written in its text format; none of them tells anything of a patient or a user."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict

from medseg_app.jobs.store import Store
from medseg_app.jobs.supervisor import HEAVY, LIGHT, Supervisor
from medseg_app.jobs.table import ENDED, OPEN, Job, Table


class Metrics:
    """Counts since the server began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, int]] = Counter()
        self._ended: Counter[tuple[str, str]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def answered(self, method: str, status: int) -> None:
        """A request was answered."""
        with self._lock:
            self._answers[method, status] += 1

    def ended(self, job: Job) -> None:
        """A job ended."""
        with self._lock:
            self._ended[job.kind, job.state] += 1
            if job.started is not None and job.ended is not None:
                self._seconds[job.kind] += job.ended - job.started

    def text(self, table: Table, store: Store, supervisor: Supervisor) -> str:
        """All figures in the Prometheus text format."""
        with self._lock:
            answers, ended, seconds = dict(self._answers), dict(self._ended), dict(self._seconds)
        counts = table.counts()
        lines = [
            *_family("medseg_http_requests_total", "counter", "Answered requests."),
            *(f'medseg_http_requests_total{{method="{m}",status="{s}"}} {n}' for (m, s), n in sorted(answers.items())),
            *_family("medseg_jobs_ended_total", "counter", "Jobs that ended since the server began."),
            *(f'medseg_jobs_ended_total{{kind="{k}",state="{s}"}} {n}' for (k, s), n in sorted(ended.items())),
            *_family("medseg_job_seconds_total", "counter", "Time that ended jobs took."),
            *(f'medseg_job_seconds_total{{kind="{kind}"}} {n:.3f}' for kind, n in sorted(seconds.items())),
            *_family("medseg_jobs", "gauge", "Jobs in the table by state."),
            *(f'medseg_jobs{{state="{state}"}} {counts.get(state, 0)}' for state in (*OPEN, *ENDED)),
            *_family("medseg_queue_length", "gauge", "Jobs that wait."),
            f"medseg_queue_length {len(table.queue(LIGHT + HEAVY))}",
            *_family("medseg_disk_bytes", "gauge", "Bytes of uploads and results, and what they may take."),
            f'medseg_disk_bytes{{what="used"}} {store.used()}',
            f'medseg_disk_bytes{{what="limit"}} {store.limits.disk_bytes}',
            *_family("medseg_worker_memory_bytes", "gauge", "Memory of the worker processes together."),
            f"medseg_worker_memory_bytes {sum(worker.memory() for worker in supervisor.workers())}",
        ]
        return "\n".join(lines) + "\n"


def _family(name: str, kind: str, words: str) -> tuple[str, str]:
    return f"# HELP {name} {words}", f"# TYPE {name} {kind}"
