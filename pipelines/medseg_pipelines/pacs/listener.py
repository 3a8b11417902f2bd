"""A storage service that segments what it is sent: receive, wait until a series is quiet, segment, send, forget."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from medseg.io.deidentify import quiet
from medseg_pipelines.pacs.address import Access
from medseg_pipelines.pacs.archive import Head, read_head
from medseg_pipelines.pacs.delivery import Courier
from medseg_pipelines.pacs.queue import INCOMPLETE, Job, Queue, digest_of
from medseg_pipelines.pacs.receiver import NoRoom, Received, receiving
from medseg_pipelines.pacs.rules import Listening, Rule
from medseg_pipelines.pacs.sending import is_trained
from medseg_pipelines.pacs.spool import Spool, only_one
from medseg_pipelines.pacs.worker import Answer, Stopped, segment

QUEUE_FILE = "queue.sqlite"

_HOUR, _DAY = 3600.0, 86400.0
_TIDY_EVERY = 60.0  # seconds

log = logging.getLogger("medseg.pacs")


class Listener:
    """Everything between a received slice and a result in the archive.

    Args:
        rules: What to do.
        folder: Where files and queue are kept from one run to the next.
        access: Our title and certificates.
        command: What runs medseg in a process of its own.
        look_every: Seconds between two looks at the clock and the queue.
    """

    def __init__(
        self, rules: Listening, folder: Path, access: Access, command: Sequence[str], *, look_every: float = 1.0
    ) -> None:
        self._rules, self._folder, self._access, self._command = rules, folder, access, list(command)
        self._every = look_every
        self._by_name = {rule.name: rule for rule in rules.rules}
        self._filing = threading.RLock()

    def run(self, stop: threading.Event, started: Callable[[int], object] = lambda port: None) -> dict[str, int]:
        """Listen until told to stop; gives the number of jobs in each state.

        Args:
            stop: Ends the run; what is left to do is done by the next one.
            started: Called with the port once objects are accepted.

        Raises:
            UsageError: The folder or the port is taken, or an address makes no sense.
        """
        with ExitStack() as stack:
            stack.enter_context(only_one(self._folder))
            self._spool = Spool(self._folder, int(self._rules.retention.disk))
            self._queue = Queue(self._folder / QUEUE_FILE)
            stack.callback(self._queue.close)
            stack.enter_context(quiet())  # once for all threads: it is not safe to enter in several
            couriers = [Courier(name, self._rules, self._queue, self._spool) for name in self._rules.destinations]
            self._recover()
            self._stop = stop
            work = [self._segment_next, self._close_quiet, self._tidy, *(courier.step for courier in couriers)]
            threads = [threading.Thread(target=self._loop, args=(each, stop), daemon=True) for each in work]
            address = (self._rules.host, self._rules.port)
            port = stack.enter_context(
                receiving(self._access, address, Received(self._receive), callers=self._rules.callers)
            )
            try:
                for thread in threads:
                    thread.start()
                started(port)
                stop.wait()
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            return self._queue.counts()

    def _loop(self, step: Callable[[], bool], stop: threading.Event) -> None:
        """Repeat a step; an error in it is told and does not end the listener."""
        pause = _TIDY_EVERY if step == self._tidy else self._every
        while not stop.is_set():
            try:
                if step():
                    continue
            except Stopped:
                return
            except Exception as fault:  # its text may quote a path or a value
                log.error("%s failed with %s and is tried again", step.__name__.strip("_"), type(fault).__name__)
            stop.wait(pause)

    def _receive(self, content: bytes) -> None:
        head = read_head(content)
        with self._filing:  # no series is removed between its file and the note of it
            if self._queue.is_done_with(head.instance):
                return
            try:
                self._spool.keep(head, content)
            except NoRoom:
                self._remove_old(hurry=True)
                self._spool.keep(head, content)
            self._queue.add(head, time.time())

    def _recover(self) -> None:
        """Enter files that were safe before the queue knew of them; their sender was told nothing yet."""
        for path in self._spool.unknown(self._queue.all_instances()):
            self._queue.add(read_head(path), time.time())

    def _close_quiet(self) -> bool:
        now = time.time()
        for number, uid in self._queue.quiet_series(now - self._rules.quiet_seconds):
            head = self._first(uid)
            names = [rule.name for rule in self._rules.rules if head and rule.fits(head.modality, head.description)]
            if self._queue.close_series(number, names, now):
                count = len(self._queue.instances(number))
                log.info("series %d: %d instances, %s", number, count, ", ".join(names) or "no rule fits it")
        return False

    def _first(self, series: str) -> Head | None:
        folder = self._spool.source(series)
        path = min(folder.iterdir(), default=None) if folder.is_dir() else None
        return read_head(path) if path else None

    def _segment_next(self) -> bool:
        job = self._queue.next_job(time.time())
        if job is None:
            return False
        rule = self._by_name.get(job.rule)
        if rule is None:
            self._end(job, "failed", "its rule is no longer in the file")
        elif digest_of(self._queue.instances(job.series)) != job.digest:
            self._end(job, "superseded", "more slices have come")
        elif self._spool.result(job.id).is_dir():  # the last run ended between the result and the note of it
            self._accept(job)
        else:
            self._segment(job, rule)
        return True

    def _segment(self, job: Job, rule: Rule) -> None:
        with self._spool.attempt(job.series_uid) as (images, result):
            if len(list(images.iterdir())) != len(self._queue.instances(job.series)):
                self._end(job, "refused", INCOMPLETE)
                return
            limit = self._rules.limit_minutes * 60
            answer = segment(self._command, rule, images, result, limit=limit, stop=self._stop)
            if answer.code == 0:
                self._spool.accept(result, job.id)
        self._accept(job) if answer.code == 0 else self._failed(job, answer)

    def _accept(self, job: Job) -> None:
        """Enter a result for sending, unless its model has learned nothing."""
        folder, rule = self._spool.result(job.id), self._by_name[job.rule]
        files = [(str(path.relative_to(folder)), read_head(path)) for path in sorted(folder.rglob("*.dcm"))]
        if rule.send and is_trained(folder) is not True:
            self._end(job, "withheld", "results of untrained models are never sent")
        else:
            self._queue.segmented(job.id, files, rule.send, time.time())
            log.info("job %d: segmented, %d files for %d destinations", job.id, len(files), len(rule.send))

    def _failed(self, job: Job, answer: Answer) -> None:
        now = time.time()
        if answer.refused:
            self._end(job, "refused", answer.reason)
        elif job.attempts + 1 >= self._rules.attempts:
            self._end(job, "failed", answer.reason)
        else:
            wait = self._rules.back_off(job.attempts + 1)
            self._queue.retry(job.id, answer.reason, now + wait, now)
            log.warning("job %d: failed, next try in %.0f s: %s", job.id, wait, answer.reason)

    def _end(self, job: Job, state: str, reason: str) -> None:
        self._queue.end(job.id, state, reason, time.time())
        log.warning("job %d: %s: %s", job.id, state, reason)

    def _tidy(self) -> bool:
        self._remove_old()
        self._spool.measure()
        return False

    def _remove_old(self, *, hurry: bool = False) -> None:
        """Remove what nobody needs any more; in a hurry all of it, otherwise what has had its time."""
        now, keep = time.time(), self._rules.retention
        failed_before = now - keep.failed_days * _DAY
        with self._filing:
            sources = self._queue.sources_to_remove(now if hurry else now - keep.sources_hours * _HOUR, failed_before)
            for number, uid in sources:
                self._spool.remove_source(uid)
                self._queue.sources_removed(number)
        results = self._queue.results_to_remove(now if hurry else now - keep.results_days * _DAY, failed_before)
        for job in results:
            self._spool.remove_result(job)
            self._queue.results_removed(job)
        self._queue.forget(now - keep.forget_days * _DAY)
        if sources or results:
            log.info("removed the images of %d series and %d results", len(sources), len(results))
            self._spool.measure()
