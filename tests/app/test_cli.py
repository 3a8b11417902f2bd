"""Commands that answer at once, errors with their exit codes, and what they import."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import UsageError
from medseg.io import write
from medseg_app.options import parse_size
from tiny_model import head

from .conftest import Call

HEAVY = {"torch", "monai", "gradio", "nibabel", "pydicom", "highdicom", "SimpleITK"}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["infer", "--help"], 0),
        (["--version"], 0),
        (["models"], 0),
        (["models", "brain-structures", "--json"], 0),
        (["models", "brain"], 2),
        (["info", "SCAN"], 0),
        (["info", "SCAN", "--json"], 0),
        (["infer"], 2),
        (["infer", "none.nii.gz"], 2),
        (["infer", "SCAN", "--memory-limit", "much"], 2),
        (["infer", "SCAN", "-m", "unknown"], 2),
        (["infer", "SCAN", "-o", "labels.nii.gz"], 2),
        (["infer", "SCAN", "--nonsense"], 2),
        (["replay", "SCAN"], 3),
        (["serve", "--help"], 0),
        (["serve", "--disk", "much"], 2),
        (["audit", "verify", "none.jsonl"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_quick_answers_load_nothing_heavy(
    arguments: list[str], code: int, scan: Path, environment: dict[str, str]
) -> None:
    arguments = [str(scan) if argument == "SCAN" else argument for argument in arguments]
    program = (
        "import sys; sys.argv = ['medseg', *sys.argv[1:]]\n"
        "from medseg_app.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code or 0\n"
        f"print('\\nLOADED', code, *sorted({HEAVY!r} & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, timeout=60
    )
    assert answer.stdout.splitlines()[-1].split() == ["LOADED", str(code)], answer.stderr


def test_models_json(call: Call) -> None:
    answer = call("models", "--json")
    listed = json.loads(answer.stdout)["models"]
    assert "brain-structures" in {model["name"] for model in listed}
    assert all(model["licence"] and len(model["weights"]["sha256"]) == 64 for model in listed)


def test_info_tells_the_grid_and_the_problems(call: Call, tmp_path: Path, scan: Path) -> None:
    found = json.loads(call("info", scan, "--json").stdout)
    assert (found["shape"], found["orientation"], found["readable"]) == ([50, 50, 50], "RAS", True)
    (tmp_path / "cut.nii.gz").write_bytes(scan.read_bytes()[:2000])
    answer = call("info", tmp_path / "cut.nii.gz")
    assert answer.exit_code == 3
    assert "error" in answer.stdout


def test_images_outside_the_scope_are_refused(call: Call, tmp_path: Path) -> None:
    volume = head()
    write(volume.with_voxels((volume.voxels - 1000).astype(np.int16)), tmp_path / "ct.nii.gz")
    for arguments in ([], ["-m", "brain-structures"]):
        answer = call("infer", tmp_path / "ct.nii.gz", *arguments)
        assert (answer.exit_code, answer.stdout) == (3, "")
        assert "look like CT" in answer.stderr
        assert "--force-scope" in answer.stderr
        assert len(answer.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ct.nii.gz"]


@pytest.mark.parametrize(
    ("text", "size"), [("6GB", 6_000_000_000), ("512 MiB", 2**29), ("1e9", 10**9), ("1.5k", 1500), (None, None)]
)
def test_sizes(text: str | None, size: int | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "6 apples", "1.2.3GB"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="size must be"):
        parse_size(text)
