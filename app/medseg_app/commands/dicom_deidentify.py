"""`medseg dicom deidentify`: DICOM without what identifies the patient."""

import os
from pathlib import Path
from typing import cast, get_args

from medseg.errors import UsageError
from medseg.io.deidentify import PROFILE, Deidentifier
from medseg.io.pseudonyms import SHORTEST_KEY, create_key, read_key
from medseg_app.output import print_json, print_line, tell
from medseg_app.progress import ProgressView
from medseg_pipelines.deidentification import BurnedIn, Report, deidentify_files
from medseg_pipelines.events import Event
from medseg_pipelines.recipe import imported_models

_KEY_VARIABLE = "MEDSEG_DEIDENTIFY_KEY"
_DATES = ("remove", "shift")


def run(source: Path, out: Path, *, key: Path | None, dates: str, burned_in: str, json: bool, quiet: bool) -> int:
    """De-identify; returns the exit code.

    Raises:
        UsageError: The request cannot be met; nothing was written.
        InputRefused: A file cannot be cleaned; nothing was written.
    """
    for name, value, allowed in (("--dates", dates, _DATES), ("--burned-in", burned_in, get_args(BurnedIn))):
        if value not in allowed:
            raise UsageError(f"{name} must be one of {', '.join(allowed)}, got {value}; choose one of them")
    deidentifier = Deidentifier(_key(key, quiet=quiet), shift_dates=dates == "shift")
    with ProgressView(quiet=quiet) as view:

        def progress(done: int, total: int) -> None:
            view(Event(stage="de-identifying", done=done, total=total, seconds_left=None))

        report = deidentify_files(source, out, deidentifier, burned_in=cast(BurnedIn, burned_in), progress=progress)
    _say(report, out, dates, burned_in, json=json, quiet=quiet)
    return 0


def _key(path: Path | None, *, quiet: bool) -> bytes:
    """The key the user gives, or that of earlier runs, or a new one; where it lies is always said."""
    if path is not None:
        return read_key(path)
    if text := os.environ.get(_KEY_VARIABLE):
        if len(text.encode()) < SHORTEST_KEY:
            raise UsageError(f"{_KEY_VARIABLE} must have {SHORTEST_KEY} bytes or more; use a longer one")
        return text.encode()
    home = imported_models().parent / "deidentify.key"
    try:
        key = create_key(home)
        tell(f"made a new key: {home}. Who has it can test who a pseudonym is: keep it secret, or delete it when done")
    except FileExistsError:
        key = read_key(home)
        if not quiet:
            tell(f"key: {home}, as in earlier runs; pseudonyms agree with theirs")
    return key


def _say(report: Report, out: Path, dates: str, burned_in: str, *, json: bool, quiet: bool) -> None:
    if json:
        print_json(
            {
                "output": str(out),
                "profile": PROFILE,
                "dates": dates,
                "written": report.written,
                "not_dicom": report.not_dicom,
                "pixels_at_risk": dict(report.at_risk),
                "burned_in": burned_in,
            }
        )
    else:
        print_line(
            f"written   {report.written} files by {PROFILE}, dates {'shifted' if dates == 'shift' else 'removed'}"
        )
        print_line(f"left out  {report.not_dicom} files that are not DICOM") if report.not_dicom else None
        for reason, count in report.at_risk.items():
            print_line(f"{'left out' if burned_in == 'skip' else 'kept    '}  {count} files: {reason}")
        print_line(f"folder    {out}")
    if report.recognisable and not quiet:
        tell("note: pixels are as they were; a face can be rendered from slices of a head")
