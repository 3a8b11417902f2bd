"""Segmentation by example: the grid, what is kept of encoded slices, agreement of runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg.io import read
from medseg.picture import Picture
from medseg_pipelines.load import load_model
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.replay import replay
from medseg_pipelines.support import create_support_set
from medseg_pipelines.support_pools import pools_of
from medseg_pipelines.support_segmentation import (
    AGREEMENT_FILE,
    Agreement,
    SupportResult,
    SupportSegmentation,
    _remarks,
)
from medseg_pipelines.support_store import read_support_set, support_sets_folder
from medseg_pipelines.support_walk import SliceFrame, Walk, _Counts, runs_without
from medseg_pipelines.words import UNTRAINED
from tiny_support import outlined, outlined_files, support_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two sets and a model that serve all tests."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEG_HOME", str(folder))
        images, labels = outlined_files(folder / "cases")
        create_support_set("balls", images, labels, names={1: "large ball", 2: "small ball"})
        pictures = [Picture(_pixels(seed)) for seed in range(3)]
        masks = [Picture(np.where(_pixels(0) > 128, 1, 0).astype(np.uint8)) for _ in range(3)]
        create_support_set("photos", pictures, masks, names={1: "bright"})
        support_model(folder / "model")
        yield folder


@pytest.fixture(scope="module")
def model(home: Path) -> SupportSegmentation:
    found = load_model(home / "model", device="cpu")
    assert isinstance(found, SupportSegmentation)
    return found


@pytest.fixture(scope="module")
def result(model: SupportSegmentation, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "out"
    return model(home / "cases" / "image0.nii.gz", support="balls").save(folder)


def _pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 56, 1), dtype=np.uint8)


def test_the_result_lies_on_the_grid_of_the_input_and_names_its_set(result: Path, home: Path) -> None:
    given = read(home / "cases" / "image0.nii.gz")
    made = read(result / "labels.nii.gz", kind="labels")
    assert given.grid.equals(made.grid, tolerance=0)
    manifest = json.loads((result / "manifest.json").read_text())
    card = json.loads((support_sets_folder() / "balls" / "support.json").read_text())
    assert manifest["support"]["sha256"] == manifest["options"]["support_sha256"] == card["sha256"]
    assert manifest["warnings"][0] == UNTRAINED
    names = [label["name"] for label in json.loads((result / "labels.json").read_text())["labels"]]
    assert names == ["large ball", "small ball"]
    agreed = json.loads((result / AGREEMENT_FILE).read_text())["structures"]
    assert [each["name"] for each in agreed] == names
    assert all(0 <= each["agreement"] <= 1 for each in agreed)


def test_a_run_repeats_bit_for_bit_from_encoded_slices_that_were_kept(result: Path, home: Path) -> None:
    kept = sorted((home / "support-cache").iterdir())
    assert len(kept) == 3, "one file per case"
    manifest = read_manifest(result / "manifest.json")
    again = replay(manifest, result, image=home / "cases" / "image0.nii.gz", model=home / "model")
    assert again.identical
    for path in kept:
        path.write_bytes(b"damaged")
    assert replay(manifest, result, image=home / "cases" / "image0.nii.gz", model=home / "model").identical
    assert all(path.stat().st_size > 100 for path in kept), "damaged ones are made anew"


def test_a_set_in_a_folder_of_its_own_leaves_nothing_elsewhere_and_shows_doubt(
    model: SupportSegmentation, home: Path, tmp_path: Path
) -> None:
    paths = [[home / "cases" / f"{kind}{number}.nii.gz" for number in range(3)] for kind in ("image", "label")]
    before = [sorted(folder.iterdir()) for folder in (support_sets_folder(), home / "support-cache")]
    create_support_set("balls", *paths, folder=tmp_path / "mine")
    support = read_support_set(tmp_path / "mine", cache=tmp_path / "cache")
    found = model(paths[0][0], support=support, keep_doubt=True)
    assert isinstance(found, SupportResult)
    assert found.doubt is not None
    assert found.doubt.grid.equals(found.image.grid, tolerance=0)
    assert (found.doubt.voxels.dtype, int(found.doubt.voxels.max()) <= 100) == (np.uint8, True)
    assert bool(found.doubt.voxels.any()) == any(each.dice != 1 for each in found.agreement)
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert before == [sorted(folder.iterdir()) for folder in (support_sets_folder(), home / "support-cache")]


def test_a_set_that_is_another_one_now_is_not_used_for_a_repetition(model: SupportSegmentation, home: Path) -> None:
    with pytest.raises(ModelMissing, match="is not what it was in that run"):
        model(home / "cases" / "image0.nii.gz", support="balls", support_sha256="0" * 64)


def test_pictures_are_segmented_too(model: SupportSegmentation, tmp_path: Path) -> None:
    found = model(Picture(_pixels(7)), support="photos")
    assert found.labels.shape == (40, 56)
    assert found.probability.shape == (1, 40, 56)
    folder = found.save(tmp_path / "out")
    assert (folder / "labels.png").is_file()
    assert json.loads((folder / AGREEMENT_FILE).read_text())["structures"][0]["name"] == "bright"


def test_images_of_another_kind_are_refused(model: SupportSegmentation, home: Path) -> None:
    image, _ = outlined(5)
    hounsfield = image.with_voxels(image.voxels * 20 - 1000)
    with pytest.raises(InputRefused, match="support set 'photos' is of pictures"):
        model(image, support="photos")
    with pytest.raises(InputRefused, match="is of volumes"):
        model(Picture(_pixels(0)), support="balls")
    with pytest.raises(InputRefused, match=r"look like CT|is CT"):
        model(hounsfield, support="balls")
    with pytest.raises(UsageError, match="needs a support set"):
        model(image)
    with pytest.raises(UsageError, match="support set 'spleen' is not there"):
        model(image, support="spleen")
    with pytest.raises(InputRefused, match="run needs about"):
        model(image, support="balls", memory_limit=1000)


def test_a_frame_leads_there_and_back() -> None:
    frame = SliceFrame.of((30, 50), (2.0, 1.0), 64, 40.0)
    plane = np.zeros((30, 50), np.float32)
    plane[8:20, 15:40] = 1
    seen = frame.enter(plane)
    assert seen.shape == (64, 64)
    assert abs(float(seen.sum()) * (60 / 64) ** 2 - 12 * 25 * 2) < 30, "its area in mm is kept"
    back = frame.leave(seen)
    assert ((back > 0.5) == (plane > 0.5)).mean() > 0.97
    ids = np.where(plane > 0, 7, 0).astype(np.uint8)
    assert set(np.unique(frame.enter(ids))) == {0, 7}


def test_runs_leave_out_one_case_after_the_other() -> None:
    assert runs_without(3, 2) == [None, 0, 1]
    assert runs_without(3, 9) == [None, 0, 1, 2]
    assert runs_without(3, 0) == [None]


def test_a_run_never_reads_the_case_it_leaves_out(model: SupportSegmentation, home: Path) -> None:
    from medseg_pipelines.support_store import load_support_set

    network = model._net
    pools = pools_of(load_support_set("balls"), network, weights="w", side=64, device=torch.device("cpu"))
    deep = network.features(torch.rand(1, 3, 64, 64)).deep
    chosen = pools[0].nearest(deep, [None, 0, 2], 3)
    assert chosen.shape == (3, 3)
    assert 0 not in pools[0].case[chosen[1]]
    assert 2 not in pools[0].case[chosen[2]]


def test_an_empty_slice_is_neither_segmented_nor_remembered(model: SupportSegmentation, home: Path) -> None:
    from medseg_pipelines.support_store import load_support_set

    pools = pools_of(load_support_set("balls"), model._net, weights="w", side=64, device=torch.device("cpu"))
    walk = Walk(model._net, pools, [None], 2, torch.device("cpu"))
    assert not walk.step(np.zeros((1, 64, 64), np.float32)).any()
    assert walk._banks == [[], []]
    for _ in range(3):
        walk.step(np.random.default_rng(0).random((1, 64, 64), np.float32))
    assert [len(bank) for bank in walk._banks] == [2, 2], "no more than the bank holds"
    assert walk.agreement() == [None, None], "one run has nothing to agree with"


def test_agreement_is_the_mean_dice_of_each_two_runs() -> None:
    counts = _Counts(np.zeros((3, 3)))
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, 0], masks[1, 0], masks[2, :2] = True, True, True
    counts.add(masks)
    assert counts.agreement() == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert _Counts(np.zeros((3, 3))).agreement() == 1.0, "all of them found nothing"


def test_what_is_said_of_doubt_and_of_nothing() -> None:
    agreed = [Agreement(1, "a", 0.95), Agreement(2, "b", 0.4), Agreement(3, "c", 1.0), Agreement(4, "d", 0.0)]
    assert _remarks(agreed, [True, True, False, False]) == [
        "the model is unsure of b: runs without one of the cases agree to a Dice of 0.40",
        "c: nothing was found (all runs agree)",
        "d: nothing was found (some runs found something)",
    ]
