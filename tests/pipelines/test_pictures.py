"""Models of pictures: from file to result folder, in whole or in tiles, and what they are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from medseg.errors import InputRefused, UsageError
from medseg.io.pictures import read_indexed
from medseg.networks import build_network
from medseg.picture import Picture
from medseg_pipelines import load_model, picture_case
from medseg_pipelines.manifest import read_manifest
from medseg_pipelines.picture_case import choose_picture_model, judge_picture
from medseg_pipelines.picture_evaluation import evaluate_pictures, score_picture
from medseg_pipelines.picture_results import PictureResult
from medseg_pipelines.picture_tiles import probabilities, tile_plan
from medseg_pipelines.recipe import RECIPE_FILE, PictureRecipe, load_recipe
from medseg_pipelines.replay import replay
from medseg_pipelines.sections import PictureInference, PictureScope
from medseg_pipelines.training import course_of, train
from medseg_pipelines.training.patches_course import PictureCourse
from pictures import build_tiny_vessel_model, fundus, tiny_vessel_recipe

SCOPE = PictureScope(modalities=("fundus photograph",), anatomy="retina", kind="fundus", diameter=(100, 8000))


@pytest.fixture(scope="session")
def vessel_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    return build_tiny_vessel_model(tmp_path_factory.mktemp("vessels"))


def test_the_result_has_the_pixels_of_the_input_and_can_be_replayed(vessel_model: Path, tmp_path: Path) -> None:
    pixels, _ = fundus()
    Image.fromarray(pixels).save(tmp_path / "eye.png")
    result = load_model(vessel_model, device="cpu")(tmp_path / "eye.png")
    folder = result.save(tmp_path / "eye_tiny-vessels")
    labels = read_indexed(folder / "labels.png")
    assert labels.shape == pixels.shape[:2]
    assert set(np.unique(labels)) <= {0, 1}
    with Image.open(folder / "labels.png") as image:
        assert image.mode == "P"
    figures = json.loads((folder / "statistics.json").read_text())["figures"]
    assert {figure["unit"] for figure in figures} == {"", "px", "px^2", "1/px"}
    for name in ("overlay.png", "preview.png", "probability.png", "field.png", "statistics.csv"):
        assert (folder / name).stat().st_size > 0
    again = replay(read_manifest(folder / "manifest.json"), folder, model=vessel_model)
    assert again.identical
    assert again.files_intact


def test_a_spacing_turns_figures_into_millimetres(vessel_model: Path) -> None:
    result = load_model(vessel_model, device="cpu")(Picture(fundus()[0], spacing=(0.02, 0.02)))
    assert isinstance(result, PictureResult)
    assert {figure.unit for figure in result.figures} == {"", "mm", "mm^2", "1/mm"}


def test_tiles_blend_to_what_the_whole_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    planes = torch.randn((1, 150, 170), generator=generator).numpy()

    def pointwise(x: torch.Tensor) -> torch.Tensor:
        return 2 * x - 0.5

    options = PictureInference(window=64, overlap=0.25)
    found = probabilities(pointwise, planes, tile_plan((150, 170), options, outputs=1), outputs=1)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(0.5 - 2 * planes)), atol=1e-6)
    small = planes[:, :40, :50]  # less than one tile
    found = probabilities(pointwise, small, tile_plan((40, 50), options, outputs=1), outputs=1)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(0.5 - 2 * small)), atol=1e-6)


def test_flips_make_the_result_mirror_with_the_picture() -> None:
    planes = torch.randn((1, 64, 64), generator=torch.Generator().manual_seed(0)).numpy()
    kernel = torch.randn((1, 1, 3, 3), generator=torch.Generator().manual_seed(1))

    def predict(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, kernel, padding=1)

    layout = tile_plan((64, 64), PictureInference(window=64, overlap=0.0), outputs=1)
    plain, mirrored = (
        probabilities(predict, np.ascontiguousarray(each), layout, outputs=1, flips=True)
        for each in (planes, planes[:, :, ::-1])
    )
    np.testing.assert_allclose(mirrored[:, :, ::-1], plain, atol=1e-6)


def test_a_fundus_is_told_from_other_pictures() -> None:
    pixels, _ = fundus()
    assert judge_picture(Picture(pixels), SCOPE) == ()
    blue = judge_picture(Picture(np.ascontiguousarray(pixels[..., ::-1])), SCOPE)
    assert [finding.grade for finding in blue] == ["doubtful"]
    bright = np.full((200, 300, 3), 180, np.uint8)
    bright[::2] -= 20
    assert [finding.grade for finding in judge_picture(Picture(bright), SCOPE)] == ["doubtful"]
    square = np.zeros((200, 300, 3), np.uint8)
    square[60:120, 40:260] = (200, 120, 60)
    assert [finding.grade for finding in judge_picture(Picture(square), SCOPE)] == ["outside"]
    cut = np.zeros((200, 300, 3), np.uint8)  # an octagon, as endoscopes show
    y, x = np.mgrid[:200, :300]
    cut[(abs(y - 100) < 90) & (abs(x - 150) < 105) & (abs(y - 100) + abs(x - 150) < 165)] = (200, 120, 60)
    assert [finding.grade for finding in judge_picture(Picture(cut), SCOPE)] == ["doubtful"]


def test_the_shipped_model_is_chosen_for_a_fundus_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, _ = fundus(500, 600)
    assert choose_picture_model(Picture(pixels)).name == "vessels"
    monkeypatch.setattr(picture_case, "recipe_names", lambda: ["brain-structures", "vessels"])
    with pytest.raises(InputRefused, match="fits no model"):
        choose_picture_model(Picture(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)))


def test_what_a_model_of_pictures_knows_nothing_of_is_refused(vessel_model: Path) -> None:
    model = load_model(vessel_model, device="cpu")
    with pytest.raises(UsageError, match="neither a noise level nor regions"):
        model(Picture(fundus()[0]), noise=3.0)
    square = np.zeros((200, 300, 3), np.uint8)
    square[60:120, 40:260] = (200, 120, 60)
    with pytest.raises(InputRefused, match="not round"):
        model(Picture(square))


def _layout(folder: Path, names: dict[str, str]) -> Path:
    """Images and masks under the names of a data set; each mask under "masks" in `names`."""
    pixels, vessels = fundus()
    for image, mask in names.items():
        for name, content in ((image, pixels), (mask, (vessels * 255).astype(np.uint8))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(folder / name)
    return folder


LAYOUTS = {
    "DRIVE": {"training/images/21_training.tif": "training/1st_manual/21_manual1.gif"},
    "STARE": {"stare-images/im0001.ppm": "labels-ah/im0001.ah.ppm"},
    "CHASE_DB1": {"Image_01L.jpg": "Image_01L_1stHO.png"},
    "HRF": {"images/01_dr.JPG": "manual1/01_dr.tif", "images/01_h.jpg": "manual1/01_h.tif"},
    "DRIVE/training": {"images/21_training.tif": "1st_manual/21_manual1.gif"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_folders_of_public_data_sets_are_found(tmp_path: Path, name: str) -> None:
    files = course_of("vessels").files(_layout(tmp_path, LAYOUTS[name]))
    assert [str(path.relative_to(tmp_path)) for path in files] == [*LAYOUTS[name], *LAYOUTS[name].values()]


def test_the_recipe_of_the_published_network_builds_it() -> None:
    recipe = load_recipe("vessels-published")
    with torch.device("meta"):
        network = build_network(recipe.network.name, **recipe.network.options)
    assert sum(parameter.numel() for parameter in network.parameters()) == recipe.weights.parameters
    assert course_of("vessels-published").options.crop == 288


def test_a_missing_mask_and_an_unknown_folder_are_said(tmp_path: Path) -> None:
    course = course_of("vessels")
    with pytest.raises(UsageError, match="laid out like one of DRIVE"):
        course.files(tmp_path)
    _layout(tmp_path, {"images/a.png": "masks/a.png", "images/b.png": "masks/b.png"})
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(UsageError, match=r"lacks 'b\.png'"):
        course.files(tmp_path)


def test_patches_follow_from_seed_and_step_and_fit_their_masks(tmp_path: Path) -> None:
    content = tiny_vessel_recipe()
    content["training"] |= {"crop": 64, "batch": 3, "scales": [1.0]}
    still = {"turn": 0, "mirror": False, "zoom": [1, 1], "squeeze": 0, "mix": 0, "contrast": [1, 1], "brightness": 0}
    content["training"]["augmentation"] = {**still, "bend": [0, 0], "blur": [0, 0], "noise": [0, 0]}
    course = PictureCourse(PictureRecipe.model_validate(content))
    sampler = course.images(course.files(_layout(tmp_path, LAYOUTS["DRIVE"])))
    first, again = sampler[5], sampler[5]
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, sampler[6].image)
    assert first.image.shape == first.target.shape == (3, 1, 64, 64)
    inside, outside = first.image[first.target > 0], first.image[(first.target == 0) & (first.image != 0)]
    assert inside.mean() < outside.mean() - 0.5  # vessels are dark


def test_two_steps_of_training_give_a_model_that_runs(tmp_path: Path) -> None:
    content = tiny_vessel_recipe()
    content["training"] |= {"crop": 64, "batch": 2, "steps": 2, "scales": [1.0]}
    content["weights"]["dtype"] = "float32"
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    report = train(tmp_path / "recipe", _layout(tmp_path / "data", LAYOUTS["DRIVE"]), tmp_path / "run", workers=0)
    assert report.steps == 2
    assert np.isfinite(report.loss)
    result = load_model(tmp_path / "run", device="cpu")(Picture(fundus()[0]))
    assert result.recipe.weights.trained
    assert not any("Untrained" in warning for warning in result.warnings)


def test_scores_of_known_masks(tmp_path: Path) -> None:
    truth = np.zeros((60, 80), bool)
    truth[20:30, 10:70] = True
    field = np.ones_like(truth)
    perfect = score_picture(truth, truth, field, truth.astype(np.float32))
    assert (perfect.f1, perfect.sensitivity, perfect.specificity, perfect.mcc, perfect.auc, perfect.cldice) == (1,) * 6
    field[:, 40:] = False
    half = truth.copy()
    half[:, 40:] = False
    assert score_picture(half, truth, field).f1 == 1  # what lies outside the field does not count
    for name, mask in (("a.png", half), ("b.png", truth)):
        Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / name)
    found = evaluate_pictures(tmp_path / "a.png", tmp_path / "b.png")
    assert found.f1 == pytest.approx(2 * 300 / 900)
    assert np.isnan(found.auc)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(InputRefused, match="one size"):
        evaluate_pictures(tmp_path / "a.png", tmp_path / "c.png")
