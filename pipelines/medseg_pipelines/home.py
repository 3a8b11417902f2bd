"""Where medseg keeps what is no result: imported models, weights that users bring."""

import os
import sys
from pathlib import Path

_HOME = "MEDSEG_HOME"


def home() -> Path:
    """`MEDSEG_HOME`, or where this system keeps the data of a program; need not be there yet."""
    named = os.environ.get(_HOME)
    if named:
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "medseg"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "medseg"
