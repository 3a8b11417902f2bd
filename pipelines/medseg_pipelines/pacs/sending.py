"""What may be sent: nothing of a model that was never trained; and of whom it is."""

import json
from collections.abc import Iterable
from pathlib import Path

import pydicom

from medseg.errors import UsageError
from medseg.io.deidentify import quiet
from medseg_pipelines.folders import RESULT_MARK
from medseg_pipelines.pacs.address import ArchiveFailed
from medseg_pipelines.pacs.archive import read_head

_PATIENT = (("PatientName", "name"), ("PatientID", "id"))
_MARK = "UNTRAINED"  # how our DICOM results of such models describe themselves


def is_trained(folder: Path) -> bool | None:
    """Whether the model behind a result folder was trained; None where the folder is no result."""
    try:
        content = json.loads((folder / RESULT_MARK).read_text(encoding="utf-8"))
        return content["model"]["trained"] is True
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return False  # a manifest that cannot be read proves nothing


def require_trained(paths: Iterable[Path]) -> None:
    """Refuse files that are, or lie in, the result of an untrained model.

    Raises:
        UsageError: There is one.
    """
    paths = list(paths)
    for folder in {parent for path in paths for parent in path.resolve().parents}:
        if is_trained(folder) is False:
            raise UsageError(
                f"result '{folder.name}' must come from a trained model to be sent, it does not; leave it out"
            )
    for path in paths:
        if _says_untrained(path):
            raise UsageError(f"'{path.name}' must come from a trained model to be sent, it does not; leave it out")


def patient_of(path: Path) -> str:
    """Name and id of the patient of a DICOM file, for the eyes of the person who sends it and for no log."""
    with quiet():
        head = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientName", "PatientID"])
        return ", ".join(str(head.get(name) or "no " + what) for name, what in _PATIENT)


def _says_untrained(path: Path) -> bool:
    try:
        return read_head(path).description.startswith(_MARK)
    except ArchiveFailed:  # the archive will be asked about it, or not: either way it is no result of ours
        return False
