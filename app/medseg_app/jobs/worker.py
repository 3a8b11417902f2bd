"""`python -m medseg_app.jobs.worker`: tasks on stdin, what is known of them on stdout, one line of JSON each.

A model stays loaded for the next task. Nothing but these lines leaves the process: libraries that print go to stderr.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.errors import InputRefused, MedsegError, ModelMissing, UsageError
from medseg_pipelines.events import Event

_TELL_EVERY = 0.25  # seconds
_OUR_NAME = re.compile(r"^(image\d*|upload)[.\w]*: ")  # of our copy, which means nothing to the user

Task = Callable[[dict[str, Any], Callable[[Event], object]], None]


def main() -> None:
    """Work until stdin ends."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _do("check")  # the first look at an upload must not wait for libraries
    for line in sys.stdin:
        state, reason = answer(json.loads(line), _teller(out))
        _say(out, {"end": state, "reason": reason})


def answer(task: dict[str, Any], progress: Callable[[Event], object]) -> tuple[str, str]:
    """Do one task; how it ended, and why in one sentence that names no file and no patient.

    Args:
        task: `kind`, `folder` of the job, folder of the `upload`, the `request` and the `memory_limit` in bytes.
        progress: Gets every event.
    """
    try:
        _do(task["kind"])({**task, "folder": Path(task["folder"]), "upload": Path(task["upload"])}, progress)
    except (InputRefused, UsageError) as error:
        return "refused", _OUR_NAME.sub("", str(error))
    except ModelMissing as error:
        return "failed", str(error)
    except MemoryError:
        return "refused", "job needs more memory than this server has; crop the image"
    except MedsegError as error:
        return "failed", str(error)
    except Exception as error:  # its text may quote the image, so only its kind is told
        return "failed", f"the program failed ({type(error).__name__}); this is a bug, please report it"
    return "done", ""


def _do(kind: str) -> Task:
    """What does a kind of task; torch is loaded only where a model runs."""
    if kind == "check":
        from medseg_app.jobs.checking import check

        return check
    if kind == "correct":
        from medseg_app.jobs.correcting import correct

        return correct
    if kind == "support":
        from medseg_app.jobs.supporting import make_support_set

        return make_support_set
    from medseg_app.jobs.running import run

    return run


def _teller(out: Any) -> Callable[[Event], object]:
    """Passes events on, not more than a few a second."""
    last = {"stage": "", "at": 0.0}

    def tell(event: Event) -> None:
        now = time.monotonic()
        if event.stage == last["stage"] and now - last["at"] < _TELL_EVERY and event.done < event.total:
            return
        last.update(stage=event.stage, at=now)
        _say(out, vars(event))

    return tell


def _say(out: Any, content: dict[str, Any]) -> None:
    out.write(json.dumps(content) + "\n")
    out.flush()


if __name__ == "__main__":
    main()
