"""`medseg dicom find`, `get`, `send`, `listen`, `queue` as a user calls them: answers, exit codes, no patient there."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dicom_made_up import IDENTITY, NAME, made_up_slice, save_slice
from dicom_peer import Peer
from medseg_pipelines.pacs.archive import Head
from medseg_pipelines.pacs.listener import QUEUE_FILE
from medseg_pipelines.pacs.queue import Queue
from orthanc import free_port

from .conftest import Call


@pytest.fixture
def peer() -> Iterator[Peer]:
    """An archive on the network."""
    peer = Peer().start()
    yield peer
    peer.stop()


def test_send_find_get(call: Call, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        save_slice(tmp_path / "in" / f"{number}.dcm", SOPInstanceUID=f"1.2.{number}", StudyDescription="made up")
    sent = call("dicom", "send", peer.address, tmp_path / "in")
    assert (sent.exit_code, sent.stdout) == (0, f"sent      2 of 2 files to {peer.address}\n")

    found = call("dicom", "find", peer.address, "--modality", "CT")
    assert found.exit_code == 0
    assert "1.2.3.6" in found.stdout
    assert NAME not in found.stdout + found.stderr
    assert IDENTITY not in found.stdout
    shown = json.loads(call("dicom", "find", peer.address, "--show-patient", "--json").stdout)
    assert shown["matches"][0]["PatientName"] == NAME
    series = json.loads(call("dicom", "find", peer.address, "--level", "series", "--json").stdout)
    assert [match["SeriesInstanceUID"] for match in series["matches"]] == ["1.2.3.5"]

    got = call("dicom", "get", peer.address, "--study", "1.2.3.6", "-o", tmp_path / "out", "--json")
    assert (got.exit_code, json.loads(got.stdout)["instances"]) == (0, 2)
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 2
    again = call("dicom", "get", peer.address, "--study", "1.2.3.6", "-o", tmp_path / "out")
    assert (again.exit_code, "already there" in again.stderr) == (2, True)


def test_what_is_not_stored_is_told(call: Call, peer: Peer, tmp_path: Path) -> None:
    good, bad = save_slice(tmp_path / "a.dcm"), save_slice(tmp_path / "b.dcm", StudyInstanceUID="")
    some = call("dicom", "send", peer.address, good, bad)
    assert (some.exit_code, "b.dcm" in some.stderr) == (4, True)
    peer.status = 0xA700
    none = call("dicom", "send", peer.address, good)
    assert (none.exit_code, "0xA700" in none.stderr) == (1, True)
    assert NAME not in some.stderr + none.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["find", "nowhere"], 2, "TITLE@host:port"),
        (["find", "PEER@127.0.0.1:1", "--level", "patient"], 2, "--level"),
        (["find", "PEER@127.0.0.1:1", "--level", "instance"], 2, "--study and --series"),
        (["find", "PEER@127.0.0.1:1"], 1, "expected a connection"),
        (["get", "PEER@127.0.0.1:1", "--study", "1.2", "-o", "OUT"], 1, "expected a connection"),
        (["send", "PEER@127.0.0.1:1", "NOTHING"], 2, "found none"),
        (["queue", "--state", "NOTHING"], 2, "--state"),
        (["listen", "NOTHING"], 2, "readable"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_one_line_and_an_exit_code(call: Call, tmp_path: Path, arguments: list[str], code: int, word: str) -> None:
    places = {"OUT": str(tmp_path / "out"), "NOTHING": str(tmp_path / "nothing")}
    answer = call("dicom", *(places.get(each, each) for each in arguments))
    assert (answer.exit_code, answer.stdout) == (code, "")
    assert word in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_queue_is_shown_and_revived(call: Call, tmp_path: Path) -> None:
    queue = Queue(tmp_path / QUEUE_FILE)
    queue.add(Head(made_up_slice()), 1.0)
    queue.close_series(1, ["brain"], 2.0)
    queue.end(1, "failed", "the worker ended with code 1", 3.0)
    queue.close()
    shown = call("dicom", "queue", "--state", tmp_path)
    assert (shown.exit_code, "1 failed" in shown.stdout) == (0, True)
    assert "the worker ended" in shown.stdout
    assert "1.2.3" not in shown.stdout
    revived = call("dicom", "queue", "--state", tmp_path, "--retry", "--json")
    assert json.loads(revived.stdout)["counts"] == {"receiving": 0, "received": 1}


def test_a_listener_stops_when_told(tmp_path: Path, environment: dict[str, str]) -> None:
    rules = {"port": free_port(), "rules": [{"name": "r", "modality": ["MR"], "model": "brain-structures"}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    command = [sys.executable, "-m", "medseg_app", "dicom", "listen", "rules.yaml", "--state", "state"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=log, env=environment)
    try:
        deadline = time.monotonic() + 120
        while "Research use" not in (told := (tmp_path / "log").read_text()):
            assert process.poll() is None, told
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
        assert "images stay 24 h" in told
        assert "anybody who reaches the port may send" in told
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "waits for the next start" in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
