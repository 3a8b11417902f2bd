"""Training on tasks: the loss of both orders of queries, what step n sees, and wrong recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from brain_labels import head_labels
from medseg.errors import UsageError
from medseg.io import write
from medseg_pipelines.load import load_recipe
from medseg_pipelines.training import course_of, train
from medseg_pipelines.training.episodes import SupportCourse, SupportTrainer, TaskSampler, _others
from tiny_support import NETWORK, support_recipe

TRAINING: dict[str, Any] = {
    "kind": "support-set",
    "labels": "maps/*.nii.gz",
    "held_out": ["c.nii.gz"],
    "stages": [{"steps": 2, "side": 32}, {"steps": 1, "side": 64}],
    "learning_rate": 0.001,
    "tasks": 2,
    "examples": [2, 3],
    "unnamed": ["fluid"],
    "synthesis": {"isotropic": 1.0, "cut": 0.0, "shift": 2.0},
    "episodes": {"field": [32.0, 48.0]},
    "tissues": {
        "air": {"brain": False},
        "white": {"ids": [2], "right": [41], "white": 1.0},
        "cortex": {"ids": [3], "right": [42], "white": 0.0},
        "fluid": {"ids": [4], "fluid": True},
    },
}


def _model(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    content = support_recipe(training=TRAINING | changes)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "maps").mkdir()
    for name in "abc":
        write(head_labels(24), folder / "maps" / f"{name}.nii.gz")
    return folder


def test_a_run_learns_from_tasks_and_leaves_a_model(data: Path, tmp_path: Path) -> None:
    report = train(_model(tmp_path / "model"), data, tmp_path / "run", workers=0)
    assert report.steps == 3
    assert 0 < report.loss < 20
    recipe = load_recipe(tmp_path / "run")
    assert recipe.weights.trained
    assert recipe.task == "support-segmentation"
    assert "2 files" in (tmp_path / "run" / "CARD.md").read_text(), "c is held out"


def test_step_n_depends_on_the_seed_and_n_alone_and_never_asks_for_what_is_unnamed(data: Path, tmp_path: Path) -> None:
    course = course_of(_model(tmp_path / "model", stages=[stage | {"invented": 0.0} for stage in TRAINING["stages"]]))
    files = course.files(data)
    first, again = (course.images(files)[1] for _ in range(2))
    assert torch.equal(first.examples, again.examples)
    assert torch.equal(first.targets, again.targets)
    assert first.examples.shape[0] == 2
    assert first.examples.shape[2:] == (1, 32, 32)
    sampler = course.images(files)
    assert all(set((sampler[step].parts // 3).unique().tolist()) <= {-1, 0, 1, 2} for step in range(2)), "3 is unnamed"
    assert isinstance(sampler, TaskSampler)
    assert sampler.asked == [1, 2]


@pytest.mark.parametrize("loss", ["guided", "released"])
def test_both_orders_of_queries_teach_the_whole_network(data: Path, tmp_path: Path, loss: str) -> None:
    course = course_of(_model(tmp_path / loss, loss=loss))
    assert isinstance(course, SupportCourse)
    trainer = course.trainer("cpu")
    assert isinstance(trainer, SupportTrainer)
    sampler = course.images(course.files(data))
    seen = set()
    for step in range(3):
        sample = sampler[step]
        seen.add(sample.sequence)
        assert trainer.learn(sample) > 0
    silent = [name for name, p in trainer.network.named_parameters() if p.grad is None]
    assert not [name for name in silent if name.startswith(("image_encoder", "memory_"))]
    assert seen == {True, False}


def test_matching_teaches_encoder_and_descriptors_and_masks_teach_the_rest(data: Path, tmp_path: Path) -> None:
    stages = [{"steps": 1, "side": 32, "learn": "matching"}, {"steps": 2, "side": 32, "rate": 0.5}]
    content = support_recipe(training=TRAINING | {"stages": stages})
    content["network"] = {"name": "sam2-sgp", "options": NETWORK | {"matching": 4}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    course = course_of(tmp_path)
    trainer, sampler = course.trainer("cpu"), course.images(course.files(data))
    for teaches_places in (True, False, False):
        before = {name: x.detach().clone() for name, x in trainer.network.named_parameters()}
        trainer.learn(sampler[trainer.step])
        moved = {name for name, x in trainer.network.named_parameters() if not torch.equal(x, before[name])}
        places = {name for name in moved if name.startswith(("image_encoder.", "matcher.deep", "matcher.mix"))}
        masks = {name for name in moved if name.startswith(("memory_encoder.", "mask_decoder2.", "matcher.kept"))}
        assert (bool(places), bool(masks)) == (teaches_places, not teaches_places)


def test_each_example_is_asked_of_all_the_others() -> None:
    assert _others(torch.tensor([[0, 1, 2], [3, 4, 5]])).tolist() == [[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "nowhere/*.nii.gz"}, "must hold label maps like nowhere"),
        ({"episodes": {"fields": 3}}, "training.episodes: .*fields"),
        ({"unnamed": ["spleen"]}, "no tissue is called spleen"),
        ({"stages": [{"steps": 1, "side": 48}]}, "sides must be multiples of 32"),
        ({"examples": [1, 3]}, "examples must rise from 2 on"),
        ({"stages": [{"steps": 1, "side": 32, "learn": "matching"}]}, "matching needs a matcher"),
    ],
)
def test_wrong_options_are_told(data: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(_model(tmp_path / "model", **changes), data, tmp_path / "run")
