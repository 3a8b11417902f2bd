"""An append-only log of who did what: each line holds the hash of the one before, so none can be changed.

Cutting lines off at the end shows in the last hash, if it was noted elsewhere; `medseg audit verify` prints it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.errors import InputRefused, UsageError

_START = "0" * 64


class AuditLog:
    """The log in one file.

    Args:
        path: Made where it is not there; an existing one is gone on with.

    Raises:
        InputRefused: The existing log is broken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._number, self._last = verify(path) if path.exists() else (0, _START)

    def record(self, event: str, who: str, **facts: Any) -> None:
        """Add a line and wait until it is on the disk.

        Args:
            event: A word, like "run".
            who: User name, or the fingerprint of a nameless session.
            facts: Plain JSON data; no names of files or patients.
        """
        with self._lock:
            entry = {
                "number": self._number + 1,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event,
                "who": who,
                **facts,
                "before": self._last,
            }
            digest = _digest(entry)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**entry, "hash": digest}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self._number, self._last = entry["number"], digest


def verify(path: Path) -> tuple[int, str]:
    """The number of lines of a log that holds together, and its last hash.

    Raises:
        UsageError: There is no such file.
        InputRefused: A line was changed, removed, added or moved; the message says which.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"audit log '{path.name}' is not there; check the path") from None
    last = _START
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            digest = entry.pop("hash")
        except (ValueError, KeyError, AttributeError):
            raise InputRefused(f"audit log: line {number} must be a whole entry, it is not; it was cut") from None
        if entry.get("number") != number or entry.get("before") != last or _digest(entry) != digest:
            raise InputRefused(f"audit log: line {number} does not follow from the lines before; it was altered")
        last = digest
    return len(lines), last


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
