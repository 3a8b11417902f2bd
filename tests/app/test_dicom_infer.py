"""`medseg infer` from a DICOM folder to DICOM results: every object of the right patient, none of it in a message."""

import json
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest

from dicom_cases import PRIVATE
from medseg.errors import UsageError
from medseg.io import read
from medseg_pipelines.formats import require_for_task
from tiny_model import head_series

from .conftest import Call


def test_every_object_of_a_segmentation(call: Call, model: Path, tmp_path: Path) -> None:
    folder = head_series(tmp_path / "scan.1")
    answer = call("infer", folder, "-m", model, "--format", "nifti,seg,rtstruct,sr,sc", "--json", "-q")
    assert answer.exit_code == 0, answer.stderr
    case = json.loads(answer.stdout)["cases"][0]
    result = tmp_path / "scan.1_tiny"
    names = {Path(path).name for path in case["dicom"]}
    assert names == {"segmentation.dcm", "structures.dcm", "report.dcm", "picture.dcm"}
    labels = read(result / "labels.nii.gz", kind="labels")
    volume = read(folder)
    assert labels.grid.equals(volume.grid)
    back = hd.seg.segread(result / "dicom" / "segmentation.dcm")
    series = volume.source.series
    found = back.get_pixels_by_source_instance([p.instance.uid for p in series.slices], combine_segments=True)
    assert np.array_equal(found > 0, series.to_slices(labels.voxels) > 0)
    for path in case["dicom"]:
        data = pydicom.dcmread(path)
        assert data.PatientID == "PAT-4711"
        assert "not for diagnosis" in data.SeriesDescription
        assert data.SeriesDescription.startswith("UNTRAINED"), "the tiny model has random weights"
    said = answer.stdout + answer.stderr + (result / "manifest.json").read_text()
    assert not [word for word in PRIVATE if word in said]
    manifest = json.loads((result / "manifest.json").read_text())
    assert manifest["input"]["series"] == series.uid
    assert "dicom/segmentation.dcm" in manifest["files"]
    replayed = call("replay", result / "manifest.json", "-m", model, "--json")
    assert json.loads(replayed.stdout)["identical"] is True, replayed.stderr


def test_a_tilted_series_is_corrected_and_its_results_lie_on_its_slices(
    call: Call, model: Path, tmp_path: Path
) -> None:
    folder = head_series(tmp_path / "scan", shear=(0.0, 1.0))
    refused = call("infer", folder, "-m", model, "--format", "seg")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "gantry tilt of 14.04 degrees" in refused.stderr
    answer = call("infer", folder, "-m", model, "--format", "seg", "--correct-geometry", "--json", "-q")
    assert answer.exit_code == 0, answer.stderr
    manifest = json.loads((tmp_path / "scan_tiny" / "manifest.json").read_text())
    assert manifest["input"]["correct_geometry"] is True
    assert any("corrected: " in warning for warning in manifest["warnings"])
    back = pydicom.dcmread(tmp_path / "scan_tiny" / "dicom" / "segmentation.dcm")
    first = pydicom.dcmread(next(folder.iterdir()))
    assert (back.Rows, back.Columns) == (first.Rows, first.Columns)


def test_wrong_formats_are_refused_before_anything_is_read(call: Call, model: Path, scan: Path) -> None:
    assert "got 'bmp'" in call("infer", scan, "-m", model, "--format", "bmp").stderr
    assert "got 'dicom'" in call("infer", scan, "-m", model, "--format", "dicom").stderr
    answer = call("infer", scan, "-m", model, "--format", "seg")
    assert answer.exit_code == 2
    assert "need a DICOM input" in answer.stderr
    assert not list(scan.parent.glob("*_tiny"))


@pytest.mark.parametrize("task", ["segmentation", "prompting", "support-segmentation"])
def test_whatever_gives_labels_gives_objects_of_labels(task: str) -> None:
    require_for_task(("seg", "rtstruct", "sr", "sc"), task)
    with pytest.raises(UsageError, match="got 'dicom'"):
        require_for_task(("dicom",), task)
