"""Finer voxels: where they lie, that windows leave no seams, that the result fits what was acquired."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medseg import io
from medseg.acquisition import along_axes, lanczos_axis
from medseg.degradation import add_rician_noise
from medseg.errors import InputRefused, UsageError
from medseg.networks.disgan import doubled
from medseg.volume import Grid
from medseg_pipelines import inferers, superresolution_steps
from medseg_pipelines.blending import blended
from medseg_pipelines.load import load_model
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.recipe import Upscaling
from medseg_pipelines.replay import replay
from medseg_pipelines.slices import Scaling
from medseg_pipelines.superresolution_grid import FinerGrid, slice_distance
from medseg_pipelines.superresolution_steps import with_guide
from tiny_superres import blobs, build_superres_model

ALL = Upscaling(axes="all", acquisition="kspace", window=(16, 16, 16))
SLICES = Upscaling(axes="slices", acquisition="profile", window=(16, 16, 16))


@pytest.fixture(scope="module", params=["all", "slices"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_superres_model(tmp_path_factory.mktemp(request.param), request.param)


def corners(grid: Grid) -> np.ndarray:
    """The eight outer corners of the field of view, (8, 3) mm."""
    index = np.array(list(product(*((-0.5, size - 0.5) for size in grid.shape))))
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def affines() -> list[np.ndarray]:
    """All 48 orientations, and oblique ones, with three different spacings."""
    found = []
    for order, signs in product(permutations(range(3)), product((-1, 1), repeat=3)):
        matrix = np.eye(4)
        matrix[:3, :3] = np.eye(3)[:, order] * signs * (0.9, 1.1, 4.7)
        found.append(matrix)
    for seed in range(8):
        matrix = np.eye(4)
        matrix[:3, :3] = Rotation.random(rng=seed).as_matrix() * (1.3, 0.7, 3.1)
        matrix[:3, 3] = np.random.default_rng(seed).uniform(-300, 300, 3)
        found.append(matrix)
    return found


@pytest.mark.parametrize("upscaling", [ALL, SLICES], ids=["all", "slices"])
@pytest.mark.parametrize("shape", [(7, 12, 9), (1, 5, 2)], ids=str)
def test_the_outer_corners_stay_where_they_were(upscaling: Upscaling, shape: tuple[int, int, int]) -> None:
    for affine in affines():
        finer = FinerGrid.of(Grid(shape, affine), upscaling)
        np.testing.assert_allclose(corners(finer.after), corners(finer.before), rtol=0, atol=1e-9)
        assert finer.after.shape == tuple(n * f for n, f in zip(shape, finer.factors, strict=True))


def test_slices_become_as_isotropic_as_whole_parts_allow() -> None:
    grid = Grid((20, 8, 20), np.diag([0.9, 5.0, 0.9, 1.0]))
    assert FinerGrid.of(grid, SLICES).factors == (1, 6, 1)
    assert FinerGrid.of(Grid((9, 9, 9), np.diag([1, 1, 20.0, 1])), SLICES).factors == (1, 1, 8)
    with pytest.raises(InputRefused, match="slices at least"):
        FinerGrid.of(Grid((9, 9, 9), np.diag([1, 1, 1.2, 1])), SLICES)


def test_distances_are_those_of_the_voxels_from_slice_centres() -> None:
    assert (slice_distance(6, 3) * 8).tolist() == pytest.approx([1, 0, 1, 1, 0, 1], abs=1e-6)
    assert (slice_distance(4, 2) * 8).tolist() == pytest.approx([0.5] * 4, abs=1e-6)


@pytest.mark.parametrize("scale", [1, 2])
def test_windows_leave_no_seams(scale: int) -> None:
    image = torch.randn(19, 23, 11, generator=torch.Generator().manual_seed(0))
    layout = inferers.plan(image.shape, (8, 9, 6), 0.25, outputs=1)
    steps: list[tuple[int, int]] = []
    found = blended(
        lambda seen: seen[:, :1].repeat_interleave(scale, 2).repeat_interleave(scale, 3).repeat_interleave(scale, 4),
        lambda place: torch.stack((image[place], image[place])),
        layout,
        image.shape,
        scale=scale,
        progress=lambda done, total: steps.append((done, total)),
    )
    expected = image.numpy()
    for axis in range(3):
        expected = expected.repeat(scale, axis)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert steps[-1] == (layout.tiles, layout.tiles)


def test_windows_come_nearer_to_the_whole_with_overlap(tmp_path: Path) -> None:
    model = load_model(build_superres_model(tmp_path, "all"))
    image = blobs((24, 22, 20), np.eye(4))
    scaled = torch.from_numpy(image.voxels / np.percentile(image.voxels, 99.5))
    with torch.inference_mode():
        whole = model._predict(scaled[None, None])[0, 0].numpy()
    off = []
    for overlap in (0.0, 0.25, 0.5):
        layout = inferers.plan(image.shape, (12, 12, 12), overlap, outputs=1)
        tiled = blended(model._predict, lambda place: scaled[place][None], layout, image.shape, scale=2)
        off.append(float(np.abs(tiled - whole).mean()))
    assert off[0] > off[1] > off[2]


def image_for(model: Path, shape: tuple[int, int, int] = (21, 18, 9)):
    affine = np.diag([1.0, 1.0, 3.0, 1.0]) if model.name.startswith("slices") else np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-10, 7, 3)
    return blobs(shape, affine)


def test_a_result_folder_holds_everything_and_replays(model: Path, tmp_path: Path) -> None:
    image = image_for(model)
    io.write(image, tmp_path / "scan.nii.gz")
    result = load_model(model)(tmp_path / "scan.nii.gz", enforce_consistency=True)
    folder = result.save(tmp_path / "result")
    assert {path.name for path in folder.iterdir()} == {
        "restored.nii.gz", "difference.nii.gz", "statistics.json", "preview.png", "manifest.json"
    }  # fmt: skip
    restored = io.read(folder / "restored.nii.gz")
    np.testing.assert_allclose(corners(restored.grid), corners(image.grid), rtol=0, atol=1e-5)  # NIfTI-1 holds float32
    assert io.read(folder / "difference.nii.gz").grid.equals(image.grid)
    manifest = read_manifest(folder / "manifest.json")
    assert manifest["grid"]["shape"] == list(restored.shape)
    assert json.loads((folder / "statistics.json").read_text())["consistency"] == manifest["consistency"]
    again = replay(manifest, folder, model=model)
    assert again.identical
    assert again.files_intact


def test_the_projection_makes_the_result_fit(model: Path) -> None:
    image = image_for(model)
    plain, fitted = (load_model(model)(image, enforce_consistency=wanted) for wanted in (False, True))
    assert plain.enforced is None
    assert fitted.consistency == plain.consistency
    assert fitted.enforced.difference < 1e-3 * plain.consistency.difference
    largest = float(np.abs(plain.difference.voxels).max())
    assert largest == pytest.approx(plain.consistency.largest, rel=1e-4)
    recipe = plain.recipe.upscaling
    finer = FinerGrid.of(image.grid, recipe)
    again = finer.acquisition(recipe).measure(torch.from_numpy(fitted.volume.voxels)).numpy()
    np.testing.assert_allclose(again, image.voxels, rtol=0, atol=1e-2)


def test_turned_axes_give_the_same_voxels(model: Path) -> None:
    image = image_for(model)
    turned = image.with_voxels(image.voxels)
    turned = type(image)(image.voxels.transpose(2, 0, 1), image.affine[:, [2, 0, 1, 3]])
    first, second = (load_model(model)(volume) for volume in (image, turned))
    if model.name.startswith("slices"):  # the network always sees the slices along the last axis, the others in order
        np.testing.assert_allclose(second.volume.voxels, first.volume.voxels.transpose(2, 0, 1), rtol=0, atol=1e-2)
    assert second.volume.shape == tuple(first.volume.shape[axis] for axis in (2, 0, 1))
    np.testing.assert_allclose(corners(second.volume.grid).max(0), corners(image.grid).max(0), rtol=0, atol=1e-9)


def test_a_branch_that_gives_nothing_leaves_the_interpolation(tmp_path: Path) -> None:
    model = load_model(build_superres_model(tmp_path, "all"))
    for parameter in model._network.conv3[2].parameters():
        torch.nn.init.zeros_(parameter)
    image = blobs((16, 15, 14), np.diag([2.0, 2.0, 2.0, 1.0]))
    expected = doubled(torch.from_numpy(image.voxels)[None, None])[0, 0].clamp(min=0)
    np.testing.assert_allclose(model(image).volume.voxels, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("axes", ["all", "slices"])
def test_a_network_with_a_guide_starts_from_non_local_means(
    axes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superresolution_steps, "_PLANES", 7)  # the guide is found in parts, and shows none
    model = load_model(build_superres_model(tmp_path, axes, guide=True))
    for parameter in model._network.conv3[2].parameters():
        torch.nn.init.zeros_(parameter)
    clean = blobs((16, 15, 14) if axes == "all" else (16, 15, 5), np.diag([2.0, 2.0, 2.0 if axes == "all" else 6, 1]))
    noisy = add_rician_noise(torch.from_numpy(clean.voxels), 40.0, torch.Generator().manual_seed(0)).numpy()
    for image in (clean, clean.with_voxels(noisy)):
        scaling = Scaling.of_percentile(image.voxels, 99.5)
        seen = with_guide(torch.from_numpy(scaling.apply(image.voxels)))
        guide, found = seen[0] * scaling.width, model(image).volume.voxels
        if axes == "all":
            expected = doubled(guide[None, None])[0, 0]
        else:
            expected = along_axes(guide, [None, None, lanczos_axis(5, 3).float()])
        np.testing.assert_allclose(found, expected.clamp(min=0), rtol=0, atol=1e-2)
        assert torch.equal(seen[1] * scaling.width, guide) == (image is clean), "faint noise stays"


def test_memory_and_options_are_checked(model: Path) -> None:
    runner, image = load_model(model), image_for(model)
    with pytest.raises(InputRefused, match="memory-limit"):
        runner(image, memory_limit=1000)
    with pytest.raises(UsageError, match="neither a noise level nor regions"):
        runner(image, noise=3.0)
