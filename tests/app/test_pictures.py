"""Pictures on the command line: told, segmented, scored, and refused in one line where they are no pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.io import write
from medseg.io.pictures import read_indexed
from pictures import bad_picture, build_tiny_vessel_model, fundus
from tiny_model import head

from .conftest import Call

FILES = ["field.png", "labels.json", "labels.png", "manifest.json", "overlay.png", "preview.png", "probability.png"]


@pytest.fixture(scope="module")
def vessel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    return build_tiny_vessel_model(tmp_path_factory.mktemp("vessels"))


@pytest.fixture
def eye(tmp_path: Path) -> Path:
    """A fundus photograph in a folder of its own."""
    Image.fromarray(fundus()[0]).save(tmp_path / "eye.png")
    return tmp_path / "eye.png"


def test_a_picture_from_end_to_end(call: Call, eye: Path, vessel_model: Path) -> None:
    answer = call("infer", eye, "-m", vessel_model, "-d", "cpu", "--json")
    assert answer.exit_code == 0, answer.stderr
    case = json.loads(answer.stdout)["cases"][0]
    folder = eye.parent / "eye_tiny-vessels"
    assert case["output"] == str(folder)
    assert {figure["name"] for figure in case["figures"]} >= {"area fraction", "length", "tortuosity"}
    assert {path.name for path in folder.iterdir()} == {*FILES, "statistics.csv", "statistics.json"}
    assert read_indexed(folder / "labels.png").shape == fundus()[0].shape[:2]
    again = call("replay", folder / "manifest.json", "-m", vessel_model, "--json")
    assert json.loads(again.stdout)["identical"] is True, again.stderr

    Image.fromarray((fundus()[1] * 255).astype(np.uint8)).save(eye.parent / "truth.png")
    scored = call("evaluate", folder, eye.parent / "truth.png", "--json")
    assert scored.exit_code == 0, scored.stderr
    content = json.loads(scored.stdout)
    assert content["kind"] == "picture"
    assert 0 <= content["f1"] <= 1
    assert content["auc"] is not None


def test_the_model_for_a_fundus_is_found_and_the_plan_writes_nothing(call: Call, tmp_path: Path) -> None:
    eye = tmp_path / "eye.png"
    Image.fromarray(fundus(400, 500)[0]).save(eye)
    told = json.loads(call("info", eye, "--json").stdout)
    assert (told["model"], told["width"], told["height"]) == ("vessels", 500, 400)
    plan = json.loads(call("infer", eye, "--dry-run", "--json").stdout)["cases"][0]
    assert plan["model"] == "vessels"
    assert "fundus photograph" in plan["reason"]
    assert [path.name for path in eye.parent.iterdir()] == ["eye.png"]


BAD = {
    "empty": "empty",
    "text": "something that is no picture",
    "cut": "incomplete or damaged",
    "cmyk": "CMYK",
    "animated": "3 frames",
    "pages": "2 pages",
    "png in disguise": "got PNG",
    "gigapixel": "million pixels",
    "one value": "same value",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_gets_one_line_and_the_code_of_a_refusal(call: Call, tmp_path: Path, kind: str) -> None:
    path = bad_picture(kind, tmp_path)
    for arguments in (("infer", path), ("infer", path, "-m", "vessels"), ("info", path)):
        answer = call(*arguments)
        assert answer.exit_code == 3
        lines = [line for line in (answer.stdout + answer.stderr).splitlines() if BAD[kind] in line]
        assert len(lines) == 1
        assert path.name in lines[0]
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_video_is_segmented_frame_by_frame_only_on_request(call: Call, tmp_path: Path, vessel_model: Path) -> None:
    frames = [Image.fromarray(fundus()[0]), Image.fromarray(fundus()[0][::-1].copy())]
    frames[0].save(tmp_path / "eye.png", save_all=True, append_images=frames[1:])
    refused = call("infer", tmp_path / "eye.png", "-m", vessel_model)
    assert (refused.exit_code, "--frames" in refused.stderr) == (3, True)
    plan = call("infer", tmp_path / "eye.png", "-m", vessel_model, "--frames", "all", "--dry-run", "--json")
    one = call("infer", tmp_path / "eye.png", "-m", vessel_model, "--frames", "0", "--dry-run", "--json")
    tiles = [json.loads(said.stdout)["cases"][0]["tiles"] for said in (one, plan)]
    assert tiles[1] == 2 * tiles[0]
    answer = call("infer", tmp_path / "eye.png", "-m", vessel_model, "-d", "cpu", "--frames", "all", "--json")
    assert answer.exit_code == 0, answer.stderr
    case = json.loads(answer.stdout)["cases"][0]
    assert case["frames"] == 2
    with Image.open(case["pages"]) as pages:
        assert (getattr(pages, "n_frames", 1), pages.mode) == (2, "P")
    assert call("infer", tmp_path / "eye.png", "-m", vessel_model, "--frames", "2").exit_code == 2
    encoder = call("infer", tmp_path / "eye.png", "-m", "her-seg-pretrain")
    assert (encoder.exit_code, "segments nothing" in encoder.stderr) == (2, True)
    assert "one picture at a time" in call("infer", tmp_path / "eye.png", "-m", "sam", "--frames", "all").stderr


def test_volumes_in_the_dress_of_pictures_and_pictures_in_that_of_volumes(call: Call, eye: Path) -> None:
    write(head(), eye.parent / "scan.nii")
    (eye.parent / "scan.nii").rename(eye.parent / "scan.png")
    eye.rename(eye.parent / "eye.nii")
    for name in ("scan.png", "eye.nii"):
        answer = call("infer", eye.parent / name)
        assert answer.exit_code == 3
        assert answer.stderr.count("\n") == 1
        assert name in answer.stderr
    answer = call("infer", eye.parent / "scan.png", "-m", "brain-structures")
    assert (answer.exit_code, "takes volumes" in answer.stderr) == (3, True)


def test_one_bad_picture_of_several_stops_no_other(call: Call, eye: Path, vessel_model: Path) -> None:
    bad = bad_picture("cmyk", eye.parent)
    answer = call("infer", bad, eye, "-m", vessel_model, "-o", eye.parent / "all", "-d", "cpu")
    assert answer.exit_code == 4, answer.stderr
    assert answer.stderr.count("error: ") == 1
    assert (eye.parent / "all" / "eye_tiny-vessels" / "labels.png").is_file()
