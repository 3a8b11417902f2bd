"""Training on a folder of one's own: the plan found from the data, held-back patients, early stopping, the card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medseg.errors import InputRefused, UsageError
from medseg.io import write
from medseg.volume import Volume
from medseg_pipelines import load_model
from medseg_pipelines.recipe import RECIPE_FILE, PictureRecipe, SegmentationRecipe, load_recipe
from medseg_pipelines.results import LabelResult
from medseg_pipelines.training import course_of, train
from medseg_pipelines.training.folder_pairs import find_pairs
from medseg_pipelines.training.folder_plan import plan
from medseg_pipelines.training.validation import Validation

SIDE = 48
HER_SEG = {"dim": 16, "depths": [1, 1], "num_heads": [1, 2], "drop_path": 0.0}
HER_SEG |= {"decoder": {"dim": 16, "heads": 2, "mlp_dim": 16, "mask_channels": 4}}
TINY = {"her-seg": HER_SEG, "wau": {"channels": [8, 16, 16], "upsample": "linear"}}


def blob(seed: int, *, depth: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Grey values and two classes: a bright square 1 and a dark one 2, on a noisy middle grey."""
    draw = np.random.default_rng(seed)
    shape = (SIDE, SIDE) if depth is None else (SIDE, SIDE, depth)
    ids = np.zeros(shape, np.uint8)
    for number in (1, 2):
        top, left = draw.integers(0, SIDE // 2 - 18) + 24 * (number - 1), draw.integers(0, SIDE - 18)
        ids[top : top + 18, left : left + 18] = number
    grey = np.array([120, 220, 20])[ids] + draw.integers(-15, 16, shape)
    return grey.astype(np.uint8), ids


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with masks of two classes, three patients."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for number in range(6):
        image, ids = blob(number)
        Image.fromarray(image).save(folder / "images" / f"p{number}.png")
        Image.fromarray(ids).save(folder / "masks" / f"p{number}.png")
    (folder / "dataset.json").write_text('{"labels": {"background": 0, "bright": 1, "dark": 2}}')
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four volumes with label maps, named as nnU-Net does."""
    folder = tmp_path_factory.mktemp("volumes")
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir()
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    for number in range(4):
        image, ids = blob(number, depth=6)
        write(Volume(image.astype(np.int16) * 5 - 1000, affine), folder / "imagesTr" / f"c{number}_0000.nii.gz")
        write(Volume(ids, affine, kind="labels"), folder / "labelsTr" / f"c{number}.nii.gz")
    return folder


def tiny_run(network: str, data: Path, folder: Path, **training: Any) -> Path:
    """The recipe found for a folder with a network that trains in seconds, as a model folder."""
    content = plan(network, find_pairs(data), data).model_dump(mode="json", exclude_none=True)
    content["network"]["options"] |= TINY[network]
    content["training"] |= {"batch": 2, "warmup": 5, "every": 10, "judged": 4, "learning_rate": 0.005, **training}
    if content["task"] == "picture-segmentation":
        content["preparation"]["zoom"] = 1.0
        content["inference"]["window"] = 64
        content["training"] |= {"crop": 48}
    folder.mkdir()
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def test_a_plan_for_pictures(pictures: Path) -> None:
    recipe = plan("her-seg", find_pairs(pictures), pictures)
    assert isinstance(recipe, PictureRecipe)
    assert [(label.id, label.name) for label in recipe.labels] == [(1, "bright"), (2, "dark")]
    assert recipe.preparation.zoom == 4.0  # 48 px are far below what the network is made for
    assert recipe.training["shares"] == pytest.approx([18 * 18 / SIDE**2] * 2)
    with pytest.raises(UsageError, match="network must be one of"):
        plan("rat", find_pairs(pictures), pictures)


def test_a_plan_for_volumes_with_a_window_of_hounsfield_units(volumes: Path) -> None:
    recipe = plan("wau", find_pairs(volumes), volumes)
    assert isinstance(recipe, SegmentationRecipe)
    assert recipe.preparation.spacing == (1.0, 1.0, 3.0)
    assert recipe.preparation.intensity is not None
    low, high = recipe.preparation.intensity[0].source or (0, 0)
    assert -985 < low < -800
    assert 50 < high < 180
    assert recipe.inference.window == (48, 48, 16)
    flat = plan("her-seg", find_pairs(volumes), volumes)
    assert isinstance(flat, SegmentationRecipe)
    assert flat.inference.window == (48, 48, 1)


def test_masks_with_many_numbers_are_one_class_and_empty_ones_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        image, ids = blob(number)
        Image.fromarray(image).save(tmp_path / f"a{number}.png")
        Image.fromarray(np.where(ids > 0, 6 * np.arange(SIDE), 0).astype(np.uint16)).save(
            tmp_path / f"a{number}_mask.png"
        )
    recipe = plan("wau", find_pairs(tmp_path), tmp_path)
    assert len(recipe.labels) == 1  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe.training["masks"] == "nonzero"
    for number in range(3):
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / f"a{number}_mask.png")
    with pytest.raises(InputRefused, match="labels anything"):
        plan("wau", find_pairs(tmp_path), tmp_path)


def test_a_folder_of_pictures_becomes_a_model_far_above_the_trivial(pictures: Path, tmp_path: Path) -> None:
    run = tiny_run("wau", pictures, tmp_path / "recipe", steps=45, hold_back=0.3)
    report = train(run, pictures, tmp_path / "run", workers=0)
    assert [score.label for score in report.scores] == ["bright", "dark"]
    for score in report.scores:
        assert len(score.dices) == 2
        assert score.mean > score.trivial + 0.3
    card = (tmp_path / "run" / "CARD.md").read_text(encoding="utf-8")
    assert "Dice on 2 held-back images" in card
    assert load_recipe(tmp_path / "run").weights.trained


def test_a_network_of_pictures_labels_volumes_slice_by_slice(volumes: Path, tmp_path: Path) -> None:
    run = tiny_run("her-seg", volumes, tmp_path / "recipe", steps=2)
    report = train(run, volumes, tmp_path / "run", workers=0)
    assert [score.label for score in report.scores] == ["label 1", "label 2"]
    result = load_model(tmp_path / "run", device="cpu")(volumes / "imagesTr" / "c0_0000.nii.gz")
    assert isinstance(result, LabelResult)
    assert result.volume.shape == (SIDE, SIDE, 6)


def test_a_network_is_named_and_the_rest_is_found(pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "who.csv"
    table.write_text("file,patient\n" + "".join(f"p{n}.png,{n // 2}\n" for n in range(6)))
    report = train("wau", pictures, tmp_path / "run", patients=table, workers=0, seconds=0.01)
    assert report.steps == 1
    assert all(len(score.dices) == 2 for score in report.scores)  # both pictures of one patient
    with pytest.raises(UsageError, match="holds a run already"):
        train("wau", pictures, tmp_path / "run", workers=0)


def test_a_network_of_volumes_learns_blocks(volumes: Path, tmp_path: Path) -> None:
    run = tiny_run("wau", volumes, tmp_path / "recipe", steps=25, crop=[48, 48, 8])
    report = train(run, volumes, tmp_path / "run", workers=0)
    assert all(score.mean > score.trivial + 0.3 for score in report.scores)


def test_what_is_held_back_is_never_learned_and_is_the_same_when_resumed(pictures: Path, tmp_path: Path) -> None:
    run = tiny_run("wau", pictures, tmp_path / "recipe", steps=22)
    learned = course_of(run).files(pictures)
    assert learned == course_of(run).files(pictures)
    assert len(learned) == 2 * 5
    full = train(run, pictures, tmp_path / "full", workers=0)
    train(run, pictures, tmp_path / "parts", workers=0, seconds=0.01)
    parts = train(run, pictures, tmp_path / "parts", workers=0, resume=True)
    assert full.weights.read_bytes() == parts.weights.read_bytes()


def test_training_stops_when_nothing_is_gained_and_keeps_the_best() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3])
    validation = Validation(lambda net: next(scores), every=10, patience=3)
    seen = []
    for step in range(1, 6):
        weights = {"weight": torch.full((1, 1), float(step))}
        validation.look(network, weights, 10 * step)
        seen.append(validation.done)
    assert seen == [False, False, False, False, True]
    assert float(validation.best["weight"]) == 2.0
    assert network.weight.item() != 5.0  # the network keeps its own
    again = Validation(lambda net: 0.0, every=10, patience=3)
    again.restore(validation.state())
    assert again.done
