"""Restoring a volume: exact grid, own units, every slice once, regions kept and given back, replay bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import medseg
from medseg.errors import Cancelled, InputRefused, UsageError
from medseg.guide import non_local_means, repeated, tissue_noise
from medseg.volume import Volume
from medseg_pipelines import slice_restoration
from medseg_pipelines.load import load_model
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.recipe import Slices
from medseg_pipelines.replay import replay
from medseg_pipelines.restoration import Restoration
from medseg_pipelines.restored import Quality, RestoredResult
from medseg_pipelines.slices import Scaling, network_input, restored_slice, slice_axis
from tiny_model import build_tiny_model, head
from tiny_restoration import build_tiny_restoration


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_restoration(tmp_path_factory.mktemp("tiny-denoise"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Restoration:
    loaded = load_model(folder, device="cpu")
    assert isinstance(loaded, Restoration)
    return loaded


def _run(model: Restoration, image: Volume | Path, **options: object) -> RestoredResult:
    result = model(image, **options)
    assert isinstance(result, RestoredResult)
    return result


def _noisy_head(shape: tuple[int, int, int] = (37, 30, 9), spacing: tuple[float, float, float] = (4, 5, 16)) -> Volume:
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    voxels = 300 * (radius < 0.8) + np.random.default_rng(1).normal(size=shape) * 9 + 20
    return Volume(voxels.clip(0).astype(np.int16), np.diag([*spacing, 1.0]))


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)], ids=str)
def test_result_lies_on_the_grid_and_keeps_the_unit(model: Restoration, signs: tuple[int, int, int]) -> None:
    image = _noisy_head()
    image = Volume(image.voxels, image.affine @ np.diag([*signs, 1.0]))
    result = _run(model, image)
    assert result.volume.grid.equals(image.grid)
    assert result.volume.voxels.dtype == np.float32
    change = result.volume.voxels - image.voxels
    assert 0 < np.abs(change).max() < 300
    assert np.array_equal(result.residual.voxels, change)


def test_an_untouched_image_comes_back_exactly(tmp_path: Path) -> None:
    model = load_model(build_tiny_restoration(tmp_path, change=0.0), device="cpu")
    image = _noisy_head()
    # outside of the limits too, where the network sees values that were cut off
    image = image.with_voxels(np.where(image.voxels == image.voxels.max(), 30000, image.voxels).astype(np.int16))
    assert np.array_equal(model(image).volume.voxels, image.voxels.astype(np.float32))


def test_a_network_with_a_guide_starts_from_non_local_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slice_restoration, "_RUN", 2)  # guide and structure are found in parts, and show none
    model = load_model(build_tiny_restoration(tmp_path, change=0.0, guide=True), device="cpu")
    image = _noisy_head()
    scaling = Scaling.of(image.voxels, model.recipe.slices)
    scaled = torch.from_numpy(scaling.apply(image.voxels))
    for options, level in (({}, tissue_noise(scaled)), ({"noise": 30.0}, 30.0 / scaling.width)):
        clean = non_local_means(scaled, level)
        expected = (clean + repeated(scaled - clean, clean, level)).clamp(min=0).numpy() * scaling.width
        np.testing.assert_allclose(_run(model, image, **options).volume.voxels, expected, rtol=0, atol=1e-2)


def test_what_was_cut_out_stays_and_its_border_is_no_edge_to_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(build_tiny_restoration(tmp_path), device="cpu")
    scan = _noisy_head()
    cut = scan.with_voxels(np.where(np.indices(scan.shape)[0] < 20, 0, scan.voxels.clip(10)).astype(np.int16))
    told: list[torch.Tensor] = []

    def seen(*args: Any) -> torch.Tensor:
        told.append(network_input(*args))
        return told[-1]

    monkeypatch.setattr(slice_restoration, "network_input", seen)
    change = _run(model, cut).residual.voxels
    assert not change[:20].any()
    assert change[20:].any()
    middle = torch.cat(told)[:, 1]
    assert bool((middle[:, 15:20] > 0).all()), "carried on as far as neighbours are read"
    assert not middle[:, :15].any()
    noise = torch.cat(told)[:, 3]
    assert float(noise[:, 20:30].mean()) == pytest.approx(
        9 / Scaling.of(cut.voxels, model.recipe.slices).width, rel=0.4
    )


@pytest.mark.parametrize("name", ["t1_ps11_norm.mgz", "t1gd_skullstripped.nii.gz"])
def test_no_rim_shows_where_a_skull_was_cut_away(shared_data: Path, name: str) -> None:
    brain = medseg.read(shared_data / "volumes" / name)
    voxels = np.ascontiguousarray(np.moveaxis(brain.voxels, slice_axis(brain), 2)[:96, :96, 66:78].astype(np.float32))
    result = _run(load_model("mr-denoise", device="cpu"), Volume(voxels, np.diag([1.0, 1, 1, 1])), force_scope=True)
    depth = ndimage.distance_transform_edt(voxels > 0)
    rim, inner = ((depth >= near) & (depth < near + 1) for near in (1, 4))
    change = result.residual.voxels
    assert inner.sum() > 300
    assert abs(change[rim].mean()) < 0.15 * result.quality.noise_before
    assert (change[depth == 0] == 0).mean() > 0.999, "but for single voxels of the same value within"


def test_a_share_of_what_the_guide_took_is_given_back() -> None:
    seen = torch.rand(2, 5, 4, 6, generator=torch.Generator().manual_seed(3))
    found = seen.clone()
    found[:, 1] += 0.25
    found[:, 3] -= 0.5
    expected = 0.75 * seen[:, 3:4] + 0.25 * seen[:, 1:2] - 0.5
    torch.testing.assert_close(restored_slice(seen, found, context=3, guide=True), expected)
    assert torch.equal(restored_slice(seen, found, context=3, guide=False), found[:, 1:2])


def test_slices_lie_across_the_coarsest_axis() -> None:
    voxels = np.zeros((4, 5, 6))
    assert slice_axis(Volume(voxels, np.diag([5.0, 1, 1, 1]))) == 0
    assert slice_axis(Volume(voxels, np.diag([1.0, 1.05, 1, 1]))) == 2
    sagittal = np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    assert slice_axis(Volume(voxels, sagittal)) == 1


def test_network_sees_neighbours_and_the_ends_repeated() -> None:
    stack = np.broadcast_to(np.arange(4, dtype=np.float32), (12, 11, 4)).copy()
    seen = network_input(stack, [0, 3], Slices(context=3, noise_map=True), level=0.5)
    assert seen.shape == (2, 4, 12, 11)
    assert seen[:, :, 0, 0].tolist() == [[0, 0, 1, 0.5], [2, 3, 3, 0.5]]
    guide = np.full((12, 11, 2), 7, np.float32)
    seen = network_input(stack, [0, 3], Slices(context=3, noise_map=True, guide=True), level=0.5, guide=guide)
    assert seen[:, :, 0, 0].tolist() == [[0, 0, 1, 7, 0.5], [2, 3, 3, 7, 0.5]]


def test_scaling_of_ct_is_fixed_and_that_of_mr_follows_the_image() -> None:
    voxels = np.linspace(0, 400, 1000)
    assert Scaling.of(voxels, Slices(source=(-1000, 1000))).apply(np.array([0.0])) == 0.5
    assert Scaling.of(voxels, Slices()).high == pytest.approx(398, abs=1)
    assert Scaling.of(np.zeros(5), Slices()).apply(np.zeros(2)).tolist() == [0, 0]


def test_saved_folder_replays_bit_for_bit(model: Restoration, folder: Path, tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii.gz"
    medseg.write(_noisy_head(), scan)
    result = _run(model, scan, keep_regions=True)
    out = result.save(tmp_path / "out")
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("restored.nii.gz", "residual.nii.gz", "regions.nii.gz", "regions.png"),
        *("preview.png", "statistics.json", "manifest.json"),
    }
    restored, residual = (medseg.read(out / f"{name}.nii.gz") for name in ("restored", "residual"))
    np.testing.assert_array_equal(restored.voxels, result.volume.voxels)
    np.testing.assert_allclose(restored.voxels - residual.voxels, medseg.read(scan).voxels, atol=1e-3)
    manifest = read_manifest(out / "manifest.json")
    statistics = json.loads((out / "statistics.json").read_text())
    for key in ("noise_before", "noise_after"):
        assert manifest["quality"][key] == statistics[key] > 0
    answer = replay(manifest, out, model=folder)
    assert (answer.identical, answer.files_intact) == (True, True)


def test_given_regions_are_used_kept_and_replayed(model: Restoration, folder: Path, tmp_path: Path) -> None:
    image = _noisy_head()
    scan = tmp_path / "scan.nii.gz"
    medseg.write(image, scan)
    whole = image.with_voxels(np.zeros(image.shape, np.uint8), kind="labels")
    halves = whole.with_voxels((np.arange(37)[:, None, None] > 17) * np.ones((1, *image.shape[1:]), np.uint8))
    one, two = _run(model, scan, regions=whole), _run(model, scan, regions=halves)
    assert not np.array_equal(one.volume.voxels, two.volume.voxels)
    out = two.save(tmp_path / "out")
    assert np.array_equal(medseg.read(out / "regions.nii.gz").voxels, halves.voxels)
    assert replay(read_manifest(out / "manifest.json"), out, model=folder).identical
    (out / "regions.nii.gz").unlink()
    with pytest.raises(InputRefused, match="regions of the run must lie in the result folder"):
        replay(read_manifest(out / "manifest.json"), out, model=folder)


def test_regions_on_another_grid_or_no_ids_are_refused(model: Restoration) -> None:
    image = _noisy_head()
    moved = image.affine.copy()
    moved[0, 3] += 1
    with pytest.raises(InputRefused, match="must lie on the grid of the image"):
        model(image, regions=Volume(np.zeros(image.shape, np.uint8), moved))
    with pytest.raises(InputRefused, match="whole numbers from 0 on"):
        model(image, regions=image.with_voxels(np.full(image.shape, 0.5)))


def test_a_given_noise_level_is_used_and_recorded(model: Restoration) -> None:
    image = _noisy_head()
    found, told = _run(model, image), _run(model, image, noise=40.0)
    assert told.manifest["options"]["noise"] == 40.0
    assert not np.array_equal(found.volume.voxels, told.volume.voxels)
    with pytest.raises(UsageError, match="noise level must be above 0, got -1"):
        model(image, noise=-1.0)


def test_a_segmenting_model_takes_no_noise_level(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes neither a noise level nor regions"):
        load_model(build_tiny_model(tmp_path), device="cpu")(head(), noise=3.0)


def test_progress_counts_slices_and_false_cancels(model: Restoration) -> None:
    seen: list[tuple[str, int, int]] = []
    model(_noisy_head(), progress=lambda event: seen.append((event.stage, event.done, event.total)))
    assert ("restoring", 9, 9) in seen
    assert [stage for stage, done, _ in seen if done == 0] == ["reading", "preparing", "restoring", "measuring"]
    with pytest.raises(Cancelled):
        model(_noisy_head(), progress=lambda event: event.done == 0)


def test_plan_and_memory_limit(model: Restoration) -> None:
    from medseg_pipelines.case import read_case

    plan = model.plan(read_case(_noisy_head()))
    assert (plan.grid, plan.tiles) == ((37, 30, 9), 9)
    with pytest.raises(InputRefused, match="run needs about"):
        model(_noisy_head(), memory_limit=1000)


def test_ct_is_not_taken_for_mr_and_is_never_chosen(model: Restoration) -> None:
    image = _noisy_head()
    with pytest.raises(InputRefused, match="look like CT"):
        model(image.with_voxels(image.voxels - np.int16(1000)))


def test_quality_tells_removed_noise_from_changed_anatomy() -> None:
    clean = np.full((40, 40, 6), 100.0, np.float32)
    clean[10:30, 10:30] = 200.0
    noisy = clean + 5 * np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
    good = Quality.of(noisy, clean)
    assert good.noise_before == pytest.approx(5, rel=0.1)
    assert good.noise_after == 0
    assert good.doubts("HU") == []
    erased = clean.copy()
    erased[15:20, 15:20] = 100.0
    assert "look at the residual" in Quality.of(noisy, erased).doubts("HU")[0]


def test_pictures_show_what_was_done(model: Restoration, tmp_path: Path) -> None:
    out = _run(model, _noisy_head()).save(tmp_path / "out")
    with Image.open(out / "preview.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 60)
    assert red[:52].mean() > 0.5, "untrained weights carry a red banner"
    with Image.open(out / "regions.png") as picture:
        assert max(picture.size) == 900
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100
