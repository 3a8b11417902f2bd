"""The whole way against a real archive: store, query, retrieve, segment, send back, read again, compare voxels."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from pydicom.uid import MRImageStorage, generate_uid

from dicom_made_up import NAME, save_slice
from medseg.weights import sha256_of
from medseg_pipelines.pacs.address import Access, parse_address
from medseg_pipelines.pacs.archive import Archive, dicom_files, held, retrieve, search
from medseg_pipelines.pacs.connect import open_archive
from medseg_pipelines.pacs.listener import QUEUE_FILE
from medseg_pipelines.pacs.queue import Queue
from orthanc import PASSWORD, USER, Orthanc, free_port
from tiny_model import build_tiny_model, head

pytestmark = pytest.mark.pacs

STUDY = "1.2.826.0.1.77"
_PATIENCE = 900.0  # seconds; one segmentation starts torch, and machines are slow at times


@pytest.fixture(scope="module")
def port() -> int:
    """Where the archive would send to, if asked to move."""
    return free_port()


@pytest.fixture(scope="module")
def orthanc(port: int) -> Iterator[Orthanc]:
    """An archive that is up."""
    archive = Orthanc(peer_port=port)
    try:
        yield archive.start()
    finally:
        archive.close()


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of 50 slices, sagittal axes first, as an MR series."""
    folder = tmp_path_factory.mktemp("series")
    voxels = np.asarray(head().voxels)
    for number in range(voxels.shape[2]):
        _save_mr(folder / f"{number:03d}.dcm", voxels[:, :, number], number)
    return folder


