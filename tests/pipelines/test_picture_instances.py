"""A model that tells things apart, from file to result folder, pictures of any size, training on a folder."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medseg.errors import InputRefused, UsageError
from medseg.io.pictures import read_ids
from medseg.picture import Picture
from medseg_pipelines import load_model
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.picture_instance_results import InstanceResult
from medseg_pipelines.picture_windows import probabilities_by_window, windows
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe
from medseg_pipelines.replay import replay
from medseg_pipelines.sections import PictureInference, PicturePreparation
from medseg_pipelines.training import train
from medseg_pipelines.training.folder_pairs import find_pairs, split
from tiny_cells import SIZE, build_tiny_cells, cells, tiny_recipe


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    return build_tiny_cells(tmp_path_factory.mktemp("cells"))


def test_the_result_numbers_things_on_the_pixels_of_the_input(model: Path, tmp_path: Path) -> None:
    Image.fromarray(cells(0)[0]).save(tmp_path / "cells.png")
    result = load_model(model, device="cpu")(tmp_path / "cells.png")
    assert isinstance(result, InstanceResult)
    folder = result.save(tmp_path / "out")
    with Image.open(folder / "labels.png") as image:
        assert image.mode == "I;16"
    ids = read_ids(folder / "labels.png")
    assert ids.shape == SIZE
    assert set(np.unique(ids)) - {0} == set(range(1, len(result.things) + 1))
    figures = {f["name"]: f["value"] for f in json.loads((folder / "statistics.json").read_text())["figures"]}
    assert figures["count"] == len(result.things)
    assert figures["area"] == (ids > 0).sum()
    with (folder / "instances.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows] == list(range(1, len(result.things) + 1))
    for name in ("overlay.png", "preview.png", "probability.png", "statistics.csv", "labels.json"):
        assert (folder / name).stat().st_size > 0
    again = replay(read_manifest(folder / "manifest.json"), tmp_path, model=model)
    assert again.identical


@pytest.mark.parametrize("size", [(30, 25), (40, 100), (101, 99)])
def test_windows_count_every_pixel_once(size: tuple[int, int]) -> None:
    counted = np.zeros(size, int)
    for window in windows(size, PicturePreparation(zoom=2.0), PictureInference(window=80, overlap=0.25)):
        assert all(s.stop - s.start <= 40 for s in window.seen)
        assert all(s.start <= c.start and c.stop <= s.stop for s, c in zip(window.seen, window.counts, strict=True))
        counted[window.counts] += 1
    assert (counted == 1).all()


def test_windows_give_what_the_whole_gives() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (101, 99, 3), np.uint8)
    options = PicturePreparation(zoom=1.0, mix=((0.0, 1.0, 0.0),))

    def pointwise(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((4 * x - 2, 1 - x), 1)

    small, whole = (
        probabilities_by_window(
            pointwise, Picture(pixels), options, PictureInference(window=side, overlap=0.25), outputs=2
        )
        for side in (40, 101)
    )
    np.testing.assert_array_equal(small, whole)
    green = pixels[..., 1] / 255
    np.testing.assert_allclose(small[0] / 255, 1 / (1 + np.exp(2 - 4 * green)), atol=0.003)


def test_memory_of_a_large_picture_is_that_of_its_own_pixels() -> None:
    picture = Picture(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8))
    options = PicturePreparation(zoom=2.0, stretch=(1.0, 99.0))
    tracemalloc.start()
    try:
        inference = PictureInference(window=512, overlap=0.1)
        probabilities_by_window(lambda x: x[:, :2], picture, options, inference, outputs=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    enlarged = 4 * picture.pixels.size * 4  # what the network would see of it as a whole, in float32
    assert peak < enlarged / 3


def test_a_folder_of_numbered_things_becomes_a_model(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        image, ids = cells(number)
        Image.fromarray(image).save(data / f"c{number}.png")
        Image.fromarray(ids).save(data / f"c{number}_nuclei.png")
    (tmp_path / RECIPE_FILE).write_text(yaml.safe_dump(tiny_recipe()), encoding="utf-8")
    report = train(tmp_path, data, tmp_path / "run", workers=0)
    assert report.steps == 2
    assert load_recipe(tmp_path / "run").weights.trained
    result = load_model(tmp_path / "run", device="cpu")(cells(9)[0])
    assert isinstance(result, InstanceResult)
    assert result.labels.shape == SIZE


def test_pairs_are_found_by_name_and_patients_stay_together(tmp_path: Path) -> None:
    for name in [f"p{patient}_{slice_}" for patient in range(6) for slice_ in range(3)]:
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.png").touch()
    pairs = find_pairs(tmp_path)
    assert len(pairs) == 18
    learned, held = split(pairs, 0.3)
    assert {p.patient for p in learned}.isdisjoint({p.patient for p in held})
    assert len(held) == 6
    assert split(reversed(pairs), 0.3)[1] == list(reversed(held))
    table = tmp_path / "who.csv"
    table.write_text("file,patient\n" + "".join(f"{p.image.name},{p.image.stem[-1]}\n" for p in pairs))
    assert {p.patient for p in find_pairs(tmp_path, table)} == {"0", "1", "2"}
    table.write_text("file,patient\n")
    with pytest.raises(UsageError, match="every image"):
        find_pairs(tmp_path, table)
    (tmp_path / "masks" / "p3_1.png").unlink()
    with pytest.raises(UsageError, match=r"lacks the mask of 'p3_1\.png'"):
        find_pairs(tmp_path)
    with pytest.raises(InputRefused, match="2 patients"):
        split(pairs[:3], 0.2)
