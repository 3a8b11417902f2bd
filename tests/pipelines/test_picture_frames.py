"""Models of pictures on every frame of a file: one page each, one table, nothing of other frames."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import Cancelled, InputRefused
from medseg.io.picture_frames import read_frames
from medseg_pipelines import load_model
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.picture_instances import PictureInstanceSegmentation
from medseg_pipelines.picture_restoration import PictureRestoration
from medseg_pipelines.replay import replay
from tiny_cells import SIZE, build_tiny_cells, cells
from tiny_tiles import build_tiny_tiles


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of cells in one file, the last of them black."""
    path = tmp_path_factory.mktemp("video") / "cells.tif"
    frames = [*(cells(number)[0] for number in range(3)), np.zeros(SIZE, np.uint8)]
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others)
    return path


def test_every_frame_gets_the_page_that_it_would_get_alone(video: Path, tmp_path: Path) -> None:
    folder = build_tiny_cells(tmp_path)
    model = load_model(folder, device="cpu")
    assert isinstance(model, PictureInstanceSegmentation)
    place = model.frames(video).save(tmp_path / "cells_out")
    with Image.open(place / "labels.tif") as pages:
        assert getattr(pages, "n_frames", 1) == 4
        for number in range(4):
            pages.seek(number)
            frame = next(read_frames(video, range(number, number + 1)))
            np.testing.assert_array_equal(np.asarray(pages), model(frame, force_scope=True).labels)
    with (place / "frames.csv").open() as file:
        counts = [row["value"] for row in csv.DictReader(file) if row["figure"] == "count"]
    assert len(counts) == 4
    assert json.loads((place / "labels.json").read_text())["file"] == "labels.tif"
    with Image.open(place / "preview.png") as preview:
        assert preview.height > 300
    again = replay(read_manifest(place / "manifest.json"), place, image=video, model=folder)
    assert (again.identical, again.files_intact) == (True, True)


def test_a_model_that_restores_gives_as_many_pages(video: Path, tmp_path: Path) -> None:
    model = load_model(build_tiny_tiles(tmp_path, weights=True), device="cpu")
    assert isinstance(model, PictureRestoration)
    place = model.frames(video, "1-2").save(tmp_path / "out")
    found = [picture.size for picture in read_frames(place / "restored.tif", range(2))]
    assert found == [(2 * SIZE[0], 2 * SIZE[1])] * 2
    assert read_manifest(place / "manifest.json")["output"]["frames"] == 2


def test_a_frame_that_is_refused_is_named_and_a_run_can_be_stopped(video: Path, tmp_path: Path) -> None:
    model = load_model(build_tiny_cells(tmp_path), device="cpu")
    assert isinstance(model, PictureInstanceSegmentation)
    with pytest.raises(InputRefused, match=r"^frame 2: run needs"):
        model.frames(video, "2-3", memory_limit=1_000_000)
    with pytest.raises(Cancelled):
        model.frames(video, progress=lambda event: event.done == 0, force_scope=True)
