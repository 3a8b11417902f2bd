"""`medseg dicom find`, `get` and `send`: an archive by DICOMweb or DIMSE."""

from pathlib import Path
from typing import cast, get_args

from pydicom import Dataset
from pydicom.multival import MultiValue

from medseg.errors import MedsegError, UsageError
from medseg_app.output import print_json, print_line, tell
from medseg_app.progress import ProgressView
from medseg_pipelines.events import Event
from medseg_pipelines.pacs.address import parse_address
from medseg_pipelines.pacs.archive import KEYS, Level, dicom_files, retrieve, search
from medseg_pipelines.pacs.connect import open_archive
from medseg_pipelines.pacs.sending import require_trained

_PATIENT = ("PatientID", "PatientName", "AccessionNumber")
_SOME_FAILED = 4
_TITLES = {
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "SOPInstanceUID": "instance",
    "StudyDate": "date",
    "StudyDescription": "description",
    "SeriesDescription": "description",
    "ModalitiesInStudy": "modality",
    "Modality": "modality",
    "NumberOfStudyRelatedInstances": "instances",
    "NumberOfSeriesRelatedInstances": "instances",
    "InstanceNumber": "number",
    "PatientID": "patient",
    "PatientName": "name",
    "AccessionNumber": "accession",
}


def find(address: str, *, level: str, filters: dict[str, str], limit: int, show_patient: bool, json: bool) -> int:
    """Print what matches; returns the exit code.

    Raises:
        UsageError: The request makes no sense.
        ArchiveFailed: The archive does not answer.
    """
    if level not in get_args(Level):
        raise UsageError(f"--level must be one of {', '.join(get_args(Level))}, got {level}; choose one of them")
    if level == "instance" and not {"StudyInstanceUID", "SeriesInstanceUID"} <= filters.keys():
        raise UsageError("--level instance needs --study and --series, they are missing; name both")
    archive = open_archive(parse_address(address))
    matches = search(archive, cast(Level, level), filters, limit)
    names = [name for name in KEYS[level] if show_patient or name not in _PATIENT]
    rows = [{name: _text(match, name) for name in names} for match in matches]
    if json:
        print_json({"archive": str(archive.address), "level": level, "matches": rows})
        return 0
    shown = [name for name in names if name in _TITLES]
    _print_wide([[_TITLES[name] for name in shown], *([row[name] for name in shown] for row in rows)])
    tell(f"{len(rows)} found" + (f"; there may be more, raise --limit {limit}" if len(rows) == limit else ""))
    return 0


def get(address: str, *, study: str, series: str | None, out: Path, move: int | None, json: bool, quiet: bool) -> int:
    """Retrieve a study or a series; returns the exit code.

    Raises:
        UsageError: The output is there already.
        ArchiveFailed: Not everything came; nothing was written.
    """
    archive = open_archive(parse_address(address), receive_on=move)
    with ProgressView(quiet=quiet) as view:
        count = retrieve(
            archive, study, series, out, progress=lambda done, total: view(_event("receiving", done, total))
        )
    if json:
        print_json({"output": str(out), "instances": count})
    else:
        print_line(f"received  {count} files")
        print_line(f"folder    {out}")
    return 0


def send(address: str, *, inputs: tuple[Path, ...], json: bool, quiet: bool) -> int:
    """Send files; returns the exit code, 4 where only some were stored.

    Raises:
        UsageError: An input cannot be sent; nothing was.
        ArchiveFailed: The archive does not answer, or took nothing.
    """
    archive = open_archive(parse_address(address))
    paths = dicom_files(inputs)
    require_trained(paths)
    failed: list[tuple[str, str]] = []
    stored = 0
    with ProgressView(quiet=quiet) as view:
        for path, reason in archive.send(paths):
            if reason is None:
                stored += 1
            else:
                failed.append((path.name, reason))
            view(_event("sending", stored + len(failed), len(paths)))
    for name, reason in failed[:10]:
        tell(f"error: {name}: {reason}")
    if len(failed) > 10:
        tell(f"error: and {len(failed) - 10} more files")
    if json:
        print_json({"archive": str(archive.address), "sent": stored, "failed": len(failed)})
    else:
        print_line(f"sent      {stored} of {len(paths)} files to {archive.address}")
    if not failed:
        return 0
    return _SOME_FAILED if stored else MedsegError.exit_code


def _print_wide(rows: list[list[str]]) -> None:
    """Columns that are never folded: a UID must be one word to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print_line("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _event(stage: str, done: int, total: int) -> Event:
    return Event(stage=stage, done=done, total=total, seconds_left=None)


def _text(match: Dataset, name: str) -> str:
    value = match.get(name)
    if value is None:
        return ""
    return ",".join(str(part) for part in value) if isinstance(value, MultiValue) else str(value)
