"""`medseg infer` with prompts, and regions found by what the user names, from end to end."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from box_task import bars, write_recipe
from medseg.errors import UsageError
from medseg.io import read, write
from medseg.networks.sam import Sam
from medseg.prompts import Box
from medseg_app.commands.prompts import PromptRequest
from medseg_pipelines.regions import named_partitioner
from tiny_model import head
from tiny_prompting import build_tiny_prompting
from tiny_restoration import build_tiny_restoration

from .conftest import Call


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with prompts and random weights."""
    return build_tiny_prompting(tmp_path_factory.mktemp("models"))


def test_a_box_in_a_volume_and_its_replay(call: Call, scan: Path, prompted: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    arguments = ("infer", scan, "-m", prompted, "--box", "voxel:10,10,24,35,35,26", "--points", "voxel:20,20,25,-")
    answer = call(*arguments, "-o", tmp_path / "out", "--embeddings", kept, "--json")
    assert answer.exit_code == 0, answer.stderr
    case = json.loads(answer.stdout)["cases"][0]
    assert case["structures"][0]["name"] == "structure 1"
    assert "Untrained weights" in case["warnings"][0]
    labels = read(tmp_path / "out" / "labels.nii.gz", kind="labels")
    assert labels.grid.equals(read(scan).grid)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["prompting"]["encoded"] == len(list(kept.iterdir())) > 0
    repeated = call("replay", tmp_path / "out" / "manifest.json", "-m", prompted, "--input", scan, "--json")
    assert json.loads(repeated.stdout)["identical"] is True
    file = tmp_path / "out" / "prompts.json"
    second = call("infer", scan, "-m", prompted, "--prompts", file, "-o", tmp_path / "again", "--embeddings", kept)
    assert second.exit_code == 0, second.stderr
    assert "slices encoded: 0," in second.stdout
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert again["prompting"]["encoded"] == 0, "the second run found every slice encoded"
    assert again["output"] == manifest["output"]
    file.write_text(file.read_text().replace("false", "true"))
    assert call("replay", tmp_path / "out" / "manifest.json", "-m", prompted, "--input", scan).exit_code == 3


def test_a_box_on_a_picture(call: Call, prompted: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    answer = call("infer", tmp_path / "photo.png", "-m", prompted, "--box", "5,5,40,30", "-o", tmp_path / "out")
    assert answer.exit_code == 0, answer.stderr
    assert Image.open(tmp_path / "out" / "labels.png").size == (60, 40)
    repeated = call(
        "replay", tmp_path / "out" / "manifest.json", "-m", prompted, "--input", tmp_path / "photo.png", "--json"
    )
    assert json.loads(repeated.stdout)["identical"] is True


def test_a_model_is_trained_on_pictures_and_follows_a_box(call: Call, tmp_path: Path) -> None:
    for number in range(3):
        image, labels = bars(number)
        grey, ids = image.voxels[:, :, 10].clip(0, 255).astype(np.uint8), labels.voxels[:, :, 10]
        Image.fromarray(grey).save(tmp_path / f"p{number}.png")
        Image.fromarray(ids).save(tmp_path / f"p{number}_mask.png")
    recipe = write_recipe(tmp_path / "recipe", steps=2, batch=1, boxes=2, judged=2, every=2)
    trained = call("train", recipe, "--data", tmp_path, "-o", tmp_path / "run", "--workers", "0")
    assert trained.exit_code == 0, trained.stderr
    assert "the box itself" in trained.stdout
    picture = tmp_path / "p0.png"
    answer = call("infer", picture, "-m", tmp_path / "run", "--box", "20,10,40,40", "-o", tmp_path / "out", "--json")
    assert answer.exit_code == 0, answer.stderr
    assert json.loads(answer.stdout)["cases"][0]["model"] == "db-sam-small"
    assert Image.open(tmp_path / "out" / "labels.png").size == (64, 64)


def test_what_cannot_be_meant_is_told_before_anything_runs(call: Call, scan: Path, prompted: Path, model: Path) -> None:
    def told(*arguments: object) -> str:
        answer = call("infer", scan, *arguments)
        assert answer.exit_code == 2, answer.stderr
        return answer.stderr

    assert "needs prompts" in told("-m", prompted)
    assert "none was named" in told("--box", "1,2,3,4,5,6")
    assert "6 numbers" in told("-m", prompted, "--box", "1,2,3")
    assert "3 numbers" in told("-m", prompted, "--points", "voxel:1,2")
    assert "rising" in told("-m", prompted, "--box", "1,2,3,4,5,6", "--window", "5,1")
    assert "could belong to any" in told(
        "-m", prompted, "--box", "1,2,3,4,5,6", "--box", "1,2,3,4,5,6", "--points", "1,2,3"
    )
    assert "follows no prompts" in told("-m", model, "--points", "1,2,3")
    assert "weights of its own" in told("-m", model, "--weights", "mine")
    assert "finds no regions" in told("-m", model, "--partition", "intensity")


def test_coordinates_are_read_with_their_signs() -> None:
    grid = head(orientation="LPS").grid
    said = PromptRequest(points=("-1,2.5,-3", "4,5,6,-"), boxes=("voxel:1,2,3,4,5,6",)).prompts(grid)
    assert said is not None
    box, inside, outside = said.items
    assert box == Box.of_voxels((1, 2, 3), (4, 5, 6), grid)
    assert (inside, outside) != (None, None)
    assert [getattr(point, "at", None) for point in (inside, outside)] == [(-1, 2.5, -3), (4, 5, 6)]
    assert [getattr(point, "inside", None) for point in (inside, outside)] == [True, False]


def test_missing_weights_of_sam_say_how_to_get_them(
    call: Call, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    answer = call("infer", scan, "-m", "sam", "--points", "0,0,0")
    assert answer.exit_code == 5
    assert "medseg weights add sam-vit-b" in answer.stderr
    assert "https://dl.fbaipublicfiles.com" in answer.stderr
    assert "medsam-vit-b" in call("models", "medsam").stdout
    assert "whose weights you bring" in call("models").stdout


def test_regions_as_the_user_names_them(call: Call, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = build_tiny_restoration(tmp_path / "model")
    small = head(spacing=8.0)
    write(small, tmp_path / "small.nii.gz")
    answer = call(
        "infer", tmp_path / "small.nii.gz", "-m", model, "--partition", "superpixels", "-o", tmp_path / "out", "-q"
    )
    assert answer.exit_code == 0, answer.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["options"]["partition"] == "superpixels"
    assert (tmp_path / "out" / "regions.nii.gz").is_file(), "a replay needs them"
    repeated = call("replay", tmp_path / "out" / "manifest.json", "-m", model, "--json")
    assert json.loads(repeated.stdout)["identical"] is True


def test_regions_by_sam_take_its_weights_by_name(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    torch.save({"image_encoder.pos_embed": Sam("vit_b", depth=0).image_encoder.pos_embed.detach()}, tmp_path / "a.pt")
    assert call("weights", "add", "mine", tmp_path / "a.pt").exit_code == 0
    how = named_partitioner("sam:mine")
    assert getattr(how, "checkpoint", None) == tmp_path / "home" / "weights" / "mine" / "weights.safetensors"
    with pytest.raises(UsageError, match="intensity, superpixels, sam"):
        named_partitioner("intensity:3")
