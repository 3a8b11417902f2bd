"""`medseg bundle` as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import medseg
from medseg_pipelines.bundle import check
from medseg_pipelines.bundle.check import Point, Report
from medseg_pipelines.bundle.kinds.segmentation import SegmentationKind
from zoo_bundles import build_zoo_bundle, config, write_config

from .conftest import Call


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))


def test_an_imported_bundle_segments_by_its_name(call: Call, scan: Path, tmp_path: Path) -> None:
    bundle = build_zoo_bundle(tmp_path / "zoo")
    write_config(bundle, {**config("UNet"), "pixdim": [8.0, 8.0, 8.0]})  # few windows
    told = json.loads(call("bundle", "import", bundle, "--name", "organs", "--json").stdout)
    assert told["model"] == "organs"
    volume, ct = medseg.read(scan), tmp_path / "ct.nii.gz"
    medseg.write(volume.with_voxels(volume.voxels - np.int16(1000)), ct)  # the bundle is made for Hounsfield units
    answer = call("infer", ct, "-m", "organs", "-o", tmp_path / "out", "--json")
    assert answer.exit_code == 0, answer.output
    case = json.loads(answer.stdout)["cases"][0]
    assert [structure["name"] for structure in case["structures"]] == ["left organ"]
    assert (tmp_path / "out" / "labels.nii.gz").is_file()
    assert call("infer", ct, "-m", told["folder"], "-o", tmp_path / "again").exit_code == 0


def test_exit_codes(call: Call, tmp_path: Path) -> None:
    bundle = build_zoo_bundle(tmp_path / "zoo")
    assert call("bundle", "import", tmp_path / "none").exit_code == 2
    assert call("bundle", "import", tmp_path / "zoo" / "docs").exit_code == 3
    assert call("bundle", "import", bundle, "--trust-code", "abc").exit_code == 2
    assert call("bundle", "export", "brain-structure", "-o", tmp_path / "out").exit_code == 2
    without = call("bundle", "export", "support-set", "-o", tmp_path / "out")
    assert (without.exit_code, "add --support NAME" in without.stderr) == (2, True)
    assert call("bundle", "check", tmp_path / "zoo" / "docs").exit_code == 3
    assert call("bundle", "check", bundle).exit_code == 1  # of the zoo: it lacks what ours must hold
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({**state, "more": torch.zeros(1)}, bundle / "models" / "model.pt")
    assert call("bundle", "import", bundle).exit_code == 5
    (bundle / "models" / "model.pt").unlink()
    answer = call("bundle", "import", bundle)
    assert answer.exit_code == 3
    assert answer.stderr.startswith("error: bundle must hold one of models/")


def test_check_prints_its_points(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = Report((Point("files", None), Point("network", "wrong channels")))
    monkeypatch.setattr("medseg_app.commands.bundle.check_bundle", lambda *arguments, **options: report)
    answer = call("bundle", "check", tmp_path)
    assert answer.exit_code == 1
    assert "wrong channels" in answer.stdout
    assert json.loads(call("bundle", "check", tmp_path, "--json").stdout)["passed"] is False


def test_export_writes_what_check_accepts(
    call: Call, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Tested with its process in tests/pipelines; nothing is run here, so there is nothing to compare either.
    steps = ("verify_metadata", "verify_net_in_out", "run", "properties", "weights", "script")
    monkeypatch.setattr(check, "probe", lambda trials: [{**dict.fromkeys(steps), "strangers": []} for _ in trials])
    monkeypatch.setattr(check, "script_fault", lambda *arguments: None)
    monkeypatch.setattr(SegmentationKind, "fault", lambda *arguments: None)
    answer = call("bundle", "export", model, "-o", tmp_path / "tiny.zip")
    assert answer.exit_code == 0, answer.output
    assert call("bundle", "check", tmp_path / "tiny.zip", "-m", model).exit_code == 0
    assert call("bundle", "export", model, "-o", tmp_path / "tiny.zip").exit_code == 2


def test_help_loads_nothing_heavy(environment: dict[str, str]) -> None:
    program = (
        "import sys; sys.argv = ['medseg', 'bundle', '--help']\n"
        "from medseg_app.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(sorted({'torch', 'monai'} & set(sys.modules)) or 0)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60
    )
    assert answer.returncode == 0, answer.stderr
    assert all(word in answer.stdout for word in ("export", "check", "import"))