def _save_mr(path: Path, plane: np.ndarray, number: int) -> None:
    """Row by row from the patient's right to left and front to back: RAS x and y turned round."""
    save_slice(
        path,
        SOPClassUID=MRImageStorage,
        SOPInstanceUID=f"{STUDY}.1.{number + 1}",
        SeriesInstanceUID=f"{STUDY}.1",
        StudyInstanceUID=STUDY,
        FrameOfReferenceUID=f"{STUDY}.2",
        Modality="MR",
        Manufacturer="none",
        StudyID="1",
        AccessionNumber="",
        StudyTime="101112",
        ReferringPhysicianName="",
        PatientSex="O",
        SeriesNumber=1,
        InstanceNumber=number + 1,
        SeriesDescription="T1 made up",
        ImagePositionPatient=[-100.0, -100.0, -100.0 + 4 * number],
        ImageOrientationPatient=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        PixelSpacing=[4.0, 4.0],
        SliceThickness="4",
        Rows=plane.shape[1],
        Columns=plane.shape[0],
        PixelRepresentation=1,
        PixelData=np.ascontiguousarray(plane[::-1, ::-1].T, dtype="<i2").tobytes(),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that says it was trained: only the way of its results is tested."""
    folder = build_tiny_model(tmp_path_factory.mktemp("model"))
    path = folder / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    content["weights"]["trained"] = True
    path.write_text(yaml.safe_dump(content))
    assert sha256_of(folder / "weights.safetensors") == content["weights"]["sha256"]
    return folder


def _archive(orthanc: Orthanc, kind: str, port: int | None = None) -> Archive:
    if kind == "web":
        return open_archive(parse_address(orthanc.web), Access(user=USER, password=PASSWORD))
    return open_archive(parse_address(orthanc.entity), Access(), receive_on=port if kind == "move" else None)


@pytest.fixture
def environment() -> dict[str, str]:
    """Of a command that talks to the archive."""
    own = {"MEDSEG_DICOM_USER": USER, "MEDSEG_DICOM_PASSWORD": PASSWORD}
    named = {"MEDSEG_DICOM_WEB_USER": USER, "MEDSEG_DICOM_WEB_PASSWORD": PASSWORD}
    return {**os.environ, "OMP_NUM_THREADS": "1", **own, **named}


@pytest.mark.parametrize(("store", "read"), [("entity", "web"), ("web", "entity"), ("web", "move")])
def test_store_query_retrieve(orthanc: Orthanc, port: int, tmp_path: Path, store: str, read: str) -> None:
    study = generate_uid()[:50].rstrip(".")
    (tmp_path / "in").mkdir()
    for number in range(3):
        uids = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1", "SOPInstanceUID": f"{study}.1.{number}"}
        save_slice(tmp_path / "in" / f"{number}.dcm", **uids, StudyDescription="made up")
    assert {fault for _, fault in _archive(orthanc, store).send(dicom_files([tmp_path / "in"]))} == {None}
    archive = _archive(orthanc, read, port)
    (found,) = search(archive, "study", {"StudyInstanceUID": study, "StudyDescription": "made*"})
    assert int(found.NumberOfStudyRelatedInstances) == 3
    (only,) = search(archive, "series", {"Modality": "CT", "StudyInstanceUID": study})
    assert only.SeriesInstanceUID == f"{study}.1"
    assert held(archive, study, f"{study}.1") == {f"{study}.1.{number}" for number in range(3)}
    assert retrieve(archive, study, None, tmp_path / "out") == 3
    for number in range(3):
        back = pydicom.dcmread(tmp_path / "out" / f"{study}.1" / f"{study}.1.{number}.dcm")
        assert back == pydicom.dcmread(tmp_path / "in" / f"{number}.dcm")


def test_real_files_of_every_kind_come_back_whole(orthanc: Orthanc, shared_data: Path, tmp_path: Path) -> None:
    """Compressed, colour, multi-frame, big endian: what the archive takes comes back with equal pixels."""
    sent = [
        path
        for path, fault in _archive(orthanc, "entity").send(sorted((shared_data / "dicom" / "single").iterdir()))
        if not fault
    ]
    assert len(sent) > 20
    seen: set[str] = set()
    for number, path in enumerate(sent):
        before = pydicom.dcmread(path)
        if before.SOPInstanceUID in seen:  # one instance as two files: the archive keeps the first
            continue
        seen.add(before.SOPInstanceUID)
        folder = tmp_path / str(number)
        retrieve(
            _archive(orthanc, ("web", "entity")[number % 2]), before.StudyInstanceUID, before.SeriesInstanceUID, folder
        )
        after = pydicom.dcmread(next(each for each in folder.rglob("*.dcm") if before.SOPInstanceUID in each.name))
        equal = after.get("PixelData") == before.get("PixelData")  # else the fragments were laid out anew
        assert equal or np.array_equal(after.pixel_array, before.pixel_array), path.name


def test_wrong_passwords_and_titles_are_told(orthanc: Orthanc, environment: dict[str, str]) -> None:
    wrong = {**environment, "MEDSEG_DICOM_PASSWORD": "wrong"}
    for arguments, env, word in [
        (["find", orthanc.web], wrong, "401"),
        (["find", orthanc.web + "/none"], environment, "404"),
        (["find", orthanc.web.replace("http", "https")], environment, "certificate"),
        (["get", orthanc.entity, "--study", "1.2.3.99", "-o", "nowhere"], environment, "no instances"),
    ]:
        command = [sys.executable, "-m", "medseg_app", "dicom", *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert word in answer.stderr
        assert answer.stderr.count("\n") == 1


@contextmanager
def _listener(rules: Path, state: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[Any]]:
    """`medseg dicom listen`, killed outright at the end."""
    with (state.parent / "log").open("ab") as log:
        before = log.tell()
        command = [sys.executable, "-m", "medseg_app", "dicom", "listen", rules, "--state", state]
        process: subprocess.Popen[Any] = subprocess.Popen(command, stderr=log, env=environment)
        try:
            _until(lambda: b"listening" in _log(state)[before:], process, state)
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def _log(state: Path) -> bytes:
    return (state.parent / "log").read_bytes()


def _until(holds: Callable[[], bool], process: subprocess.Popen[Any], state: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        assert process.poll() is None, _log(state)[-2000:]
        assert time.monotonic() < deadline, _log(state)[-2000:]
        time.sleep(0.2)


def _states(state: Path) -> dict[str, int]:
    queue = Queue(state / QUEUE_FILE)
    try:
        return queue.counts()
    finally:
        queue.close()


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_segmented_and_sent_back(
    orthanc: Orthanc, series: Path, model: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """The archive goes away before the result is ready, the listener is killed, and both come back."""
    rules, state, port = tmp_path / "rules.yaml", tmp_path / "state", free_port()
    rule = {"name": "tiny", "modality": ["MR"], "description": ["T1*"], "model": str(model), "send": ["web"]}
    content = {"port": port, "quiet_seconds": 1, "retry_seconds": 1, "retry_longest": 2, "rules": [rule]}
    rules.write_text(yaml.safe_dump({**content, "destinations": {"web": orthanc.web}}))
    assert {fault for _, fault in _archive(orthanc, "entity").send(dicom_files([series]))} == {None}
    sources, others = orthanc.instances("MR"), orthanc.instances("SEG")
    with _listener(rules, state, environment) as process:
        retrieve(_archive(orthanc, "web"), STUDY, None, tmp_path / "got")
        ours = open_archive(parse_address(f"MEDSEG@127.0.0.1:{port}"), Access())
        assert {fault for _, fault in ours.send(dicom_files([tmp_path / "got"]))} == {None}
        orthanc.stop()
        _until(lambda: b"not sent, next try" in _log(state), process, state)
        assert _states(state) == {"receiving": 0, "segmented": 1}
    orthanc.start()
    with _listener(rules, state, environment) as process:
        _until(lambda: _states(state) == {"receiving": 0, "sent": 1}, process, state)
    command = [sys.executable, "-m", "medseg_app", "dicom", "queue", "--state", state, "--json"]
    told = subprocess.run(command, capture_output=True, env=environment, check=True, timeout=600).stdout
    assert [(job["state"], job["sent"]) for job in json.loads(told)["jobs"]] == [("sent", 1)]
    assert orthanc.instances("MR") == sources
    assert len(orthanc.instances("SEG")) == len(others) + 1  # each as often as it is held: nothing twice
    (found,) = search(_archive(orthanc, "web"), "series", {"Modality": "SEG", "StudyInstanceUID": STUDY})
    retrieve(_archive(orthanc, "web"), STUDY, str(found.SeriesInstanceUID), tmp_path / "back")
    (back,) = (tmp_path / "back").rglob("*.dcm")
    (here,) = (state / "results" / "1").rglob("*.dcm")
    assert np.array_equal(pydicom.dcmread(back).pixel_array, pydicom.dcmread(here).pixel_array)
    _same_labels(back, state / "results" / "1")
    assert NAME.encode() not in _log(state)


def _same_labels(segmentation: Path, result: Path) -> None:
    """Each segment that came over DICOMweb against the label map of the same run, slice by slice of its source."""
    import highdicom

    from medseg.io import read

    labels = np.asarray(read(next(result.glob("labels.nii*")), kind="labels").voxels)
    file = highdicom.seg.segread(segmentation)
    uids = [f"{STUDY}.1.{number + 1}" for number in range(labels.shape[2])]
    planes = file.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    named = json.loads((result / "labels.json").read_text())["labels"]
    numbers = {file.get_segment_description(n).SegmentLabel: n for n in file.segment_numbers}
    compared = 0
    for label in named:
        if label["name"] not in numbers:
            assert not (labels == label["id"]).any()
            continue
        of_segment = planes[..., list(file.segment_numbers).index(numbers[label["name"]])]  # (slices, rows, columns)
        ours = (labels == label["id"]).transpose(2, 1, 0)
        assert ours.any()
        assert np.array_equal(of_segment, ours)
        compared += 1
    assert compared > 1
