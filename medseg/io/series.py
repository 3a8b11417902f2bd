"""The door for DICOM: recognised here without pydicom, which takes longer to load than most files to read."""

from __future__ import annotations

from pathlib import Path

_NAMES = (".dcm", ".dicom", ".ima", ".zip")


def is_series(path: Path) -> bool:
    """Whether the path is a folder, an archive or a file that would hold DICOM."""
    if path.is_dir() or path.suffix.lower() in _NAMES or path.name.upper() == "DICOMDIR":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
