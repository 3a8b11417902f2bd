"""One face for DICOMweb and DIMSE: search, retrieve, send."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Literal, Protocol

import pydicom
from pydicom import Dataset

from medseg.errors import UsageError
from medseg.io.deidentify import quiet
from medseg_pipelines.folders import check_target, whole_folder
from medseg_pipelines.pacs.address import Address, ArchiveFailed

Level = Literal["study", "series", "instance"]
Outcome = tuple[Path, str | None]
"""A file and why it was not stored; None where it was."""

KEYS: dict[str, tuple[str, ...]] = {
    "study": (
        *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyDescription", "ModalitiesInStudy", "AccessionNumber"),
        *("PatientID", "PatientName", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    ),
    "series": (
        *("StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
        "NumberOfSeriesRelatedInstances",
    ),
    "instance": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"),
}


class Archive(Protocol):
    """What both kinds of archive can do; every method raises `ArchiveFailed` where the archive does not play along."""

    @property
    def address(self) -> Address:
        """Where it is."""
        ...

    def find(self, level: Level, filters: dict[str, str], limit: int | None = None) -> list[Dataset]:
        """What matches; `filters` maps keywords to values, and holds the UIDs of the levels above."""
        ...

    def fetch(self, study: str, series: str, classes: frozenset[str], store: Callable[[bytes], None]) -> None:
        """Hand every instance of a series to `store` as a whole file; `classes` are their SOP classes, where known."""
        ...

    def send(self, paths: Iterable[Path]) -> Iterator[Outcome]:
        """Store files, one outcome each, in any order."""
        ...


def search(archive: Archive, level: Level, filters: dict[str, str], limit: int | None = None) -> list[Dataset]:
    """What matches on a level, whatever levels the filters belong to; series come study by study.

    Args:
        archive: Where.
        level: What is asked for.
        filters: Keyword to value; wildcards and date ranges as DICOM has them.
        limit: Of the answers.
    """
    if level == "study" or "StudyInstanceUID" in filters:
        return archive.find(level, filters, limit)
    of_series = {name: value for name, value in filters.items() if name in KEYS["series"]}
    of_study = {name: value for name, value in filters.items() if name not in of_series}
    if "Modality" in of_series:
        of_study["ModalitiesInStudy"] = of_series["Modality"]
    found: list[Dataset] = []
    for study in archive.find("study", of_study):
        rest = None if limit is None else limit - len(found)
        found += archive.find("series", {**of_series, "StudyInstanceUID": str(study.StudyInstanceUID)}, rest)
        if limit is not None and len(found) >= limit:
            break
    return found[:limit]


def held(archive: Archive, study: str, series: str) -> set[str]:
    """The SOP Instance UIDs of a series that the archive has already."""
    found = archive.find("instance", {"StudyInstanceUID": study, "SeriesInstanceUID": series})
    return {str(match.get("SOPInstanceUID", "")) for match in found}


def retrieve(
    archive: Archive,
    study: str,
    series: str | None,
    target: Path,
    *,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> int:
    """Bring a study, or one series of it, into a new folder: one folder per series, whole or not at all.

    Args:
        archive: Where from.
        study: Study Instance UID.
        series: Series Instance UID, or None for all.
        target: The new folder; its parent must exist.
        progress: Called with the number of files received and expected.

    Returns:
        The number of files.

    Raises:
        ArchiveFailed: The archive holds nothing of that kind, or fewer instances came than it listed.
        UsageError: `target` is there already.
    """
    check_target(target, overwrite=False)
    wanted = (
        [series]
        if series
        else [str(match.SeriesInstanceUID) for match in archive.find("series", {"StudyInstanceUID": study})]
    )
    listed = {uid: archive.find("instance", {"StudyInstanceUID": study, "SeriesInstanceUID": uid}) for uid in wanted}
    expected = {str(match.SOPInstanceUID) for matches in listed.values() for match in matches}
    if not expected:
        raise ArchiveFailed(f"{archive.address}: expected the study or series, got no instances; check the UIDs")
    received: set[str] = set()
    with whole_folder(target) as partial:

        def store(content: bytes) -> None:
            head = read_head(content)
            save_instance(head, content, partial)
            received.add(head.instance)
            progress(len(received), len(expected))

        for uid, matches in listed.items():
            archive.fetch(study, uid, frozenset(str(m.SOPClassUID) for m in matches if "SOPClassUID" in m), store)
        if missing := expected - received:
            raise ArchiveFailed(
                f"{archive.address}: expected {len(expected)} instances, {len(missing)} did not come; try again"
            )
    return len(received)


class Head:
    """The UIDs of one instance, its modality and its description."""

    def __init__(self, dataset: Dataset) -> None:
        self.instance = str(dataset.get("SOPInstanceUID") or "")
        self.sop_class = str(dataset.get("SOPClassUID") or "")
        self.series = str(dataset.get("SeriesInstanceUID") or "")
        self.study = str(dataset.get("StudyInstanceUID") or "")
        self.modality = str(dataset.get("Modality") or "").strip().upper()
        self.description = str(dataset.get("SeriesDescription") or "").strip()
        meta = getattr(dataset, "file_meta", None)
        self.syntax = str(meta.get("TransferSyntaxUID") or "") if meta is not None else ""


_HEAD = ("SOPInstanceUID", "SOPClassUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "SeriesDescription")


def read_head(source: bytes | Path) -> Head:
    """The head of a DICOM file, without its pixels.

    Raises:
        ArchiveFailed: It is no DICOM, or lacks a UID.
    """
    with quiet():
        try:
            file = BytesIO(source) if isinstance(source, bytes) else source
            head = Head(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_HEAD)))
        except Exception:  # the text of the error may quote a value
            raise ArchiveFailed("object must be DICOM, it is not; it was not stored") from None
    if not (head.instance and head.sop_class and head.series and head.study):
        raise ArchiveFailed("object must have the UIDs of study, series, instance and class; it was not stored")
    return head


def save_instance(head: Head, content: bytes, folder: Path) -> None:
    """Write an instance below `folder` under its UIDs, unless it is there."""
    place = folder / safe_name(head.series)
    place.mkdir(exist_ok=True)
    path = place / f"{safe_name(head.instance)}.dcm"
    if not path.exists():
        path.write_bytes(content)


def safe_name(uid: str) -> str:
    """A UID as a file name; what is no UID, and could lead anywhere, becomes a hash."""
    return uid if re.fullmatch(r"[0-9][0-9.]{0,63}", uid) else hashlib.sha256(uid.encode()).hexdigest()[:32]


def dicom_files(paths: Iterable[Path]) -> list[Path]:
    """Every DICOM file among files and, recursively, folders; DICOMDIRs are left out.

    Raises:
        UsageError: A path is not there, a named file is not DICOM, or there is nothing to send.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += [each for each in sorted(path.rglob("*")) if each.is_file() and _is_dicom(each)]
        elif not path.exists():
            raise UsageError(f"'{path.name}' must be a file or a folder, found none; check the path")
        elif not _is_dicom(path):
            raise UsageError(f"'{path.name}' must be a DICOM file, it is not; leave it out")
        else:
            found.append(path)
    if not found:
        raise UsageError("input must hold DICOM files, got none; check the path")
    return found


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM" and path.name.upper() != "DICOMDIR"
