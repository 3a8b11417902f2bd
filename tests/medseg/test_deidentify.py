"""De-identification: nothing that identifies stays, whatever it is nested in, and links between files survive."""

import csv
import re
from copy import deepcopy
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from dicognito.anonymizer import Anonymizer
from pydicom import Dataset
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import FileDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, EncapsulatedPDFStorage, UltrasoundImageStorage
from pydicom.valuerep import DA

from dicom_made_up import made_up_slice
from medseg.errors import InputRefused, UsageError
from medseg.io.deidentify import Deidentifier, pixel_risk
from medseg.io.pseudonyms import Pseudonyms, create_key, read_key

KEY = b"a key for tests, 16 bytes or more"
ROWS = list(csv.DictReader((files("medseg.io") / "deidentify_actions.csv").read_text().splitlines()))
# A value per VR that can be found again in the bytes of a file.
CANARIES: dict[str, Any] = {
    "DA": "19770707",
    "TM": "070707",
    "DT": "19770707070707",
    "AS": "077Y",
    "DS": "77.7707",
    "IS": "7707707",
    "UI": "1.2.3.7707",
    "UR": "http://canary/7707",
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "CANARY 7707"),
    **dict.fromkeys(("OB", "OW", "UN"), b"CANARY7707"),
    **dict.fromkeys(("US", "SS", "UL", "SL"), 7707),
    **dict.fromkeys(("FL", "FD"), 7707.5),
}
_NUMBERS = ("US", "SS", "UL", "SL", "FL", "FD", "AT")


def ct(**attributes: object) -> FileDataset:
    """A CT slice whose file meta information names things too."""
    dataset = made_up_slice(**attributes)
    dataset.file_meta.SourceApplicationEntityTitle = "CANARY_AE"
    dataset.preamble = b"CANARY" + b"\0" * 122
    return dataset


def stored(dataset: FileDataset) -> bytes:
    """The file as bytes."""
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def reread(dataset: FileDataset) -> FileDataset:
    """The data set as it comes out of its file."""
    return pydicom.dcmread(BytesIO(stored(dataset)))


def _plant(dataset: Dataset, row: dict[str, str]) -> bool:
    """Put a canary under the tag of a row; False where the tag stands for no single element."""
    tag = Tag(int(row["tag"].replace("x", "0"), 16))
    if tag in dataset or row["keyword"] == "EncapsulatedDocument":  # a file with one is refused
        return False
    vr = dictionary_VR(tag).split(" or ")[-1] if keyword_for_tag(tag) else "LO"
    if vr == "SQ":
        item = Dataset()
        item.PatientComments = item.ImageComments = "CANARY 7707"
        item.RetrieveURL = "http://canary/7707"
        item.SegmentLabel = "CANARY 7707"  # kept by the table: only a removed sequence takes it along
        dataset.add_new(tag, vr, [item] if row["action"] != "X/Z/U*" else [])
    else:
        dataset.add_new(tag, vr, CANARIES[vr])
    return True


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
@pytest.mark.parametrize("shift", [False, True], ids=["removed", "shifted"])
def test_no_listed_value_survives(nested: bool, shift: bool) -> None:
    dataset, holder = ct(), Dataset()
    planted = [row for row in ROWS if row["tag"][:4] >= "0008" and _plant(holder if nested else dataset, row)]
    assert len(planted) > 630
    if nested:
        dataset.SharedFunctionalGroupsSequence = [Dataset()]
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [holder]
    Deidentifier(KEY, shift_dates=shift)(dataset)
    raw = stored(dataset).replace(b"070707", b"" if shift else b"070707")  # times of day stay where dates move
    assert not re.search(rb"(?i)canary|7707|070707|077Y|77-07", raw)
    cleaned = reread(dataset)
    left = cleaned.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0] if nested else cleaned
    assert not [e.keyword for e in left if e.VR in _NUMBERS and e.value in (7707, 7707.5)]
    assert cleaned.PixelData == bytes(range(8))
    assert (cleaned.SliceThickness, cleaned.Rows, list(cleaned.ImageType)) == (2.5, 2, ["ORIGINAL", "PRIMARY", "AXIAL"])


def test_private_unknown_and_unlisted_elements_go() -> None:
    dataset = ct()
    dataset.private_block(0x0029, "CANARY MAKER", create=True).add_new(1, "LO", "CANARY 7707")
    dataset.add_new(0x00081FFF, "LO", "CANARY 7707")  # no such element
    dataset.add_new(0x00144076, "DA", "19770707")  # a date that the table does not know
    dataset.add_new(0x60000022, "LO", "kept")  # overlay description: known, not listed
    dataset.add_new(0x60023000, "OW", b"CANARY")
    dataset.SourceImageSequence = [Dataset()]
    dataset.SourceImageSequence[0].add_new(0x00091001, "LO", "CANARY")
    Deidentifier(KEY)(dataset)
    assert b"CANARY" not in stored(dataset)
    assert b"19770707" not in stored(dataset)
    assert dataset[0x60000022].value == "kept"


