"""A corrected label map: measured again, told apart from the model's own, refused where it does not fit."""

import json
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

import page_worker
from medseg import io
from medseg.errors import InputRefused
from medseg.volume import Volume
from medseg_app.jobs.worker import answer
from medseg_app.server.report import report
from medseg_pipelines.pacs.sending import patient_of, require_trained
from tiny_model import head, head_series


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a server with one upload and one result."""
    home = tmp_path_factory.mktemp("home")
    (home / "upload").mkdir()
    io.write(head(), home / "upload" / "image000000.nii.gz")
    return _segmented(home)


def _segmented(home: Path) -> Path:
    """Run the model that these tests stand in for on the upload, as the first job."""
    (home / "jobs" / "first").mkdir(parents=True)
    page_worker.PARTS = 0
    task = _task(home, "first", {"model": "brain-structures", "confirmed": False})
    page_worker.run({**task, "folder": home / "jobs" / "first", "upload": home / "upload"}, lambda event: None)
    return home


def _task(home: Path, job: str, request: dict[str, Any]) -> dict[str, Any]:
    (home / "jobs" / job).mkdir(exist_ok=True)
    folders = {"folder": str(home / "jobs" / job), "upload": str(home / "upload")}
    return {"kind": "correct", "request": request, "memory_limit": 1 << 30, **folders}


def _correct(home: Path, job: str, drawing: Volume, of: str = "first") -> tuple[str, str]:
    io.write(drawing, home / "upload" / f".drawing-{job}.nii")
    return answer(_task(home, job, {"of": of, "drawing": f".drawing-{job}.nii"}), lambda event: None)


def test_a_correction_is_a_result_of_its_own(segmented: Path) -> None:
    first = segmented / "jobs" / "first" / "result"
    before = io.read(first / "labels.nii.gz", kind="labels")
    voxels = before.voxels.copy()
    voxels[20:24, 20:24, 20:24] = 15
    changed = int((voxels != before.voxels).sum())
    assert _correct(segmented, "second", before.with_voxels(voxels)) == ("done", "")
    folder = segmented / "jobs" / "second" / "result"
    assert np.array_equal(io.read(folder / "labels.nii.gz", kind="labels").voxels, voxels)
    old, new = (json.loads((one / "manifest.json").read_text()) for one in (first, folder))
    assert new["correction"] == {
        "of_sha256": old["output"]["voxels_sha256"],
        "changed_voxels": changed,
        "by": "hand",
    }
    assert new["output"]["voxels_sha256"] != old["output"]["voxels_sha256"]
    assert new["warnings"][-1] == f"corrected by hand: {changed} voxels changed"
    stem = next(s for s in json.loads((folder / "statistics.json").read_text())["structures"] if s["id"] == 15)
    assert stem["voxels"] == int((voxels == 15).sum())
    assert f"Corrected by hand: {changed} voxels" in report(folder)

    voxels[20, 20, 20] = 0
    assert _correct(segmented, "third", before.with_voxels(voxels), of="second") == ("done", "")
    third = json.loads((segmented / "jobs" / "third" / "result" / "manifest.json").read_text())["correction"]
    assert (third["of_sha256"], third["changed_voxels"]) == (old["output"]["voxels_sha256"], changed + 1)


def test_rejected_structures_leave_the_label_map_and_the_result_says_so(segmented: Path) -> None:
    before = io.read(segmented / "jobs" / "first" / "result" / "labels.nii.gz", kind="labels")

    def reject(job: str, of: str, ids: list[int], comment: str = "") -> tuple[str, str]:
        return answer(_task(segmented, job, {"of": of, "rejected": ids, "comment": comment}), lambda event: None)

    assert reject("less", "first", [1, 2], "leaks into the skull") == ("done", "")
    folder = segmented / "jobs" / "less" / "result"
    after = io.read(folder / "labels.nii.gz", kind="labels").voxels
    assert np.array_equal(after, np.where(np.isin(before.voxels, [1, 2]), 0, before.voxels))
    told = json.loads((folder / "manifest.json").read_text())["correction"]
    names = ["left cerebral white matter", "right cerebral white matter"]
    assert [each["name"] for each in told["rejected"]] == names
    assert (told["comment"], 3 in told["accepted"], 1 in told["accepted"]) == ("leaks into the skull", True, False)
    assert told["changed_voxels"] == int(np.isin(before.voxels, [1, 2]).sum())
    for file, part in (("labels.json", "labels"), ("statistics.json", "structures")):
        assert not {1, 2} & {each["id"] for each in json.loads((folder / file).read_text())[part]}
    assert "Rejected by hand and left out: left cerebral white matter, right" in report(folder)
    assert reject("lesser", "less", [3]) == ("done", "")
    told = json.loads((segmented / "jobs" / "lesser" / "result" / "manifest.json").read_text())["correction"]
    assert [each["id"] for each in told["rejected"]] == [1, 2, 3], "those of before are still told"
    for ids, words in (([1], "others were named"), (list(range(3, 18)), "others were named")):
        state, reason = reject(f"wrong{len(ids)}", "less" if ids == [1] else "lesser", ids)
        assert (state, words in reason) == ("refused", True), reason
    left = [each["id"] for each in json.loads((folder / "labels.json").read_text())["labels"]]
    assert "at least one structure must be accepted" in reject("nothing", "less", left)[1]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a DICOM series."""
    home = tmp_path_factory.mktemp("scanned")
    head_series(home / "upload")
    return _segmented(home)


