"""HER-Seg's encoder taught by a Segment Anything: what it learns, exact resume, and what starts from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from medseg.errors import ModelMissing, UsageError
from medseg.networks import build_network
from medseg.networks.her_seg import HERSeg
from medseg.networks.her_seg_training import Student, start_from
from medseg.networks.sam import Sam
from medseg.weights import read_weights
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe, recipe_folder
from medseg_pipelines.training import course_of, train
from medseg_pipelines.training.distillation import DistillationCourse, Squares
from tiny_prompting import NETWORK, build_tiny_prompting

OPTIONS = {
    "dim": 16,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "drop_path": 0.0,
    "decoder": {"dim": 16, "heads": 2, "mlp_dim": 16, "mask_channels": 4},
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a tiny Segment Anything with random weights."""
    return build_tiny_prompting(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of different sizes, some in a folder below."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        coarse = draw.integers(0, 256, (6, 8, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((40 + 8 * number, 64), Image.Resampling.BICUBIC)
        picture.save(folder / ("more" if number % 2 else "") / f"{number:02}.png")
    return folder


def recipe(folder: Path, **training: object) -> Path:
    """The shipped recipe with a network that learns in seconds."""
    content = yaml.safe_load((recipe_folder("her-seg-pretrain") / RECIPE_FILE).read_text(encoding="utf-8"))
    content["network"]["options"] = OPTIONS
    content["training"] |= {"epochs": 20, "learning_rate": 0.003, **training}
    folder.mkdir()
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(teacher: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    place = tmp_path_factory.mktemp("pretraining")
    train(recipe(place / "recipe"), data, place / "run", teacher=str(teacher), workers=0)
    return place / "run"


def fresh() -> HERSeg:
    """The network before any training."""
    torch.manual_seed(0)
    network = build_network("her-seg", **OPTIONS)
    assert isinstance(network, HERSeg)
    return network


def explained(feature: Callable[[Tensor], Tensor], teacher: Sam, squares: Tensor) -> float:
    """Share of the teacher's variance on the last pictures that a linear map finds, fitted on the first ones."""
    with torch.no_grad():
        ours, theirs = (x.flatten(2).mT.double() for x in (feature(squares), teacher.encode(squares)))
    ours = torch.cat((ours, torch.ones_like(ours[..., :1])), 2)
    learned, held = slice(0, 8), slice(8, None)
    found = torch.linalg.lstsq(ours[learned].flatten(0, 1), theirs[learned].flatten(0, 1)).solution
    rest = theirs[held] - ours[held] @ found
    return 1 - float(rest.square().mean() / (theirs[held] - theirs[held].mean((0, 1))).square().mean())


def test_the_student_comes_linearly_closer_to_its_teacher(run: Path, data: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])
    course = course_of(run)
    assert isinstance(course, DistillationCourse)
    sam, files = course.teacher().eval(), course.files(data)
    squares = Squares(files, sam, course.options.model_copy(update={"batch": len(files)}))[0]
    assert squares.shape == (12, 3, NETWORK["img_size"], NETWORK["img_size"])
    before, after = Student(fresh()).eval(), Student(fresh()).eval()
    after.load_state_dict(read_weights(run / "weights.safetensors"), strict=True)
    assert explained(after, sam, squares) > explained(before, sam, squares) + 0.05


def test_the_card_names_the_teacher_and_what_comes_next(run: Path, teacher: Path) -> None:
    card = (run / "CARD.md").read_text(encoding="utf-8")
    assert f"Taught by '{teacher.name}'" in card
    assert "--from RUN" in card


def test_a_run_that_was_stopped_goes_on_exactly(teacher: Path, data: Path, tmp_path: Path) -> None:
    model = recipe(tmp_path / "recipe", epochs=2)
    train(model, data, tmp_path / "whole", teacher=str(teacher), workers=0)
    train(model, data, tmp_path / "parts", teacher=str(teacher), workers=0, seconds=0)
    report = train(model, data, tmp_path / "parts", resume=True, workers=0)
    assert report.steps == 6
    whole, parts = (read_weights(tmp_path / name / "weights.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_every_picture_is_seen_once_per_epoch(teacher: Path, data: Path, tmp_path: Path) -> None:
    model = recipe(tmp_path / "recipe", batch=5, teacher=str(teacher))
    course = course_of(model)
    squares = course.images(course.files(data))
    assert isinstance(squares, Squares)
    assert (squares.per_epoch, len(squares)) == (3, 60)
    first, second = (torch.cat([squares[3 * epoch + n] for n in range(3)]) for epoch in (0, 1))
    assert not torch.equal(first, second)
    assert torch.allclose(first.sum((1, 2, 3)).sort().values, second.sum((1, 2, 3)).sort().values)


def test_a_network_starts_from_what_was_learned(run: Path, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(3):
        image = np.zeros((64, 64), np.uint8)
        image[20:40, 10 + 5 * number : 40] = 200
        Image.fromarray(image + number).save(tmp_path / "data" / "images" / f"{number}.png")
        Image.fromarray((image > 0).astype(np.uint8)).save(tmp_path / "data" / "masks" / f"{number}.png")
    train("her-seg", tmp_path / "data", tmp_path / "run", start=run, workers=0, seconds=0)
    found = load_recipe(tmp_path / "run")
    assert found.network.options["dim"] == OPTIONS["dim"]
    assert "started from that of her-seg-pretrain" in found.summary
    learned, now = (read_weights(folder / "weights.safetensors") for folder in (run, tmp_path / "run"))
    kept = [
        name for name in learned if name.endswith(("weight", "bias"))
    ]  # batch statistics follow the pictures at once
    moved = [float((now[name].float() - learned[name]).abs().max()) for name in kept]
    assert 0 < max(moved) < 0.05, "one step away from what was learned, no more"


def test_a_network_of_grey_values_sums_the_filters_of_colours(run: Path) -> None:
    state = read_weights(run / "weights.safetensors")
    colour, grey = fresh().eval(), build_network("her-seg", in_channels=1, **OPTIONS).eval()
    assert isinstance(grey, HERSeg)
    start_from(colour, state)
    assert all(name.startswith(("mask_decoder", "prompt_encoder")) for name in start_from(grey, state))
    image = torch.randn((1, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(grey.features(image), colour.features(image.expand(-1, 3, -1, -1)))


def test_what_does_not_fit_is_said_in_one_line(run: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--from RUN"):
        load_model(run)
    with pytest.raises(UsageError, match="--from RUN"):
        load_model("her-seg-pretrain")
    with pytest.raises(ModelMissing, match="nowhere"):
        train(recipe(tmp_path / "a"), data, tmp_path / "b", teacher="nowhere", workers=0)
    with pytest.raises(UsageError, match="--from is for her-seg"):
        train("wau", data, tmp_path / "c", start=run)
    with pytest.raises(UsageError, match="--teacher is for her-seg-pretrain"):
        train("wau", data, tmp_path / "c", teacher="sam-vit-b")
    with pytest.raises(UsageError, match=r"decoder\.dim of 16"):
        train("her-seg-pretrain", data, tmp_path / "d", teacher=str(teacher), workers=0)
