"""`medseg dicom deidentify`: whole folders, keys, refusals; and nothing of the patient in any message."""

import json
import re
from pathlib import Path

import pydicom
import pytest

from dicom_made_up import NAME, save_slice

from .conftest import Call


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Three slices of a made-up patient, a DICOMDIR and a text beside them."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for number in range(3):
        _slice(folder / "sub" / f"{number}.dcm", number)
    (folder / "notes.txt").write_text(NAME)
    (folder / "DICOMDIR").write_text(NAME)
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a key of ours would lie."""
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MEDSEG_DEIDENTIFY_KEY", raising=False)
    return tmp_path / "home"


def _slice(path: Path, number: int, **attributes: object) -> Path:
    return save_slice(path, SOPInstanceUID=f"1.2.3.{number}", **attributes)


def test_a_folder_comes_out_clean(call: Call, series: Path, tmp_path: Path, home: Path) -> None:
    answer = call("dicom", "deidentify", series, "-o", tmp_path / "out", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert (told := json.loads(answer.stdout))["written"] == 3
    assert told["not_dicom"] == 1
    key = home / "deidentify.key"
    assert str(key) in answer.stderr
    assert key.stat().st_mode & 0o777 == 0o600
    files = sorted((tmp_path / "out").rglob("*.*"))
    written = [path for path in files if path.suffix == ".dcm"]
    assert len(written) == 3
    for path in written:
        assert not re.search(rb"Canary|77-07|20240110", path.read_bytes())
        dataset = pydicom.dcmread(path)
        assert (path.stem, path.parent.name) == (dataset.SOPInstanceUID, dataset.SeriesInstanceUID)
    again = call("dicom", "deidentify", series / "sub" / "0.dcm", "-o", tmp_path / "again")
    assert "as in earlier runs" in again.stderr
    assert {path.name for path in (tmp_path / "again").rglob("*.dcm")} < {path.name for path in written}


def test_the_key_can_be_given(call: Call, series: Path, tmp_path: Path, home: Path) -> None:
    key = tmp_path / "my.key"
    key.write_text("a key of my own, long enough")
    open_to_all = call("dicom", "deidentify", series, "-o", tmp_path / "a", "--key", key)
    assert (open_to_all.exit_code, "chmod 600" in open_to_all.stderr) == (2, True)
    key.chmod(0o600)
    assert call("dicom", "deidentify", series, "-o", tmp_path / "a", "--key", key).exit_code == 0
    assert not home.exists()


def test_the_key_can_come_from_the_environment(
    call: Call, series: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_DEIDENTIFY_KEY", "short")
    assert call("dicom", "deidentify", series, "-o", tmp_path / "a").exit_code == 2
    monkeypatch.setenv("MEDSEG_DEIDENTIFY_KEY", "a key of my own, long enough")
    assert call("dicom", "deidentify", series, "-o", tmp_path / "a", "--dates", "shift").exit_code == 0
    assert not home.exists()


def test_pixels_that_may_show_a_name_need_a_word(call: Call, series: Path, tmp_path: Path) -> None:
    _slice(series / "scanned.dcm", 7, Modality="OT")
    refused = call("dicom", "deidentify", series, "-o", tmp_path / "out")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "secondary capture" in refused.stderr
    assert not (tmp_path / "out").exists()
    skipped = call("dicom", "deidentify", series, "-o", tmp_path / "out", "--burned-in", "skip")
    assert (skipped.exit_code, "left out  1 files" in skipped.stdout) == (0, True)
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 3
    kept = call("dicom", "deidentify", series, "-o", tmp_path / "kept", "--burned-in", "keep")
    assert (kept.exit_code, "kept      1 files" in kept.stdout) == (0, True)
    assert len(list((tmp_path / "kept").rglob("*.dcm"))) == 4


@pytest.mark.parametrize(
    ("change", "code", "word"),
    [
        ("twice", 3, "twice"),
        ("document", 3, "document"),
        ("nothing", 3, "none"),
        ("inside", 2, "outside"),
        ("there", 2, "already there"),
        ("absent", 2, "found none"),
        ("dates", 2, "--dates"),
    ],
)
def test_refusals_write_nothing(call: Call, series: Path, tmp_path: Path, change: str, code: int, word: str) -> None:
    out, options = tmp_path / "out", []
    if change == "twice":
        _slice(series / "copy.dcm", 0)
    elif change == "document":
        _slice(series / "paper.dcm", 8, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1")
    elif change == "nothing":
        series = tmp_path / "empty"
        series.mkdir()
    elif change == "inside":
        out = series / "out"
    elif change == "there":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    elif change == "absent":
        series = tmp_path / "nowhere"
    else:
        options = ["--dates", "keep"]
    before = sorted(tmp_path.rglob("*.*"))
    answer = call("dicom", "deidentify", series, "-o", out, *options)
    assert (answer.exit_code, answer.stdout) == (code, "")
    assert word in answer.stderr
    assert "Canary" not in answer.stderr
    assert [path for path in sorted(tmp_path.rglob("*.*")) if path.suffix != ".key"] == before


def test_real_files_of_every_kind(call: Call, shared_data: Path, tmp_path: Path) -> None:
    """The data pack: each file comes out clean or is refused in one line; pixels stay bit for bit."""
    sources = [path for path in sorted((shared_data / "dicom").rglob("*")) if path.is_file()][::40]
    sources += sorted((shared_data / "bad").glob("*.dcm")) + sorted((shared_data / "dicom" / "single").glob("*"))
    written = 0
    for number, source in enumerate(sources):
        answer = call("dicom", "deidentify", source, "-o", tmp_path / str(number), "--burned-in", "keep", "-q")
        assert answer.exit_code in (0, 3), (source.name, answer.stderr)
        assert answer.stderr.count("\n") <= 2, answer.stderr
        assert "bug" not in answer.stderr, (source.name, answer.stderr)
        if answer.exit_code == 0:
            written += 1
            (path,) = (tmp_path / str(number)).rglob("*.dcm")
            before, after = pydicom.dcmread(source, force=True), pydicom.dcmread(path)
            pixels = before.get("PixelData") or b""
            assert (after.get("PixelData") or b"") in (pixels, pixels + b"\0")  # a cut file may end on an odd byte
    assert written > 10
