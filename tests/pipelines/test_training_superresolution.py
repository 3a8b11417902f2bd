"""Learning finer voxels: what blocks hold, both parts of the training, and runs that stop, resume and diverge."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from medseg import io
from medseg.errors import UsageError
from medseg.networks.disgan_training import FeatureExtractor
from medseg.weights import save_weights
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import RECIPE_FILE
from medseg_pipelines.training import Diverged, adversarial, course_of, train
from medseg_pipelines.training.adversarial import AdversarialTrainer
from medseg_pipelines.training.curves import read_curves, write_curves
from medseg_pipelines.training.superresolution import Blocks
from tiny_superres import blobs, superres_recipe

CONTEST = {"steps": 2, "learning_rate": 0.001}


class SmallJudge(nn.Sequential):
    """Stands for the discriminator, whose work on a block of 64 voxels takes seconds."""

    def __init__(self) -> None:
        super().__init__(nn.Conv3d(1, 1, 3, padding=1), nn.BatchNorm3d(1), nn.Conv3d(1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu"), "bfloat16 spoils gradients of the real one on a CPU"
        return super().forward(x)


@pytest.fixture
def small_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adversarial, "Discriminator", SmallJudge)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fine")
    io.write(blobs((72, 64, 64), np.eye(4)), folder / "fine.nii.gz")
    return folder


def model_in(folder: Path, axes: str = "all", *, guide: bool = False, **training: Any) -> Path:
    options = {"kind": "super-resolution", "images": [{"file": "fine.nii.gz", "held_out": [20, 24]}], "steps": 2}
    options |= {"block": 16, "learning_rate": 0.01, "warmup": 1, "seed": 3} | training
    folder.mkdir()
    recipe = superres_recipe(axes, training=options, guide=guide)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def blocks_of(model: Path, data: Path) -> Blocks:
    course = course_of(model)
    return course.images(course.files(data))


def contest(model: Path, data: Path) -> tuple[AdversarialTrainer, Any]:
    """A trainer at its first step against the discriminator, and the batch of that step."""
    course = course_of(model)
    images, trainer = course.images(course.files(data)), course.trainer("cpu")
    trainer.step = trainer.alone
    return trainer, images[trainer.alone]


@pytest.mark.parametrize("axes", ["all", "slices"])
def test_blocks_depend_on_seed_and_number_and_interpolation_is_near_the_truth(
    axes: str, data: Path, tmp_path: Path
) -> None:
    factors = [2] if axes == "all" else [3]
    blocks = blocks_of(model_in(tmp_path / "m", axes, clean=1.0, profiles=0.0, context=1, factors=factors), data)
    pair, again, other = blocks[1], blocks[1], blocks[2]
    assert torch.equal(pair.acquired, again.acquired)
    assert not torch.equal(pair.acquired, other.acquired)
    side = (16, 16, 16) if axes == "all" else (16, 16, 18)
    assert pair.fine.shape == pair.interpolated.shape == (2, 1, *side)
    assert pair.acquired.shape == ((2, 1, 10, 10, 10) if axes == "all" else (2, 2, 18, 18, 20))
    assert (pair.interpolated - pair.fine).abs().mean() < 0.25 * pair.fine.mean()


def test_a_guide_is_seen_first_and_is_what_the_network_starts_from(data: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"clean": 0.0, "noise": [0.1, 0.11], "context": 1}
    pair = blocks_of(model_in(tmp_path / "all", guide=True, **options), data)[0]
    plain = blocks_of(model_in(tmp_path / "plain", **options), data)[0]
    assert torch.equal(pair.acquired[:, 1:], plain.acquired)
    assert torch.equal(pair.fine, plain.fine)
    assert pair.interpolated.diff(dim=2).abs().mean() < 0.8 * plain.interpolated.diff(dim=2).abs().mean()
    thin = blocks_of(model_in(tmp_path / "thin", "slices", guide=True, factors=[2], **options), data)[0]
    assert thin.acquired.shape == (2, 3, 18, 18, 18)
    assert torch.equal(thin.acquired[:, :1, 1:-1, 1:-1, 1:-1], thin.interpolated)


def test_held_out_slices_are_never_seen(data: Path, tmp_path: Path) -> None:
    volume = io.read(data / "fine.nii.gz").voxels
    parts = blocks_of(model_in(tmp_path / "m"), data).real
    assert max(part.shape[2] for part in parts) <= max(20, volume.shape[2] - 24)


def test_a_run_learns_and_is_a_model_with_curves(data: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    model = model_in(tmp_path / "m", steps=24, clean=0.0, noise=[0.1, 0.11], learning_rate=0.003)
    train(model, data, tmp_path / "run", workers=0, progress=lambda *at: losses.append(at[2]))
    assert np.mean(losses[-8:]) < 0.95 * np.mean(losses[:5])
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.width == 1200
    image = blobs((18, 16, 16), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert load_model(tmp_path / "run", device="cpu")(image).volume.shape == (36, 32, 32)


@pytest.mark.usefixtures("small_judge")
def test_a_resumed_run_equals_one_that_never_stopped_in_both_parts(data: Path, tmp_path: Path) -> None:
    model = model_in(tmp_path / "m", adversarial=CONTEST)
    train(model, data, tmp_path / "whole", workers=0)
    for _ in range(4):  # after every step
        train(model, data, tmp_path / "parts", workers=0, seconds=0, resume=(tmp_path / "parts").exists())
    whole, parts = (torch.load(tmp_path / n / "state.pt", weights_only=True) for n in ("whole", "parts"))
    assert whole["step"] == parts["step"] == 4
    for kind in ("network", "average", "judge"):
        assert all(torch.equal(whole[kind][name], parts[kind][name]) for name in whole[kind])
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [sorted(entry) for entry in logged[1:3]] == [
        ["loss", "seconds", "step"],
        ["discriminator", "error", "loss", "seconds", "step"],
    ]


@pytest.mark.usefixtures("small_judge")
def test_both_networks_learn_and_a_bad_number_changes_neither(data: Path, tmp_path: Path) -> None:
    trainer, pair = contest(model_in(tmp_path / "m", adversarial=CONTEST), data)
    before = copy.deepcopy(trainer.state())
    pair.interpolated[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(Diverged, match=f"diverged at step {trainer.alone}"):
        trainer.learn(pair)
    after = trainer.state()
    for kind in ("network", "judge"):
        assert all(torch.equal(x, after[kind][name]) for name, x in before[kind].items())
    pair.interpolated[0, 0, 0, 0, 0] = 0.0
    trainer.learn(pair)
    for kind in ("network", "judge"):
        assert any(not torch.equal(x, trainer.state()[kind][name]) for name, x in before[kind].items())


@pytest.mark.usefixtures("small_judge")
def test_a_generator_that_loses_the_image_goes_back_to_its_last_good_state(data: Path, tmp_path: Path) -> None:
    trainer, pair = contest(model_in(tmp_path / "m", adversarial=CONTEST), data)
    trainer.learn(pair)
    good = copy.deepcopy(trainer.network.state_dict())
    with torch.no_grad():
        trainer.network.conv3[2].module.bias.fill_(1e4)
    with pytest.raises(Diverged, match="collapsed"):
        trainer.learn(pair)
    assert all(torch.equal(x, trainer.network.state_dict()[name]) for name, x in good.items())


@pytest.mark.usefixtures("small_judge")
def test_features_count_where_their_weights_are_given(data: Path, tmp_path: Path) -> None:
    model = model_in(tmp_path / "m", adversarial={**CONTEST, "feature_weights": "features.safetensors"})
    with pytest.raises(UsageError, match=r"must hold features\.safetensors"):
        train(model, data, tmp_path / "run")
    save_weights(FeatureExtractor().state_dict(), data / "features.safetensors")
    trainer, _ = contest(model, data)
    assert trainer.features is not None
    assert not any(x.requires_grad for x in trainer.features.parameters())


_WORKER = """
import sys, hashlib
from pathlib import Path
import torch
from medseg_pipelines import training
from medseg_pipelines.training.superresolution import Blocks
torch.set_num_threads(1)
seen = []
draw = Blocks.__getitem__
Blocks.__getitem__ = lambda self, step: seen.append(draw(self, step)) or seen[-1]
found = []
make = training.SuperResolutionCourse.trainer
def trainer(self, device):
    found.append(make(self, device))
    return found[-1]
