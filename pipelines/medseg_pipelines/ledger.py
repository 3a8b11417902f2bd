"""A small SQLite file whose every step is one transaction that survives a crash right after it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class Ledger:
    """Tables in one file; safe to use from several threads of one process. A subclass names its tables.

    Args:
        path: The SQLite file; made where it is not there.
    """

    SCHEMA: ClassVar[str]

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self._base.row_factory = sqlite3.Row
        for line in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            self._base.execute(f"PRAGMA {line}")
        self._base.executescript(self.SCHEMA)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        """One transaction; steps within steps belong to the outer one."""
        with self._lock:
            if self._base.in_transaction:
                yield self._base
                return
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def _all(self, question: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._base.execute(question, values).fetchall()
