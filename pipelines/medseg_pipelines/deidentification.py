"""Files and folders of DICOM without what identifies the patient, as a new folder that appears whole or not at all."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError

from medseg.errors import InputRefused, UsageError
from medseg.io.deidentify import Deidentifier, pixel_risk, quiet
from medseg_pipelines.folders import check_target, whole_folder

BurnedIn = Literal["refuse", "skip", "keep"]

_DEFERRED = 1 << 16  # bytes; larger values, which are pixels, are not loaded to judge a file


@dataclass(kw_only=True)
class Report:
    """What happened to the files of one run."""

    written: int = 0
    not_dicom: int = 0
    refused: list[str] = field(default_factory=list)  # one line each, with the file's own name
    at_risk: Counter[str] = field(default_factory=Counter)  # files by why their pixels may show a name
    recognisable: bool = False  # slices of which a face could be rendered


def deidentify_files(
    source: Path,
    target: Path,
    deidentifier: Deidentifier,
    *,
    burned_in: BurnedIn = "refuse",
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Report:
    """Write a de-identified copy of a file, or of every DICOM file below a folder, to a new folder.

    Files of `target` are named by their new UIDs. What is not DICOM is left out.

    Args:
        source: File or folder.
        target: Where; must not exist, its parent must.
        deidentifier: What cleans a data set.
        burned_in: For files whose pixels may show a name: "refuse" everything, "skip" these, or "keep" them.
        progress: Called with the number of files done and of all.

    Raises:
        UsageError: There is no such source, or `target` is there already.
        InputRefused: A file cannot be cleaned, pixels may show a name, or there is no DICOM at all.
    """
    paths = list(_files(source))
    check_target(target, overwrite=False)
    _require_apart(source, target)
    report = Report()
    with whole_folder(target) as partial:
        for number, path in enumerate(paths, start=1):
            _one(path, partial, deidentifier, burned_in, report)
            progress(number, len(paths))
        _judge(report, burned_in)
    return report


def _one(path: Path, folder: Path, deidentifier: Deidentifier, burned_in: BurnedIn, report: Report) -> None:
    with quiet():
        dataset = _read(path)
        if dataset is None:
            report.not_dicom += 1
            return
        risk = pixel_risk(dataset)
        if risk:
            report.at_risk[risk] += 1
            if burned_in != "keep":
                return
        report.recognisable |= str(dataset.get("Modality", "")) in ("CT", "MR", "PT")
        try:
            deidentifier(dataset)
            place = folder / str(dataset.get("SeriesInstanceUID") or "no-series")
            place.mkdir(exist_ok=True)
            _save(dataset, place / f"{dataset.SOPInstanceUID}.dcm")
        except InputRefused as refusal:
            report.refused.append(f"{path.name}: {refusal}")
            return
    report.written += 1


def _read(path: Path) -> FileDataset | None:
    """The data set of a file, or None where it is not DICOM; files without the preamble are read as well."""
    try:
        try:
            return pydicom.dcmread(path, defer_size=_DEFERRED)
        except InvalidDicomError:
            dataset = pydicom.dcmread(path, defer_size=_DEFERRED, force=True)
            return dataset if "SOPClassUID" in dataset else None
    except Exception:  # whatever pydicom stumbles over is no DICOM; its own text may quote the file
        return None


def _save(dataset: FileDataset, path: Path) -> None:
    if path.exists():
        raise InputRefused("expected every instance once, got one UID twice; remove the copy")
    try:
        dataset.save_as(path, enforce_file_format=True)
    except Exception:  # its text may quote a value
        path.unlink(missing_ok=True)
        raise InputRefused("expected values that DICOM can store, got damaged ones; leave the file out") from None


def _judge(report: Report, burned_in: BurnedIn) -> None:
    """Refuse the run as a whole where a part of it could not be cleaned."""
    if report.refused:
        more = f" (and {len(report.refused) - 1} more files)" if len(report.refused) > 1 else ""
        raise InputRefused(f"{report.refused[0]}{more}")
    if report.at_risk and burned_in == "refuse":
        reason, _ = report.at_risk.most_common(1)[0]
        raise InputRefused(
            f"pixels must not show names, {report.at_risk.total()} files may: {reason}; look at them, then "
            "--burned-in keep, or --burned-in skip to leave them out"
        )
    if not report.written:
        raise InputRefused("input must hold DICOM files that can be kept, got none; check the path")


def _files(source: Path) -> Iterator[Path]:
    if source.is_file():
        yield source
    elif source.is_dir():
        for folder, _, names in os.walk(source):  # links to folders are not followed: they could lead anywhere
            yield from (Path(folder) / name for name in sorted(names) if name.upper() != "DICOMDIR")
    else:
        raise UsageError(f"input '{source.name}' must be a file or a folder, found none; check the path")


def _require_apart(source: Path, target: Path) -> None:
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"output '{target.name}' must lie outside the input, it lies inside; choose another with -o")
