"""What a run tells while it works, and how it is stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from medseg.errors import Cancelled


@dataclass(frozen=True, kw_only=True)
class Event:
    """A step of a run; the same events feed the command line, the log and the web page."""

    stage: str  # "reading", "preparing", "segmenting", "measuring", "writing"
    done: int
    total: int
    seconds_left: float | None  # of this stage; None while nothing is known


Callback = Callable[[Event], object]
"""Gets every event; returning False, or raising `Cancelled`, stops the run before anything is written."""


class Reporter:
    """Sends events to a callback, times the stages, and turns a "no" into `Cancelled`."""

    def __init__(self, callback: Callback | None) -> None:
        self._callback = callback
        self._stage = ""
        self._since = time.monotonic()
        self.seconds: dict[str, float] = {}

    def start(self, stage: str) -> None:
        """Begin a stage; the one before it ends here.

        Raises:
            Cancelled: The callback said so.
        """
        self.finish()
        self._stage, self._since = stage, time.monotonic()
        self._send(0, 1, None)

    def advance(self, done: int, total: int) -> None:
        """Tell that `done` of `total` parts of the stage are done.

        Raises:
            Cancelled: The callback said so.
        """
        elapsed = time.monotonic() - self._since
        self._send(done, total, elapsed / done * (total - done) if done else None)

    def finish(self) -> None:
        """End the stage and keep its time."""
        if self._stage:
            spent = self.seconds.get(self._stage, 0.0) + time.monotonic() - self._since
            self.seconds[self._stage] = round(spent, 3)
        self._stage = ""

    def _send(self, done: int, total: int, seconds_left: float | None) -> None:
        event = Event(stage=self._stage, done=done, total=total, seconds_left=seconds_left)
        if self._callback is not None and self._callback(event) is False:
            raise Cancelled("run: cancelled by the caller, nothing was written")
