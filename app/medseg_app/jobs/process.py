"""One worker process, seen from the server: lines of JSON in and out, its memory watched, killed without ceremony."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medseg_pipelines.pacs import bound

WORKER = (sys.executable, "-m", "medseg_app.jobs.worker")


class Gone(Exception):
    """The process ended without an answer."""


class WorkerProcess:
    """A process that takes one task after the other and dies with the thread that started it.

    Args:
        command: What runs it.
    """

    def __init__(self, command: Sequence[str] = WORKER) -> None:
        bound_to_us = [sys.executable, "-I", bound.__file__, str(os.getpid())]
        self._process = subprocess.Popen(
            [*bound_to_us, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a traceback may quote the image
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def alive(self) -> bool:
        """Whether it can take a task."""
        return self._process.poll() is None

    def send(self, task: dict[str, Any]) -> None:
        """Give it a task.

        Raises:
            Gone: It does not listen any more.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise Gone from None

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """What it says next, or None if it says nothing for so long.

        Raises:
            Gone: It ended.
        """
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        if line is None:
            raise Gone
        return json.loads(line)

    def memory(self) -> int:
        """Bytes that it holds now; 0 where the system does not tell (only Linux does)."""
        try:
            status = Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii")
        except OSError:
            return 0
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def kill(self) -> None:
        """End it now; whatever it held is free."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:  # closed by `kill`
            pass
        self._lines.put(None)