def test_a_correction_of_dicom_images_goes_home_as_a_segmentation_object(scanned: Path) -> None:
    before = io.read(scanned / "jobs" / "first" / "result" / "labels.nii.gz", kind="labels")
    voxels = before.voxels.copy()
    voxels[20:24, 20:24, 20:24] = 15
    assert _correct(scanned, "painted", before.with_voxels(voxels)) == ("done", "")
    request = {"of": "painted", "rejected": [1], "comment": "", "formats": ["sr", "rtstruct"]}
    assert answer(_task(scanned, "judged", request), lambda event: None) == ("done", "")
    series = io.read(scanned / "upload").source.series
    first = json.loads((scanned / "jobs" / "first" / "result" / "manifest.json").read_text())
    for job, expected in (("painted", voxels), ("judged", np.where(voxels == 1, 0, voxels))):
        folder = scanned / "jobs" / job / "result"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert "dicom/segmentation.dcm" in manifest["files"]
        back = hd.seg.segread(folder / "dicom" / "segmentation.dcm")
        uids = [plane.instance.uid for plane in series.slices]
        found = back.get_pixels_by_source_instance(uids, combine_segments=True)
        assert np.array_equal(found > 0, series.to_slices(expected) > 0)
        assert back.SeriesDescription == "Segmentation, corrected (not for diagnosis) brain-structures"
        assert back.ContentDescription.startswith("Manually corrected. Research use only.")
        for segment in back.SegmentSequence:
            assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
            told = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
            assert first["output"]["voxels_sha256"] in told
            assert str(manifest["correction"]["changed_voxels"]) in told
        objects = sorted((folder / "dicom").iterdir())
        require_trained(objects)
        assert "PAT-4711" in patient_of(objects[0])
    assert {path.name for path in objects} == {"segmentation.dcm", "report.dcm", "structures.dcm"}
    structures = pydicom.dcmread(objects[-1]).StructureSetROISequence
    assert {region.ROIGenerationAlgorithm for region in structures} == {"SEMIAUTOMATIC"}


def test_headers_that_allow_no_object_do_not_lose_what_was_painted(
    scanned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InputRefused("images must carry UIDs, some do not")

    monkeypatch.setattr("medseg_pipelines.dicom_out.writing.check_source", refuse)
    before = io.read(scanned / "jobs" / "first" / "result" / "labels.nii.gz", kind="labels")
    assert _correct(scanned, "bare", before.with_voxels(np.roll(before.voxels, 1, 0))) == ("done", "")
    folder = scanned / "jobs" / "bare" / "result"
    assert not (folder / "dicom").exists()
    assert "no DICOM objects" in json.loads((folder / "manifest.json").read_text())["warnings"][-1]


def test_what_does_not_fit_is_refused(segmented: Path) -> None:
    labels = io.read(segmented / "jobs" / "first" / "result" / "labels.nii.gz", kind="labels")
    shifted = labels.affine.copy()
    shifted[0, 3] += 1
    wrong = {
        "same": (labels, "changes nothing"),
        "moved": (Volume(labels.voxels, shifted, kind="labels"), "another"),
        "cropped": (Volume(labels.voxels[:-1], labels.affine, kind="labels"), "another"),
        "unknown": (labels.with_voxels(np.where(labels.voxels == 1, 99, labels.voxels).astype(np.uint8)), "got 99"),
    }
    for name, (drawing, words) in wrong.items():
        state, reason = _correct(segmented, name, drawing)
        assert state == "refused"
        assert words in reason
        assert not (segmented / "jobs" / name / "result").exists()
