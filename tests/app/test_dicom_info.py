"""`medseg info` on DICOM: every series with its number, and nothing of the patient."""

import json
from pathlib import Path

from dicom_cases import PRIVATE, Case, noise

from .conftest import Call


def test_one_series(call: Call, tmp_path: Path) -> None:
    folder = Case().write(tmp_path / "scan")
    answer = call("info", folder)
    assert answer.exit_code == 0
    for line in ("series       CT, 5 images in 5 files", "grid         6 x 7 x 5 voxels", "0.9 x 0.7 x 2.5 mm"):
        assert line in answer.stdout
    assert not [word for word in PRIVATE if word in answer.stdout + answer.stderr]
    found = json.loads(call("info", folder, "--json").stdout)
    assert (found["format"], found["readable"], found["orientation"]) == ("DICOM", True, "LPS")
    assert [series["modality"] for series in found["series"]] == ["CT"]
    assert not [word for word in PRIVATE if word in json.dumps(found)]


def test_several_series_and_the_choice_of_one(call: Call, tmp_path: Path) -> None:
    first, second = Case(), Case(pixels=noise((8, 7, 6)))
    first.write(tmp_path / "scan")
    second.write(tmp_path / "scan", start=40)
    answer = call("info", tmp_path / "scan")
    assert answer.exit_code == 3
    assert first.series in answer.stdout
    assert second.series in answer.stdout
    assert "choose one with --series" in answer.stdout
    refused = call("infer", tmp_path / "scan", "-m", "brain-structures")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "expected one series, got 2 (1: CT, " in refused.stderr
    chosen = json.loads(call("info", tmp_path / "scan", "--series", second.series, "--json").stdout)
    assert (chosen["readable"], chosen["shape"]) == (True, [6, 7, 8])
    assert call("info", tmp_path / "scan", "--series", "7").exit_code == 2


def test_a_tilt_is_explained_and_its_correction_shown(call: Call, tmp_path: Path) -> None:
    folder = Case(shear=(0.0, 0.8)).write(tmp_path / "scan")
    answer = call("info", folder)
    assert answer.exit_code == 3
    assert "gantry tilt of 17.74 degrees: each slice is shifted by 0.800 mm, instance 5 by 3.200 mm" in answer.stdout
    corrected = call("info", folder, "--correct-geometry")
    assert corrected.exit_code == 0
    assert "grid         6 x 12 x 5 voxels" in corrected.stdout
