"""`medseg dicom listen` and `queue`: segment what an archive sends, and see what is left to do."""

import logging
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from medseg.errors import UsageError
from medseg_app.output import print_json, print_line, print_table, size_text, tell
from medseg_pipelines.pacs.address import EntityAddress, access_for
from medseg_pipelines.pacs.listener import QUEUE_FILE, Listener
from medseg_pipelines.pacs.queue import Queue
from medseg_pipelines.pacs.rules import Listening, load_rules
from medseg_pipelines.words import RESEARCH_USE

_WORKER = (sys.executable, "-m", "medseg_app")


def listen(path: Path, folder: Path) -> int:
    """Listen until stopped; returns the exit code.

    Raises:
        UsageError: The rules make no sense, or the port or the folder is taken.
    """
    rules = load_rules(path)
    access = access_for(EntityAddress("", rules.host, rules.port))
    _log_to_stderr()
    stop = threading.Event()
    listener = Listener(rules, folder, access, _WORKER)
    try:
        listener.run(stop, started=lambda port: _greet(rules, access.title, port))
    except KeyboardInterrupt:
        tell("stopped; what is left to do waits for the next start")
    return 0


def queue(folder: Path, *, retry: bool, json: bool) -> int:
    """Print the jobs of a listener, which may be at work; returns the exit code.

    Raises:
        UsageError: There is no listener's queue in the folder.
    """
    if not (folder / QUEUE_FILE).is_file():
        raise UsageError(f"state '{folder.name}' must be the folder of a listener, it is not; check --state")
    base = Queue(folder / QUEUE_FILE)
    try:
        if retry:
            tell(f"{base.revive(time.time())} failed jobs are tried again")
        jobs, counts = base.listing(), base.counts()
    finally:
        base.close()
    if json:
        print_json({"counts": counts, "jobs": jobs})
        return 0
    rows = [
        (str(j["id"]), str(j["rule"]), str(j["state"]), f"{j['sent']}/{j['files']}", str(j["waiting"] or j["reason"]))
        for j in jobs
    ]
    print_table(("job", "rule", "state", "sent", ""), rows)
    print_line(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 0


def _greet(rules: Listening, title: str, port: int) -> None:
    keep = rules.retention
    tell(f"listening as {title} on {rules.host or 'every interface'}, port {port}")
    if not rules.callers:
        tell("anybody who reaches the port may send: name the titles of your archives under `callers`")
    tell(
        f"images stay {keep.sources_hours:g} h after their last job, results {keep.results_days:g} days once sent, "
        f"failed jobs {keep.failed_days:g} days; above {size_text(int(keep.disk))} nothing more is accepted"
    )
    tell(RESEARCH_USE)


def _log_to_stderr() -> None:
    """Our own log only: those of the libraries quote what they read."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("medseg")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class _Lines(logging.Formatter):
    """Times in UTC, as ISO 8601."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - the name that logging calls
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="seconds")
