"""Progress of a run on stderr: a bar on a terminal, a line every ten seconds in a log."""

import sys
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from medseg_app.output import duration_text, tell
from medseg_pipelines.events import Event

_LINE_EVERY = 10.0  # seconds


class ProgressView:
    """A callback that shows events; use it as a context manager, so that the terminal is left clean.

    Args:
        quiet: Show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._case = ""
        self._told = monotonic()
        self._bar = None if quiet or not sys.stderr.isatty() else _bar()
        self._task = self._bar.add_task("", total=1, left="") if self._bar else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pause()

    def pause(self) -> None:
        """Take the bar away, so that something else can be printed; the next event brings it back."""
        if self._bar:
            self._bar.stop()

    def start_case(self, number: int, total: int) -> None:
        """Name the case by its place in the batch; a log must not hold file names."""
        self._case = f"{number} of {total}, " if total > 1 else ""

    def __call__(self, event: Event) -> None:
        if self._quiet:
            return
        left = f"about {duration_text(event.seconds_left)} left" if event.seconds_left is not None else ""
        if self._bar and self._task is not None:
            text = f"{self._case}{event.stage}"
            self._bar.start()
            self._bar.update(self._task, description=text, completed=event.done, total=event.total, left=left)
        elif monotonic() - self._told >= _LINE_EVERY:
            self._told = monotonic()
            parts = [f"{self._case}{event.stage}", f"{event.done} of {event.total}" if event.done else "", left]
            tell(", ".join(part for part in parts if part))


def _bar() -> Progress:
    columns = (TextColumn("{task.description:>24}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    return Progress(*columns, TextColumn("{task.fields[left]}"), console=Console(stderr=True), transient=True)
