"""Training from a recipe: it learns, stops and goes on bit for bit, and never loses a good state."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from brain_labels import head_labels
from medseg.errors import Cancelled, InputRefused, UsageError
from medseg.io import write
from medseg.networks import build_network
from medseg.networks.wau import WAUNet
from medseg.synthesis import Sample, prepare_subject
from medseg.weights import load_weights, sha256_of
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe
from medseg_pipelines.training import Diverged, course_of, train
from medseg_pipelines.training.loop import learning_rate_at
from medseg_pipelines.training.synthetic import SyntheticImages, SyntheticTrainer
from tiny_model import tiny_recipe

CROP = [16, 16, 16]
PLAIN = {  # images as easy as they get: one contrast, no degradation, the head as it is
    "contrasts": {"t1": 1.0},
    "tissue_noise": [0.0, 0.0],
    "noise": [0.0, 0.0],
    "bias": 0.0,
    "gamma": 0.0,
    "isotropic": 1.0,
    "shift": 0.0,
    "rotation": 0.0,
    "scaling": [1.0, 1.0],
    "shear": 0.0,
    "elastic": {},
    "stripped": 0.0,
    "cut": 0.0,
    "flip": 0.0,
}


def _training(**changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "kind": "synthetic-segmentation",
        "labels": "maps/*.nii.gz",
        "held_out": ["never.nii.gz"],
        "stages": [{"steps": 3, "crop": CROP}, {"steps": 3, "crop": [24, 16, 16]}],
        "learning_rate": 0.01,
        "warmup": 2,
        "seed": 5,
        "tissues": {
            "air": {"target": 0, "brain": False},
            "white matter": {"ids": [2], "right": [41], "target": 1, "white": 1.0},
            "cortex": {"ids": [3], "right": [42], "target": 2, "white": 0.0},
            "ventricles": {"ids": [4], "target": 5, "fluid": True},
            "vessel": {"ids": [30], "target": None},
            "skull": {"ids": [502], "target": 0, "brain": False},
        },
    }
    return {**options, **changes}


def _model(folder: Path, options: dict[str, Any], **changes: Any) -> Path:
    content = {**tiny_recipe(), "training": options, **changes}
    folder.mkdir(exist_ok=True)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small heads to learn from, and a file that must never be opened."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "maps").mkdir()
    write(head_labels(24), folder / "maps" / "a.nii.gz")
    write(head_labels(28), folder / "maps" / "b.nii.gz")
    (folder / "maps" / "never.nii.gz").write_bytes(b"not an image")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return _model(tmp_path / "model", _training())


def _tensors(path: Path) -> list[torch.Tensor]:
    state = torch.load(path, weights_only=True)
    moments = [x for entry in state["optimizer"]["state"].values() for x in entry.values()]
    return [*state["network"].values(), *state["average"].values(), *moments]


def _stop_at(step: int) -> Callable[[int, int, float], None]:
    def progress(done: int, total: int, loss: float) -> None:
        if done == step:
            raise Cancelled("enough")

    return progress


def test_loss_falls_on_an_easy_task(data: Path, tmp_path: Path) -> None:
    options = _training(stages=[{"steps": 40, "crop": CROP}], learning_rate=0.02, synthesis=PLAIN)
    losses: list[float] = []
    out = tmp_path / "run"
    report = train(_model(tmp_path / "model", options), data, out, workers=0, progress=lambda *at: losses.append(at[2]))
    assert (report.steps, len(losses)) == (40, 40)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert report.loss == pytest.approx(np.mean(losses), abs=1e-4)
    assert len((out / "log.jsonl").read_text().splitlines()) == 40


def test_a_stopped_run_goes_on_bit_for_bit(model: Path, data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    torch.manual_seed(1)
    train(model, data, whole, workers=0)
    torch.manual_seed(2)  # what the caller drew before must not matter
    assert train(model, data, parts, workers=0, seconds=0).steps == 1
    with pytest.raises(Cancelled):
        train(model, data, parts, workers=0, resume=True, progress=_stop_at(4))
    report = train(model, data, parts, workers=1, resume=True)
    assert report.steps == 6
    pairs = list(zip(_tensors(whole / "state.pt"), _tensors(parts / "state.pt"), strict=True))
    assert len(pairs) > 50
    assert all(torch.equal(a, b) for a, b in pairs)
    assert (whole / "weights.safetensors").read_bytes() == (parts / "weights.safetensors").read_bytes()
    assert (whole / "log.jsonl").read_text().count("\n") == (parts / "log.jsonl").read_text().count("\n") == 6
    assert train(model, data, parts, workers=0, resume=True).loss == report.loss


def test_training_leaves_the_randomness_of_the_caller_alone(model: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    course_of(model).trainer("cpu")
    assert torch.equal(torch.rand(3), expected)


def test_exported_weights_are_the_average(model: Path, data: Path, tmp_path: Path) -> None:
    report = train(model, data, tmp_path / "run", workers=0, seconds=0)
    recipe = load_recipe(model)
    network = build_network(recipe.network.name, **recipe.network.options)
    load_weights(network, report.weights)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state["average"][name].half().float())
        assert not torch.equal(value, state["network"][name])


def test_a_run_is_not_overwritten_and_not_made_up(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match="holds no run to resume"):
        train(model, data, out, resume=True)
    assert not out.exists()
    train(model, data, out, workers=0, seconds=0)
    before = (out / "state.pt").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        train(model, data, out)
    other = _model(tmp_path / "other", _training(), network={**tiny_recipe()["network"]})
    content = yaml.safe_load((other / RECIPE_FILE).read_text())
    content["network"]["options"]["channels"] = [4, 4]
    (other / RECIPE_FILE).write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match="of another network"):
        train(other, data, out, resume=True, workers=0)
    assert (out / "state.pt").read_bytes() == before
    (out / "state.pt").write_bytes(before[: len(before) // 2])
    with pytest.raises(UsageError, match="damaged"):
        train(model, data, out, resume=True, workers=0)


def _trainer(model: Path, *, sided: bool = True) -> SyntheticTrainer:
    torch.manual_seed(0)
    network = WAUNet(1, 12 if sided else 11, channels=(4, 8), upsample="linear")
    return SyntheticTrainer(network, course_of(model).options, sided=sided)


def _sample(*, value: float = 1.0) -> Sample:
    target = torch.zeros(16, 16, 16, dtype=torch.uint8)
    target[8:] = 10
    return Sample(value * torch.rand(16, 16, 16), target, (target > 0).to(torch.uint8))


def _state(trainer: SyntheticTrainer) -> list[torch.Tensor]:
    return [x.clone() for x in chain(trainer.network.state_dict().values(), trainer.average.values())]


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_changes_nothing(model: Path, where: str) -> None:
    trainer = _trainer(model)
    trainer.learn(_sample())
    before = _state(trainer)
    if where == "gradient":
        next(trainer.network.parameters()).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(Diverged, match=r"at step 1: .*lower learning_rate and resume"):
        trainer.learn(_sample(value=float("nan") if where == "loss" else 1.0))
    assert trainer.step == 1
    assert all(torch.equal(a, b) for a, b in zip(before, _state(trainer), strict=True))


def test_a_diverged_run_keeps_its_last_good_state(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SyntheticTrainer.loss

    def spoilt(self: SyntheticTrainer, sample: Sample) -> torch.Tensor:
        return whole(self, sample) * (1.0 if self.step < 2 else np.inf)

    monkeypatch.setattr(SyntheticTrainer, "loss", spoilt)
    with pytest.raises(Diverged, match="at step 2"):
        train(model, data, tmp_path / "run", workers=0)
    monkeypatch.undo()
    assert all(bool(x.isfinite().all()) for x in _tensors(tmp_path / "run" / "state.pt"))
    assert train(model, data, tmp_path / "run", workers=0, resume=True).steps == 6


def test_an_interrupt_within_the_update_saves_no_half_of_it(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "run", torch.optim.AdamW.step
    train(model, data, out, workers=0, seconds=0)
    before = (out / "state.pt").read_bytes()

    def interrupted(self: torch.optim.AdamW) -> None:
        whole(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, out, workers=0, resume=True)
    assert (out / "state.pt").read_bytes() == before


def test_without_sides_every_output_is_a_class(model: Path) -> None:
    trainer = _trainer(model, sided=False)
    assert np.isfinite(trainer.learn(_sample()))
    assert bool((trainer.network.head.weight.grad != 0).any(0).flatten().all())


def test_image_number_n_depends_on_seed_and_n_alone(model: Path) -> None:
    options = course_of(model).options
    subjects = [prepare_subject(head_labels(24), [t.tissue() for t in options.tissues.values()])]
    images = SyntheticImages(subjects, options)
    assert len(images) == 6
    assert [tuple(images[n].image.shape) for n in (0, 2, 3)] == [(16, 16, 16), (16, 16, 16), (24, 16, 16)]
    torch.rand(5)
    assert torch.equal(images[1].image, SyntheticImages(subjects, options)[1].image)
    assert not torch.equal(images[1].image, images[2].image)
    other = SyntheticImages(subjects, options.model_copy(update={"seed": 6}))
    assert not torch.equal(images[1].image, other[1].image)


def test_learning_rate_rises_stays_and_falls_to_nothing(model: Path) -> None:
    options = course_of(model).options.model_copy(update={"warmup": 10, "decay": 0.25, "learning_rate": 2.0})
    rates = [learning_rate_at(step, 100, options) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert set(rates[9:76]) == {2.0}
    assert rates[75:] == pytest.approx([2.0 * (25 - i) / 25 for i in range(25)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "nowhere/*.nii.gz"}, "must hold label maps like nowhere"),
        ({"learning_rate": 0}, "training.learning_rate"),
        ({"stages": []}, "training.stages"),
        ({"synthesis": {"blurr": [0, 1]}}, "training.synthesis: .*blurr"),
        ({"stages": [{"steps": 1, "crop": [16, 15, 16]}]}, r"multiples of 2, got \(16, 15, 16\)"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train(_model(tmp_path / "model", _training(**changes)), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_recipes_that_cannot_be_trained(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no training section"):
        course_of(_model(tmp_path / "model", {}))
    network = {"name": "wau", "options": {**tiny_recipe()["network"]["options"], "out_channels": 11}}
    with pytest.raises(UsageError, match=r"must be 12, one per class of decode.table and the side, got 11"):
        train(_model(tmp_path / "model", _training(), network=network), data, tmp_path / "run")


def test_a_map_without_a_brain_is_refused(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    skull = head_labels(16)
    write(skull.with_voxels(np.where(skull.voxels == 502, 502, 0).astype(np.uint16)), tmp_path / "maps" / "x.nii.gz")
    with pytest.raises(InputRefused, match=r"'x.nii.gz': label map must hold brain tissue"):
        train(_model(tmp_path / "model", _training()), tmp_path, tmp_path / "run")


def test_the_folder_of_a_run_is_a_model(model: Path, data: Path, tmp_path: Path) -> None:
    report = train(model, data, tmp_path / "run", workers=0, seconds=0)
    run = load_model(tmp_path / "run", device="cpu")
    assert run.recipe.weights.sha256 == sha256_of(report.weights)
    assert run.recipe.training == load_recipe(model).training
    card = (tmp_path / "run" / "CARD.md").read_text()
    assert "2 files" in card
    assert "stopped before its end of 6 steps" in card
    assert "a.nii.gz" not in card, "names of files may tell of patients"
