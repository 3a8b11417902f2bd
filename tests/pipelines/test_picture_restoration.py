"""Pictures restored or enlarged: exact size and type, windows without seams, learned from pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg_app.cli import app
from medseg_pipelines.load import load_model
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.picture_restoration import PictureRestoration
from medseg_pipelines.picture_restored import RestoredPicture
from medseg_pipelines.recipe import RECIPE_FILE
from medseg_pipelines.replay import replay
from medseg_pipelines.training import train
from tiny_tiles import build_tiny_tiles


def _model(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    return build_tiny_tiles(folder, **changes)


def _tile(seed: int, side: int = 48) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(2 * np.pi * ((2 + c + seed) * x + (c - seed) * y)) for c in range(3)]
    return (127 + 100 * np.stack(waves, 2)).round().astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    for name in ("small", "large"):
        (folder / name).mkdir()
    for seed in range(2):
        large = Image.fromarray(_tile(seed, 64))
        large.save(folder / "large" / f"{seed}.png")
        large.resize((32, 32), Image.Resampling.BOX).save(folder / "small" / f"{seed}.png")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("superres")
    train(_model(place / "model"), data, place / "run", workers=0)
    return place / "run"


def _restored(model: Any, image: Any) -> RestoredPicture:
    result = model(image)
    assert isinstance(result, RestoredPicture)
    return result


def test_a_trained_run_doubles_a_picture(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    Image.fromarray(_tile(5)[:37]).save(path)
    result = _restored(load_model(run, device="cpu"), path)
    assert result.pixels.shape == (74, 96, 3)
    assert result.pixels.dtype == np.uint8
    assert result.regions.shape == (37, 48)
    out = result.save(tmp_path / "out")
    assert {p.name for p in out.iterdir()} == {
        *("restored.png", "residual.png", "regions.png", "preview.png", "statistics.json", "manifest.json"),
    }
    with Image.open(out / "restored.png") as picture:
        assert np.array_equal(np.asarray(picture), result.pixels)
    manifest = read_manifest(out / "manifest.json")
    assert manifest["output"]["scale"] == 2
    answer = replay(manifest, out, model=run)
    assert (answer.identical, answer.files_intact) == (True, True)


def test_the_command_line_restores_pictures(run: Path, tmp_path: Path) -> None:
    Image.fromarray(_tile(6)).save(tmp_path / "tile.png")
    arguments = ["infer", str(tmp_path / "tile.png"), "-m", str(run), "-o", str(tmp_path / "out"), "-d", "cpu"]
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    assert answer.exit_code == 0, answer.stderr
    case = json.loads(answer.stdout)["cases"][0]
    assert case["restored"] == str(tmp_path / "out" / "restored.png")
    assert case["quality"]["regions"] > 0
    text = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert "always compare with the original" in text.stdout


def test_training_starts_from_linear_enlargement_and_moves_away(run: Path) -> None:
    tile = _tile(1)
    found = _restored(load_model(run, device="cpu"), tile)
    assert 0 < np.abs(found.residual()).mean() < 0.2


def test_windows_leave_no_seam(data: Path, tmp_path: Path) -> None:
    train(_model(tmp_path / "m"), data, tmp_path / "run", workers=0, seconds=0)
    whole = load_model(tmp_path / "run", device="cpu")
    assert isinstance(whole, PictureRestoration)
    section = whole.recipe.model_copy(update={"window": 32, "overlap": 0.5})
    tile = _tile(2, 96)
    one = _restored(whole, tile).pixels.astype(int)
    whole.recipe = section
    many = _restored(whole, tile).pixels.astype(int)
    assert np.abs(one - many).max() <= 6, "attention sees less in a window, but nothing jumps"


def test_grey_pictures_keep_their_depth_and_channels_alone_may_be_restored(data: Path, tmp_path: Path) -> None:
    train(_model(tmp_path / "m", colour=False), data, tmp_path / "run", workers=0, seconds=0)
    model = load_model(tmp_path / "run", device="cpu")
    deep = (_tile(0)[:, :, 0].astype(np.uint16) * 257)[..., None]
    result = _restored(model, deep)
    assert (result.pixels.shape, result.pixels.dtype) == ((96, 96, 1), np.uint16)
    assert np.abs(result.residual()).mean() < 0.1
    assert _restored(model, _tile(0)).pixels.shape == (96, 96, 3)
    with pytest.raises(InputRefused, match="8 bit per colour or be grey"):
        model(np.zeros((32, 32, 3), np.uint16))


def test_same_size_restoration_of_an_untrained_start_is_the_identity(data: Path, tmp_path: Path) -> None:
    pairs = {"degraded": "large/*", "target": "large/*"}
    folder = _model(tmp_path / "m", scale=1)
    content = yaml.safe_load((folder / RECIPE_FILE).read_text())
    content["training"] |= {"pairs": pairs, "learning_rate": 1e-12}
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content))
    train(folder, data, tmp_path / "run", workers=0, seconds=0)
    tile = _tile(4)
    assert np.array_equal(_restored(load_model(tmp_path / "run", device="cpu"), tile).pixels, tile)


def test_what_does_not_fit_is_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match="train it with `medseg train superres-2d"):
        load_model("superres-2d")
    content = _model(tmp_path / "m") / RECIPE_FILE
    content.write_text(content.read_text().replace("\nscale: 2", "\nscale: 4"))
    with pytest.raises(UsageError, match="must say scale 4 and in_channels 3, got 2 and 3"):
        train(tmp_path / "m", data, tmp_path / "run")
    Image.fromarray(_tile(0, 50)).save(data / "large" / "0.png")
    with pytest.raises(InputRefused, match=r"must have 2 x the pixels of '0\.png'"):
        train(_model(tmp_path / "n"), data, tmp_path / "run")
