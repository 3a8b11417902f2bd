"""De-identification by the Basic Application Level Confidentiality Profile of DICOM PS3.15, annex E.

What happens to an attribute stands in `deidentify_actions.csv` (table E.1-1, edition 2026c): D dummy, Z empty or dummy,
X remove, U map the UID. A choice such as X/Z leaves the attribute valid whatever its type. What the table does not
list is kept, unless it is private, unknown to the dictionary, or a name or time of any kind: those are removed.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medseg.errors import InputRefused
from medseg.io.pseudonyms import Pseudonyms

PROFILE = "PS3.15 2026c Basic Application Confidentiality Profile"

_CODES = {  # PS3.16, context group 7050
    "113100": "Basic Application Confidentiality Profile",
    "113107": "Retain Longitudinal Temporal Information Modified Dates Option",
}
_REGISTERED = "1.2.840.10008."  # UIDs of the standard itself: SOP classes, transfer syntaxes, coding schemes
_STORAGE = _REGISTERED + "5.1.4.1.1."
_ULTRASOUND = (_STORAGE + "3.1", _STORAGE + "6.")
_SECONDARY_CAPTURE = re.compile(re.escape(_STORAGE) + r"7(\.|$)")
_PHOTOGRAPHS = _STORAGE + "77.1."
_DOCUMENTS = _STORAGE + "104."
_DIRECTORY = _REGISTERED + "1.3.10"
_CLASS_UIDS = re.compile("SOPClass|TransferSyntax|^CodingSchemeUID$|^Context|^MappingResourceUID$|^CreatorVersionUID$")
_TIMES = ("DA", "TM", "DT")
_BIRTH = {0x00100030, 0x00100032}  # no part of the course of an illness: never shifted, always emptied
_PSEUDONYMS = {  # replaced by a name of their own, the same one wherever the value is the same
    "AccessionNumber",
    "ClinicalTrialSubjectID",
    "ClinicalTrialSubjectReadingID",
    "DeviceSerialNumber",
    "PatientID",
    "StudyID",
}
_DUMMIES: dict[str, Any] = {
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    "AS": "000Y",
    "DS": "0",
    "IS": "0",
    "UR": "urn:removed",
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "REMOVED"),
    **dict.fromkeys(("OB", "OW", "UN"), b"\0\0"),
    **dict.fromkeys(("US", "SS", "UL", "SL", "UV", "SV", "AT"), 0),
    **dict.fromkeys(("FL", "FD"), 0.0),
}
# Sequences hold free content, so that a dummy is an empty one; references among images stay whole by mapped UIDs.
_ON_SEQUENCES = {"Z/D": "Z", "X/Z": "Z", "X/D": "X", "X/Z/D": "Z", "X/Z/U*": "C"}
_ON_VALUES = {"Z/D": "D", "X/Z": "Z", "X/D": "D", "X/Z/D": "D", "X/Z/U*": "X"}


class Deidentifier:
    """Takes from data sets what identifies a patient; data sets of one patient stay linked through the same key.

    Args:
        key: Secret, at least 16 bytes; the same key maps the same identifier to the same pseudonym.
        shift_dates: Keep intervals: every date of a patient moves by the same whole number of days into the past, times
            of day stay. Otherwise dates and times are removed, emptied, or a dummy where one is required.
    """

    def __init__(self, key: bytes, *, shift_dates: bool = False) -> None:
        self._names = Pseudonyms(key)
        self._shift_dates = shift_dates

    def __call__(self, dataset: FileDataset) -> None:
        """De-identify one data set in place, with its file meta information.

        Raises:
            InputRefused: An element cannot be read, or the file is a directory or a document.
        """
        _require_cleanable(dataset)
        identity = next(
            (text for name in ("PatientID", "PatientName", "StudyInstanceUID") if (text := _text(dataset, name))), ""
        )
        with quiet():
            self._clean(dataset, self._names.days(identity), identity)
            self._state(dataset)
            _write_meta(dataset)

    def _clean(self, dataset: Dataset, days: int, identity: str) -> None:
        for tag in list(dataset.keys()):
            action = _action(tag)
            if action == "X":
                del dataset[tag]
                continue
            element = _element(dataset, tag)
            if self._apply(element, action, days, identity):
                continue
            del dataset[tag]

    def _apply(self, element: DataElement, action: str, days: int, identity: str) -> bool:
        """Change one element; False where it has to go."""
        if element.VR == "SQ":
            return self._on_sequence(element, _ON_SEQUENCES.get(action, action), days, identity)
        if action == "U" or (element.VR == "UI" and action != "X"):
            self._map_uids(element)
            return True
        if action == "K":
            return element.VR not in ("PN", "UN", *_TIMES)
        if self._shift_dates and element.VR in _TIMES and element.tag not in _BIRTH:
            if element.VR != "TM":
                element.value = [_shifted(str(value), days) for value in _values(element)]
            return True
        action = _ON_VALUES.get(action, action)
        if element.keyword == "PatientName":
            element.value = self._names.short(identity)
        elif element.keyword in _PSEUDONYMS and action in ("D", "Z") and not element.is_empty:
            element.value = [self._names.short(str(value)) for value in _values(element)]
        elif action == "Z":
            element.clear()
        elif action == "D":
            element.value = _DUMMIES[element.VR]
        return action != "X"

    def _on_sequence(self, element: DataElement, action: str, days: int, identity: str) -> bool:
        if action == "D":
            element.value = Sequence([Dataset()])
        elif action == "Z":
            element.value = Sequence()
        elif action in ("K", "C", "U"):
            for item in element.value:
                self._clean(item, days, identity)
        return action != "X"

    def _map_uids(self, element: DataElement) -> None:
        if _CLASS_UIDS.search(element.keyword):
            return
        values = [str(value) for value in _values(element)]
        element.value = [uid if uid.startswith(_REGISTERED) else self._names.uid(uid) for uid in values if uid]

    def _state(self, dataset: Dataset) -> None:
        """Say in the data set what was done to it."""
        dataset.PatientIdentityRemoved = "YES"
        dataset.DeidentificationMethod = ["medseg", PROFILE]
        dataset.DeidentificationMethodCodeSequence = [
            _code(value) for value in ("113100", "113107")[: 1 + self._shift_dates]
        ]
        dataset.LongitudinalTemporalInformationModified = "MODIFIED" if self._shift_dates else "REMOVED"


def pixel_risk(dataset: Dataset) -> str | None:
    """Why the picture itself may show a name, or None; pixels are never changed here."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return None
    if _text(dataset, "BurnedInAnnotation") == "YES":
        return "burned-in annotation, as the file itself says"
    sop_class, modality = _text(dataset, "SOPClassUID"), _text(dataset, "Modality")
    if modality in ("US", "IVUS") or sop_class.startswith(_ULTRASOUND):
        return "ultrasound, where names are drawn into the picture"
    kinds = [str(kind).upper() for kind in dataset.get("ImageType") or ()]
    secondary = _SECONDARY_CAPTURE.match(sop_class) or "ConversionType" in dataset
    if secondary or modality in ("SC", "OT", "DOC", "HC", "RG") or any("SCREEN" in kind for kind in kinds):
        return "secondary capture, which may be a screen or a scanned page"
    if modality in ("XC", "GM", "ES") or sop_class.startswith(_PHOTOGRAPHS):
        return "photograph or endoscopy, which may show a face or text"
    if any((0x6000 + 2 * n, 0x0102) in dataset and dataset[0x6000 + 2 * n, 0x0102].value for n in range(16)):
        return "overlay hidden in unused bits of the pixels"
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of pydicom: they quote values, and values are patient data."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _require_cleanable(dataset: FileDataset) -> None:
    sop_class = _text(dataset, "SOPClassUID")
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    if str(meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY or "DirectoryRecordSequence" in dataset:
        raise InputRefused("expected an image, got a DICOMDIR, which lists patients; leave it out")
    if sop_class.startswith(_DOCUMENTS) or "EncapsulatedDocument" in dataset:
        raise InputRefused(
            "expected an image, got an encapsulated document, whose pages cannot be cleaned; leave it out"
        )
    if not sop_class or not _text(dataset, "SOPInstanceUID"):
        raise InputRefused("expected a DICOM object with SOP class and instance UID, got none; leave it out")


def _action(tag: BaseTag) -> str:
    """The action of the table; X also for what nobody can judge, K for what the table does not list."""
    if tag.is_private or tag.element == 0:
        return "X"
    table = _table()
    listed = table.get(f"{tag:08x}")
    if listed is None and tag.group >> 8 in (0x50, 0x60):
        listed = table.get(f"{tag.group >> 8:02x}xx{tag.element:04x}") or table.get(f"{tag.group >> 8:02x}xxxxxx")
    return listed or ("K" if dictionary_has_tag(tag) or tag.group >> 8 == 0x60 else "X")


@cache
def _table() -> dict[str, str]:
    text = (files("medseg.io") / "deidentify_actions.csv").read_text(encoding="utf-8")
    return {row["tag"]: row["action"] for row in csv.DictReader(text.splitlines())}


def _element(dataset: Dataset, tag: BaseTag) -> DataElement:
    try:
        return dataset[tag]
    except Exception:  # the text of the error quotes the value
        name = keyword_for_tag(tag) or "element"
        raise InputRefused(
            f"{name} ({tag.group:04x},{tag.element:04x}) must be readable, it is damaged; leave the file out"
        ) from None


def _text(dataset: Dataset, name: str) -> str:
    try:
        return str(dataset.get(name) or "").strip()
    except Exception:  # damaged values are told of when their element is met
        return ""


def _values(element: DataElement) -> list[Any]:
    if element.is_empty:
        return []
    return list(element.value) if element.VM > 1 else [element.value]


def _shifted(text: str, days: int) -> str:
    """A DA or DT value some days earlier; what is no full date becomes empty."""
    digits = text.replace(".", "", 2) if re.fullmatch(r"\d{4}\.\d\d\.\d\d", text) else text
    try:
        day = date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])) - timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return f"{day.year:04d}{day.month:02d}{day.day:02d}{digits[8:]}"


def _code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", _CODES[value]
    return item


def _write_meta(dataset: FileDataset) -> None:
    """File meta information of our own: the old one names applications and the old instance, the preamble anything."""
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if not syntax:
        syntax = ImplicitVRLittleEndian if dataset.original_encoding[0] else ExplicitVRLittleEndian
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta = meta
    dataset.preamble = b"\0" * 128
