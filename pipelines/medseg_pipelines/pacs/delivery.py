"""Results on their way to one destination: again and again until they are there, and then never more."""

from __future__ import annotations

import logging
import time
from itertools import groupby

from medseg.errors import MedsegError
from medseg_pipelines.pacs.address import ArchiveFailed, access_for, parse_address
from medseg_pipelines.pacs.archive import Archive, held
from medseg_pipelines.pacs.connect import open_archive
from medseg_pipelines.pacs.queue import Delivery, Queue
from medseg_pipelines.pacs.rules import Listening
from medseg_pipelines.pacs.spool import Spool

log = logging.getLogger("medseg.pacs")


class Courier:
    """Sends what is due for a destination.

    Args:
        name: Of the destination.
        rules: Where it is and how long to wait after a failure.
        queue: What is due.
        spool: Where the files are.
    """

    def __init__(self, name: str, rules: Listening, queue: Queue, spool: Spool) -> None:
        address = parse_address(rules.destinations[name])
        self._archive: Archive = open_archive(address, access_for(address, name))
        self._name, self._rules, self._queue, self._spool = name, rules, queue, spool

    def step(self) -> bool:
        """Try what is due now; False where there was nothing."""
        deliveries = self._queue.due(self._name, time.time())
        for job, group in groupby(deliveries, key=lambda each: each.job):
            self._send(job, list(group))
        return bool(deliveries)

    def _send(self, job: int, deliveries: list[Delivery]) -> None:
        arrived = self._arrived(deliveries)
        for each in arrived:
            self._queue.sent(self._name, each, time.time())
        open_ones = [each for each in deliveries if each not in arrived]
        if not open_ones:
            log.info("job %d: %d files are at %s already", job, len(arrived), self._name)
            return
        by_path = {self._spool.result(job) / each.file: each for each in open_ones}
        self._queue.sending(self._name, open_ones)
        reason = "the destination did not confirm it"
        try:
            for path, fault in self._archive.send(list(by_path)):
                if fault is None:
                    self._queue.sent(self._name, by_path.pop(path), time.time())
                else:
                    reason = fault
        except MedsegError as fault:
            reason = str(fault)
        except Exception as fault:  # whatever it was, the files are still here; its text may quote a path
            reason = type(fault).__name__
        if not by_path:
            log.info("job %d: %d files sent to %s", job, len(open_ones), self._name)
            return
        wait = self._rules.back_off(max(each.attempts for each in by_path.values()) + 1)
        self._queue.not_sent(self._name, by_path.values(), reason, time.time() + wait)
        log.warning("job %d: %d files not sent, next try in %.0f s: %s", job, len(by_path), wait, reason)

    def _arrived(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Files that left before and did arrive; where that cannot be asked, they go again under the same UIDs."""
        begun = [each for each in deliveries if each.begun]
        try:
            there = {uid for place in {(d.study, d.series) for d in begun} for uid in held(self._archive, *place)}
        except ArchiveFailed:
            return []
        return [each for each in begun if each.instance in there]
