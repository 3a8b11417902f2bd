"""`medseg support` and `medseg infer --support` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from medseg.io import read
from random_model import random_network
from tiny_support import outlined_files, support_model, support_recipe

from .conftest import Call


@pytest.fixture
def cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments that name three outlined cases; nothing is kept beyond the test."""
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    images, labels = outlined_files(tmp_path / "cases")
    pairs = zip(images, labels, strict=True)
    return [word for image, label in pairs for word in ("--image", str(image), "--label", str(label))]


def test_from_outlined_cases_to_an_outlined_volume(cases: list[str], call: Call, tmp_path: Path) -> None:
    made = call("support", "create", "balls", *cases, "--names", "1=large ball,2=small ball")
    assert made.exit_code == 0, made.output
    assert "1 large ball, 2 small ball" in made.output
    listed = json.loads(call("support", "list", "--json").stdout)["support_sets"]
    assert [(entry["name"], entry["cases"]) for entry in listed] == [("balls", 3)]
    sheet = tmp_path / "sheet.png"
    assert call("support", "show", "balls", "-o", sheet).exit_code == 0
    assert Image.open(sheet).width > 600
    assert call("support", "show", "balls", "-o", sheet).exit_code == 2, "an earlier sheet is not overwritten"

    model, scan = support_model(tmp_path / "model", checkpoint="mine"), tmp_path / "cases" / "image1.nii.gz"
    wanted = ("infer", scan, "-m", model, "--support", "balls", "-d", "cpu", "--json", "-o", tmp_path / "out")
    unmet = call(*wanted)
    assert (unmet.exit_code, "medseg weights add mine FILE" in unmet.stderr) == (5, True), "they are to be brought"
    state = random_network(support_recipe(), seed=1).state_dict()
    torch.save({"state_dict": {f"sam.{name}": x for name, x in state.items()}, "epoch": 3}, tmp_path / "adapted.pth")
    assert call("weights", "add", "mine", tmp_path / "adapted.pth").exit_code == 0
    run = call(*wanted)
    assert run.exit_code == 0, run.output
    case = json.loads(run.stdout)["cases"][0]
    assert [each["name"] for each in case["agreement"]] == ["large ball", "small ball"]
    assert read(tmp_path / "out" / "labels.nii.gz", kind="labels").grid.equals(read(scan).grid, tolerance=0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["support"]["sha256"] == listed[0]["sha256"]
    assert manifest["options"]["weights"] == "mine"
    banner = Image.open(tmp_path / "out" / "preview.png").convert("RGB").getpixel((5, 5))
    assert isinstance(banner, tuple)
    assert banner[0] > 150 > banner[1] + 80, "random weights are told in red"

    assert call("support", "remove", "balls").exit_code == 0
    assert "no support sets yet" in call("support", "list").output


def test_requests_that_cannot_be_met_are_told_in_one_line(cases: list[str], call: Call, tmp_path: Path) -> None:
    model, scan = support_model(tmp_path / "model"), tmp_path / "cases" / "image1.nii.gz"
    for arguments, code, words in (
        (("support", "create", "two", *cases[:8]), 2, "3 to 10 cases, got 2"),
        (("support", "create", "x", *cases, "--names", "one=ball"), 2, "names must look like"),
        (("support", "create", "x", *cases, "--plane", "oblique"), 2, "plane must be one of"),
        (("support", "create", "x", *cases, "--names", "9=ball"), 3, "label of case 1: must hold ball"),
        (("support", "show", "x"), 2, "is not there"),
        (("infer", scan, "-m", model), 2, "needs a support set"),
        (("infer", scan, "-m", model, "--support", "x"), 2, "is not there"),
        (("infer", scan, "-m", "brain-structures", "--support", "x"), 2, "for models that follow examples"),
        (("infer", scan, "--support", "x"), 2, "add -m support-set"),
    ):
        answer = call(*arguments)
        assert answer.exit_code == code, answer.output
        assert words in answer.output
        assert answer.output.strip().count("\n") == 0, answer.output
    assert "no support sets yet" in call("support", "list").output