def test_links_between_files_survive() -> None:
    first, second, other = ct(), ct(SOPInstanceUID="1.2.3.44"), ct(PatientID="88")
    reference = Dataset()
    reference.ReferencedSOPInstanceUID, reference.ReferencedSOPClassUID = "1.2.3.4", CTImageStorage
    second.SourceImageSequence = [reference]
    for dataset in (first, second, other):
        Deidentifier(KEY)(dataset)
    assert second.SourceImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert second.SourceImageSequence[0].ReferencedSOPClassUID == CTImageStorage
    assert first.FrameOfReferenceUID == second.FrameOfReferenceUID
    assert first.PatientID == second.PatientID == second.PatientName != other.PatientID
    assert first.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID != second.SOPInstanceUID
    assert first.file_meta.get("SourceApplicationEntityTitle") is None
    with_other_key = ct()
    Deidentifier(b"another key of enough bytes")(with_other_key)
    assert with_other_key.PatientID != first.PatientID
    assert with_other_key.SOPInstanceUID != first.SOPInstanceUID


def test_dates_are_removed_or_moved_together() -> None:
    plain, moved, later = ct(), ct(AcquisitionDateTime="20240111101112.5+0100"), ct(StudyDate="20250110")
    Deidentifier(KEY)(plain)
    assert (plain.StudyDate, plain.SeriesDate, plain.PatientBirthDate) == ("", "19000101", "")
    assert plain.LongitudinalTemporalInformationModified == "REMOVED"
    assert [code.CodeValue for code in plain.DeidentificationMethodCodeSequence] == ["113100"]
    for dataset in (moved, later):
        Deidentifier(KEY, shift_dates=True)(dataset)
    assert 1 <= (_day("20240110") - _day(moved.StudyDate)).days <= 3650
    assert _day(moved.SeriesDate) - _day(moved.StudyDate) == _day("20240111") - _day("20240110")
    assert _day(later.StudyDate) - _day(moved.StudyDate) == _day("20250110") - _day("20240110")
    assert moved.AcquisitionDateTime == moved.SeriesDate + "101112.5+0100"
    assert moved.PatientBirthDate == ""
    assert [code.CodeValue for code in moved.DeidentificationMethodCodeSequence] == ["113100", "113107"]


@pytest.mark.parametrize("text", ["2024", "202401", "20241399", "soon"])
def test_a_date_that_is_none_is_not_kept(text: str) -> None:
    dataset = ct()
    dataset.add_new("AcquisitionDateTime", "DT", text)
    Deidentifier(KEY, shift_dates=True)(dataset)
    assert dataset.AcquisitionDateTime == ""


def test_agrees_with_dicognito(shared_data: Path) -> None:
    """Whatever the other library changes or removes is changed or removed here too."""
    path = shared_data / "bad" / "identity_tags_made_up.dcm"
    before, ours, theirs = (pydicom.dcmread(path) for _ in range(3))
    Deidentifier(KEY)(ours)
    Anonymizer(seed="test").anonymize(theirs)
    touched = _changed(before, theirs)
    assert len(touched) > 10
    assert touched - _changed(before, ours) == set()
    more = _changed(before, ours) - touched
    assert {"PatientBirthDate", "PatientComments"} & (more | touched)


def test_dicognito_touches_nothing_that_stays_here() -> None:
    """The same on a data set that holds every listed element, made by hand."""
    before = ct()
    for row in ROWS:
        if "0008" <= row["tag"] < "50" and keyword_for_tag(row["tag"]) and dictionary_VR(row["tag"]) != "SQ":
            _plant(before, row)
    ours, theirs = deepcopy(before), deepcopy(before)
    Deidentifier(KEY)(ours)
    Anonymizer(seed="test").anonymize(theirs)
    assert len(_changed(before, theirs)) > 200
    assert _changed(before, theirs) - _changed(before, ours) == set()


def _changed(before: Dataset, after: Dataset) -> set[str]:
    return {e.keyword for e in before if not e.tag.is_private and after.get(e.tag, None) != e and not e.is_empty}


def _day(text: str) -> Any:
    return DA(text)


def test_damaged_elements_and_documents_are_refused() -> None:
    with pytest.raises(InputRefused, match="document") as refusal:
        Deidentifier(KEY)(ct(SOPClassUID=EncapsulatedPDFStorage))
    assert "Canary" not in str(refusal.value)
    with pytest.raises(InputRefused, match="none"):
        Deidentifier(KEY)(ct(SOPInstanceUID=""))


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ({}, None),
        ({"BurnedInAnnotation": "NO"}, None),
        ({"BurnedInAnnotation": "YES"}, "burned-in"),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, "ultrasound"),
        ({"SOPClassUID": UltrasoundImageStorage}, "ultrasound"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "secondary"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.2"}, "secondary"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, "photograph"),
        ({"ConversionType": "WSD"}, "secondary"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "secondary"),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, None),
    ],
    ids=str,
)
def test_pixels_that_may_show_a_name(attributes: dict[str, object], word: str | None) -> None:
    found = pixel_risk(ct(**attributes))
    assert found is None if word is None else found is not None and word in found


def test_an_overlay_within_the_pixels_is_found() -> None:
    dataset = ct()
    dataset.add_new(0x60000102, "US", 12)
    assert "overlay" in (pixel_risk(dataset) or "")


def test_pseudonyms_fit_their_elements() -> None:
    names = Pseudonyms(KEY)
    assert re.fullmatch(r"2\.25\.(0|[1-9]\d{0,38})", names.uid("1.2.3"))
    assert len(names.short("7")) == 16
    assert names.short("7 ") == names.short("7") != names.short("8")
    assert len({names.days(str(n)) for n in range(200)}) > 150
    with pytest.raises(ValueError, match="16 bytes"):
        Pseudonyms(b"short")


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "my.key"
    key = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path) == key
    with pytest.raises(FileExistsError):
        create_key(path)
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        read_key(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(UsageError, match="16 bytes"):
        read_key(path)
