"""The door for DICOM: recognised here so that the refusal can say what to do, not yet read."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from medseg.errors import InputRefused

_NAMES = (".dcm", ".dicom", ".ima", ".zip")


def is_series(path: Path) -> bool:
    """Whether the path is a folder, an archive or a file that would hold DICOM."""
    if path.is_dir() or path.suffix.lower() in _NAMES or path.name.upper() == "DICOMDIR":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def refuse(path: Path) -> NoReturn:
    """Say that DICOM is not read yet.

    Raises:
        InputRefused: Always.
    """
    what = "a folder" if path.is_dir() else "a zip archive" if path.suffix.lower() == ".zip" else "DICOM"
    raise InputRefused(f"expected one volume file, got {what}; DICOM is not read yet: convert the series with dcm2niix")