training.SuperResolutionCourse.trainer = trainer
training.train(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), workers=0)
weights = torch.cat([x.flatten() for x in found[0].network.state_dict().values()]).numpy().tobytes()
print(hashlib.sha256(weights).hexdigest(), float(seen[0].fine.sum()))
"""


def test_processes_of_a_torchrun_see_other_blocks_and_stay_equal(data: Path, tmp_path: Path) -> None:
    model = model_in(tmp_path / "m")
    command = [sys.executable, "-c", _WORKER, str(model), str(data), str(tmp_path / "run")]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    running = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    told = [process.communicate(timeout=280)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert told[0][0] == told[1][0], "weights"
    assert told[0][1] != told[1][1], "blocks"
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_other_kinds_of_training_refuse_several_processes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in(tmp_path / "m")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(type(course_of(model)), "TOGETHER", False)
    with pytest.raises(UsageError, match="runs in one process"):
        train(model, data, tmp_path / "run")


def test_curves_show_every_figure_and_what_was_repeated_once(tmp_path: Path) -> None:
    entries = [{"step": s, "loss": 1 / s, "seconds": 0.1} for s in (1, 2, 3, 2, 3)] + [{"step": 4, "loss": 1, "x": 2}]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries), encoding="utf-8")
    curves = read_curves(tmp_path / "log.jsonl")
    assert {name: steps.tolist() for name, (steps, _) in curves.items()} == {"loss": [1, 2, 3, 4], "x": [4]}
    write_curves(tmp_path / "log.jsonl", tmp_path / "curves.png", "Training")
    with Image.open(tmp_path / "curves.png") as picture:
        assert len(picture.getcolors(100_000) or []) > 20
