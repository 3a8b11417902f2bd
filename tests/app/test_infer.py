"""`medseg infer` and `medseg replay` from end to end, and what is left when they are stopped."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medseg.io import read, write
from medseg_pipelines import load_model
from tiny_model import head

from .conftest import Call, Cli

FILES = {"labels.json", "labels.nii.gz", "manifest.json", "preview.png", "statistics.csv", "statistics.json"}


def test_one_run_from_end_to_end(cli: Cli, call: Call, scan: Path, model: Path) -> None:
    answer = cli("infer", scan, "-m", model, "-d", "cpu", "--json")
    assert answer.returncode == 0, answer.stderr
    case = json.loads(answer.stdout)["cases"][0]
    folder = scan.parent / "scan_tiny"
    assert case["output"] == str(folder)
    assert {path.name for path in folder.iterdir()} == FILES
    labels = read(folder / "labels.nii.gz", kind="labels")
    assert labels.grid.equals(read(scan).grid)

    python = load_model(model, device="cpu")(scan)
    assert np.array_equal(python.volume.voxels, labels.voxels), "Python and the command line must agree"
    assert [s.ml for s in python.statistics] == [structure["ml"] for structure in case["structures"]]

    assert call("infer", scan, "-m", model).exit_code == 2, "an earlier result is not overwritten"
    text = call("infer", scan, "-m", model, "--overwrite", "-v")
    assert text.exit_code == 0
    assert "Research use only" in text.stdout
    assert "Untrained weights" in text.stderr
    assert str(folder / "preview.png") in text.stdout

    repeated = call("replay", folder / "manifest.json", "-m", model, "--json")
    assert repeated.exit_code == 0, repeated.stderr
    assert json.loads(repeated.stdout)["identical"] is True
    evaluated = json.loads(call("evaluate", folder, folder, "--json").stdout)
    assert evaluated["mean_dice"] == 1.0
    assert evaluated["structures"][0]["name"] == "left cerebral white matter"


def test_replay_tells_a_different_result(call: Call, scan: Path, model: Path) -> None:
    assert call("infer", scan, "-m", model, "-q").exit_code == 0
    manifest = scan.parent / "scan_tiny" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["output"]["voxels_sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    answer = call("replay", manifest, "-m", model)
    assert answer.exit_code == 1
    assert "different" in answer.stdout


def test_a_run_opens_no_socket(call: Call, scan: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a run must not open a connection, it wanted {arguments[1:]}")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert call("infer", scan, "-m", model, "-q").exit_code == 0


def test_batch_goes_on_after_a_refusal(call: Call, scan: Path, model: Path) -> None:
    (scan.parent / "bad.nii.gz").write_bytes(scan.read_bytes()[:1000])
    answer = call("infer", scan.parent / "bad.nii.gz", scan, "-m", model, "-o", scan.parent / "all", "--json")
    assert answer.exit_code == 4
    bad, good = json.loads(answer.stdout)["cases"]
    assert bad["exit_code"] == 3
    assert {path.name for path in Path(good["output"]).iterdir()} == FILES
    assert Path(good["output"]) == scan.parent / "all" / "scan_tiny"
    again = call("infer", scan.parent / "bad.nii.gz", scan, "-m", model, "-o", scan.parent / "all", "--json")
    assert [case["exit_code"] for case in json.loads(again.stdout)["cases"]] == [3, 2]
    assert call("infer", scan, scan, "-m", model, "-o", scan.parent / "all").exit_code == 2


def test_dry_run_plans_and_writes_nothing(call: Call, scan: Path, model: Path) -> None:
    before = set(scan.parent.iterdir())
    answer = call("infer", scan, "-m", model, "--dry-run", "--json")
    plan = json.loads(answer.stdout)["cases"][0]
    assert plan["grid"] == [50, 50, 50]
    assert plan["tiles"] >= 8
    assert {"peak_memory_bytes", "expected_seconds"} <= plan.keys()
    assert "tiles" in call("infer", scan, "-m", model, "--dry-run").stdout
    assert set(scan.parent.iterdir()) == before


def test_missing_weights_have_their_own_exit_code(call: Call, scan: Path, tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "recipe.yaml").write_bytes((model / "recipe.yaml").read_bytes())
    answer = call("infer", scan, "-m", folder)
    assert answer.exit_code == 5
    assert len(answer.stderr.splitlines()) == 2


def test_doctor_finds_devices_engines_and_models(call: Call) -> None:
    content = json.loads(call("doctor", "--json").stdout)
    names = {check["name"] for check in content["checks"]}
    assert {"GPU", "engines", "memory", "model brain-structures", "offline"} <= names


def _start(scan: Path, model: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "medseg_app", "infer", str(scan), "-m", str(model), "-o", str(scan.parent / "out")]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_hear_ctrl_c,
    )


def _hear_ctrl_c() -> None:
    """Tests that run in the background inherit a deaf ear for SIGINT; a terminal's command has none."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for_torch(process: subprocess.Popen[bytes]) -> None:
    libraries = Path(f"/proc/{process.pid}/maps")
    if not libraries.is_file():  # not Linux
        time.sleep(5.0)
        return
    give_up = time.monotonic() + 60
    while b"libtorch" not in libraries.read_bytes():
        assert process.poll() is None, "ended early"
        assert time.monotonic() < give_up, "never came to its work"
        time.sleep(0.02)


def _left(scan: Path) -> set[str]:
    return {path.name for path in scan.parent.iterdir()} - {scan.name}


def test_ctrl_c_cancels_and_leaves_nothing(scan: Path, model: Path, environment: dict[str, str]) -> None:
    process = _start(scan, model, environment)
    _wait_for_torch(process)  # the command is on its way; before, Python itself ends
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert _left(scan) == set()


def test_sigterm_while_writing_takes_back_what_was_begun(scan: Path, model: Path, environment: dict[str, str]) -> None:
    process = _start(scan, model, environment)
    _wait_for_writing(scan.parent, process, 0.0, give_up=60)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    assert (code, _left(scan)) in ((130, set()), (0, {"out"}))


def test_a_kill_leaves_the_complete_result_or_none(scan: Path, model: Path, environment: dict[str, str]) -> None:
    write(head(spacing=2.0), scan)  # more to write, so that a kill can fall into the writing
    out = scan.parent / "out"
    moments = random.Random(0)
    for _ in range(3):
        shutil.rmtree(out, ignore_errors=True)
        process = _start(scan, model, environment)
        _wait_for_writing(scan.parent, process, moments.uniform(0.0, 0.25), give_up=60)
        process.kill()
        process.wait()
        left = {path.name for path in out.iterdir()} if out.exists() else set()
        assert left in (set(), FILES)
    shutil.rmtree(out, ignore_errors=True)
    assert _start(scan, model, environment).wait(timeout=60) == 0
    assert _left(scan) == {"out"}, "what the killed runs left must be gone after the next run"


def _wait_for_writing(folder: Path, process: subprocess.Popen[bytes], delay: float, *, give_up: float) -> None:
    """Until the temporary folder is there, and a little longer: the only time when a kill could do harm."""
    until = time.monotonic() + give_up
    while process.poll() is None and time.monotonic() < until:
        if any(entry.name.endswith(".partial") for entry in os.scandir(folder)):
            time.sleep(delay)
            return
        time.sleep(0.002)
