"""Learning to restore: from good images with noise added, and from pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from medseg.degradation import add_rician_noise
from medseg.errors import InputRefused, UsageError
from medseg.io import write
from medseg.volume import Volume
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import RECIPE_FILE
from medseg_pipelines.training import course_of, train
from medseg_pipelines.training.restoration import Crops
from tiny_restoration import tiny_restoration_recipe


def _scan(seed: int = 0, *, offset: float = 0.0) -> Volume:
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 36, 12)], indexing="ij")
    rng = np.random.default_rng(seed)
    wave = 300 + 150 * np.sin(4 * axes[0] + seed) + 100 * (np.hypot(axes[0], axes[1]) < 0.5)
    voxels = np.where(np.hypot(axes[0], axes[1]) < 0.9, wave, 2.0) + rng.normal(size=axes[0].shape) + offset
    return Volume(voxels.astype(np.float32), np.diag([2.0, 2, 4, 1]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restoration-data")
    write(_scan(), folder / "a.nii.gz")
    ct = _scan(1)
    write(ct.with_voxels(np.where(ct.voxels < 10, -1000, ct.voxels - 300).astype(np.float32)), folder / "ct.nii.gz")
    for name in ("degraded", "target"):
        (folder / name).mkdir()
    for number in range(2):
        good = _scan(number)
        write(good, folder / "target" / f"{number}.nii.gz")
        write(good.with_voxels(good.voxels * np.float32(0.5)), folder / "degraded" / f"{number}.nii.gz")
    return folder


def _model(folder: Path, training: dict[str, Any], **slices: Any) -> Path:
    content = tiny_restoration_recipe(**slices)
    common = {"kind": "restoration", "steps": 4, "crop": 32, "batch": 2, "learning_rate": 0.01, "warmup": 1, "seed": 3}
    content["training"] = {**common, **training}
    folder.mkdir()
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


MR = {"images": [{"file": "a.nii.gz", "held_out": [4, 6]}], "noise": {"kind": "rician", "level": [0.05, 0.2]}}
CT = {"images": [{"file": "ct.nii.gz", "zooms": [1, 1.5]}], "noise": {"kind": "low-dose", "level": [20, 60]}}
PAIRS = {"pairs": {"degraded": "degraded/*.nii.gz", "target": "target/*.nii.gz"}}


def _crops(model: Path, data: Path) -> Crops:
    course = course_of(model)
    images = course.images(course.files(data))
    assert isinstance(images, Crops)
    return images


def test_noise_learns_and_the_run_is_a_model(data: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    model = _model(tmp_path / "m", {**MR, "steps": 60, "noise": {"kind": "rician", "level": [0.15, 0.2]}})
    train(model, data, tmp_path / "run", workers=0, progress=lambda *at: losses.append(at[2]))
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:5])
    good = _scan()
    noise = add_rician_noise(torch.from_numpy(good.voxels), 90.0, torch.Generator().manual_seed(5))
    restored = load_model(tmp_path / "run", device="cpu")(good.with_voxels(noise.numpy())).volume.voxels
    before, after = (np.abs(x - good.voxels).mean() for x in (noise.numpy(), restored))
    assert after < before


def test_a_resumed_run_equals_one_that_never_stopped(data: Path, tmp_path: Path) -> None:
    model = _model(tmp_path / "m", MR)
    train(model, data, tmp_path / "whole", workers=0)
    train(model, data, tmp_path / "parts", workers=0, seconds=0)
    train(model, data, tmp_path / "parts", workers=0, resume=True)
    whole, parts = (torch.load(tmp_path / n / "state.pt", weights_only=True)["network"] for n in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_batches_depend_on_seed_and_number_alone_and_hold_what_the_network_takes(data: Path, tmp_path: Path) -> None:
    crops = _crops(_model(tmp_path / "m", MR), data)
    batch, again, other = crops[1], crops[1], crops[2]
    assert batch.image.shape == (2, 4, 32, 32)
    assert batch.target.shape == (2, 1, 32, 32)
    assert batch.regions.shape == (2, 32, 32)
    assert torch.equal(batch.image, again.image)
    assert not torch.equal(batch.image, other.image)
    error = (batch.image[:, 1:2] - batch.target).abs().mean()
    assert 0.01 < error < 0.3, "the middle slice of the context is the target with noise"


def test_crops_with_a_guide_come_from_slabs_that_a_resumed_run_draws_again(data: Path, tmp_path: Path) -> None:
    model = _model(tmp_path / "model", MR | {"steps": 30}, guide=True)
    crops, again = _crops(model, data), _crops(model, data)
    batches = [crops[number] for number in (0, 25, 26)]
    assert torch.equal(again[26].image, batches[2].image), "whatever was drawn before"
    assert len(crops.slabs) <= 8
    assert batches[0].image.shape == (2, 5, 32, 32)
    for batch in batches:
        noisy, guide, good = batch.image[:, 1], batch.image[:, 3], batch.target[:, 0]
        assert (guide - good).abs().mean() < 0.8 * (noisy - good).abs().mean(), "same place, same orientation"
    train(model, data, tmp_path / "run", workers=0, seconds=0)


def test_held_out_slices_are_never_seen(data: Path, tmp_path: Path) -> None:
    stacks = _crops(_model(tmp_path / "m", MR), data).stacks
    assert [stack.target.shape[2] for stack in stacks] == [4, 6]


def test_images_are_binned_and_have_noise_levels_of_their_own(data: Path, tmp_path: Path) -> None:
    sources = [{"file": "a.nii.gz"}, {"file": "a.nii.gz", "binned": 2, "level": [0.5, 0.5]}]
    crops = _crops(_model(tmp_path / "m", MR | {"images": sources, "crop": 16}), data)
    whole, binned = (stack.target for stack in crops.stacks)
    assert (whole.shape, binned.shape) == ((40, 36, 12), (20, 18, 6))
    assert binned[3, 4, 5] == pytest.approx(whole[6:8, 8:10, 10:12].mean(), rel=1e-5)
    levels = [crops._level(stack, torch.Generator().manual_seed(0)) for stack in crops.stacks]
    assert 0.05 <= levels[0] <= 0.2
    assert levels[1] == pytest.approx(0.5)


def test_what_is_cut_out_after_the_scan_holds_no_noise_and_is_carried_on(data: Path, tmp_path: Path) -> None:
    good = _scan()
    cut = np.where(np.indices(good.shape)[0] > 13, good.voxels.clip(2), 0).astype(np.float32)
    write(good.with_voxels(cut), data / "cut.nii.gz")
    noise = MR["noise"] | {"cut_out": 1.0}
    crops = _crops(_model(tmp_path / "m", {"images": [{"file": "cut.nii.gz"}], "noise": noise}), data)
    slab = crops._degraded(crops.stacks[0], (slice(None),) * 3, torch.Generator().manual_seed(1))
    assert not slab.acquired[:14].any()
    assert slab.acquired[14:].all()
    assert np.array_equal(slab.degraded[14:], slab.acquired[14:])
    for part in (slab.degraded, slab.target):
        assert not part[:9].any()
        assert part[9:14].all(), "five voxels further, in both alike"
    assert np.abs(slab.degraded[9:14] - slab.target[9:14]).mean() < np.abs(slab.degraded - slab.target)[14:].mean()


def test_ct_noise_has_the_level_asked_for_inside_the_body(data: Path, tmp_path: Path) -> None:
    slices = {"source": [-1000.0, 1000.0]}
    crops = _crops(_model(tmp_path / "m", CT, **slices), data)
    assert [stack.target.shape[:2] for stack in crops.stacks] == [(40, 36), (60, 54)]
    for stack in crops.stacks:
        assert stack.noise is not None
        body = stack.target * 2000 - 1000 > -300
        assert stack.noise[0][body].std() == pytest.approx(1.0, rel=0.1)
    assert 0.01 <= crops._level(crops.stacks[0], torch.Generator().manual_seed(0)) <= 0.03  # 20 to 60 HU of 2000


def test_pairs_are_learned_as_they_are(data: Path, tmp_path: Path) -> None:
    crops = _crops(_model(tmp_path / "m", PAIRS, noise_map=False), data)
    batch = crops[0]
    ratio = batch.target[:, 0] / batch.image[:, 1].clamp(min=1e-3)
    assert ratio.median().item() == pytest.approx(2.0, rel=0.01), "both are scaled alike"
    train(tmp_path / "m", data, tmp_path / "run", workers=0, seconds=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"file": "gone.nii.gz"}]}, "must hold gone.nii.gz, found none"),
        ({"images": []}, "give either images with noise, or pairs"),
        ({"crop": 30}, "training.crop must be a multiple of 8, got 30"),
        ({"noise": {"kind": "poisson", "level": [1, 2]}}, "training.noise.kind"),
    ],
)
def test_wrong_options_are_told(data: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(_model(tmp_path / "m", {**MR, **changes}), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_does_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="at least 64 pixels"):
        _crops(_model(tmp_path / "m", {**PAIRS, "crop": 64}, noise_map=False), data)
    model = _model(tmp_path / "n", {"pairs": {"degraded": "degraded/*.nii.gz", "target": "nowhere/*.nii.gz"}})
    with pytest.raises(UsageError, match="found 2 and 0"):
        train(model, data, tmp_path / "run")
