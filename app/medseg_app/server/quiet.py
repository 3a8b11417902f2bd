"""What the log says of a failure: its kind and place in the program, never its text, which may quote a file's name."""

from __future__ import annotations

import logging
import sys
import traceback
from types import SimpleNamespace
from typing import Any

from medseg_app.output import tell


def hush(*modules: Any) -> None:
    """Keep modules from printing tracebacks of their own: Gradio's quote the paths and names that visitors send.

    Args:
        modules: Each calls `traceback.print_exc`.
    """
    for module in modules:
        module.traceback = SimpleNamespace(**{**vars(traceback), "print_exc": _tell_kind})


def _tell_kind(*_: object, **__: object) -> None:
    """Stands for `traceback.print_exc`."""
    tell(f"a call through gradio failed ({type(sys.exception()).__name__})")


class WithoutText(logging.Filter):
    """Takes the text of an exception out of a record, and leaves where it happened."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True: the record goes on."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            frames = "".join(traceback.format_tb(error.__traceback__))
            record.msg, record.args = f"{record.getMessage().strip()}: {type(error).__name__}\n{frames}", ()
            record.exc_info = record.exc_text = None
        return True
