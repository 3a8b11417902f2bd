"""One segmentation in a process of its own: whatever happens to it, the listener goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg_pipelines.pacs import bound
from medseg_pipelines.pacs.rules import Rule

_LOOK_EVERY = 0.2  # seconds
_LEAVE_TIME = 10.0  # seconds a worker has to clean up
_LONGEST_REASON = 300
# PR_SET_PDEATHSIG counts the death of the thread that started the worker: it must be the one that waits for it.


class Stopped(Exception):
    """The listener is asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a worker ended."""

    code: int
    reason: str  # for the log; holds nothing of the patient

    @property
    def refused(self) -> bool:
        """Whether another attempt would end the same way."""
        return self.code == InputRefused.exit_code


def segment(
    command: Sequence[str], rule: Rule, images: Path, result: Path, *, limit: float, stop: threading.Event
) -> Answer:
    """Run `medseg infer` on a folder of images.

    Args:
        command: What runs medseg.
        rule: Model, device and formats.
        images: The folder.
        result: Where the result folder shall be.
        limit: Seconds after which the worker is stopped.
        stop: Ends the wait.

    Raises:
        Stopped: `stop` was set; nothing was kept.
    """
    arguments = ["infer", str(images), "-m", rule.model, "-o", str(result), "--format", ",".join(rule.formats)]
    bound_to_us = [sys.executable, "-I", bound.__file__, str(os.getpid())]  # by its path: the package costs a second
    with (images.parent / "errors").open("wb") as errors:
        process = subprocess.Popen(
            [*bound_to_us, *command, *arguments, "--device", rule.device, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            code = _wait(process, limit, stop)
        finally:
            _leave(process)
    if code is None:
        return Answer(code=1, reason="it took longer than limit_minutes")
    return Answer(code=code, reason=_reason(code, images.parent / "errors"))


def _wait(process: subprocess.Popen[bytes], limit: float, stop: threading.Event) -> int | None:
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if stop.is_set():
            raise Stopped
        try:
            return process.wait(_LOOK_EVERY)
        except subprocess.TimeoutExpired:
            continue
    return None


def _leave(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_LEAVE_TIME)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(code: int, errors: Path) -> str:
    """The last line of a known error; of an unknown one only its code, since its text may quote the image."""
    if code in (UsageError.exit_code, InputRefused.exit_code, ModelMissing.exit_code):
        lines = errors.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if told:
            return told[-1][:_LONGEST_REASON]
    return "" if code == 0 else f"the worker ended with code {code}"
