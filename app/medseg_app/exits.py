"""How a command ends: its exit code, and one line where something went wrong."""

import functools
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec

import typer

from medseg.errors import Cancelled, MedsegError
from medseg_app.output import tell

CANCELLED = Cancelled.exit_code

P = ParamSpec("P")


def answering(command: Callable[P, int | None]) -> Callable[P, None]:
    """A command whose return value, or error, becomes the exit code of the process."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(_run(lambda: command(*args, **kwargs)))

    return wrapped


def stop_on_terminate() -> None:
    """Let SIGTERM end a run like Ctrl-C does: what was begun is taken back."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _run(work: Callable[[], int | None]) -> int:
    try:
        return work() or 0
    except KeyboardInterrupt:
        tell("cancelled, nothing was written")
        return CANCELLED
    except MedsegError as error:
        _show_trace()
        tell(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:  # the reader of stdout went away, like `head`
        sys.stderr.close()
        return 1
    except Exception as error:
        _show_trace()
        tell(f"error: {type(error).__name__}: {' '.join(str(error).split())} (this is a bug; --debug shows where)")
        return 1


def _show_trace() -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
