"""DB-SAM learns to follow boxes: from nothing or from weights of the user, on volumes or pictures; runs are models."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from box_task import bars, outlines, write_recipe, write_task
from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg.networks.db_sam import DbSam
from medseg.weights import save_weights
from medseg_pipelines import load_model
from medseg_pipelines.prompting.frame import small_mask
from medseg_pipelines.prompting.model import Prompting
from medseg_pipelines.recipe import PromptRecipe, load_recipe
from medseg_pipelines.training import TrainingReport, course_of, train
from medseg_pipelines.training.boxes import BoxCourse, Boxes, BoxOptions, BoxTrainer
from medseg_pipelines.training.sightings import Sighting
from medseg_pipelines.weights.cache import add_weights

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "depth": 1,
    "stages": [[0, 0]],
    "global_attn_indexes": [0],
    "img_size": 64,
    "patch_size": 4,
    "pyramid": [1, 1, 1, 1],
    "prior_widths": [8, 16, 32],
}
STEPS = 80  # of 1200 that the recipe takes
QUICK: dict[str, Any] = {"steps": 2, "batch": 2, "boxes": 2, "judged": 4, "every": 1, "average": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six volumes of bars, of which one is held back."""
    return write_task(tmp_path_factory.mktemp("data"), cases=6)


@pytest.fixture(scope="module")
def pictures(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slices as pictures of several colours, and masks that give all bars one number."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        image, labels = bars(number)
        grey = image.voxels[:, :, 10].clip(0, 255).astype(np.uint8)
        Image.fromarray(np.stack([grey, 255 - grey, grey], axis=-1)).save(folder / f"p{number}.png")
        Image.fromarray(np.uint8(255) * (labels.voxels[:, :, 10] > 0)).save(folder / f"p{number}_mask.png")
    return folder


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingReport]:
    """A short training from nothing."""
    folder = tmp_path_factory.mktemp("learned")
    recipe = write_recipe(folder / "recipe", steps=STEPS, every=STEPS, average=0.9, decay=0.2)
    return folder / "run", train(recipe, data, folder / "run", workers=0)


def test_a_short_training_follows_boxes_far_better_than_they_say(learned: tuple[Path, TrainingReport]) -> None:
    run, report = learned
    model = load_model(run, device="cpu")
    assert isinstance(model, Prompting)
    found, itself = outlines(model, seeds=range(1000, 1002), most=30)
    assert np.mean(itself) < 0.7
    assert np.mean(found) > np.mean(itself) + 0.07, f"Dice {np.mean(found):.3f} against {np.mean(itself):.3f}"
    (score,) = report.scores
    assert score.mean > score.trivial + 0.07, "what was held back tells the same"


def test_the_run_is_a_model_that_walks_by_its_own_estimates(learned: tuple[Path, TrainingReport]) -> None:
    run, report = learned
    assert report.steps == STEPS
    recipe = load_recipe(run)
    assert isinstance(recipe, PromptRecipe)
    assert recipe.weights.trained
    assert recipe.prompting.estimates
    assert "the box itself" in (run / "CARD.md").read_text()
    model = load_model(run, device="cpu")
    assert isinstance(model, Prompting)
    assert model.brought is None, "the run has weights of its own"


def test_the_frozen_stays_and_its_first_stage_is_kept(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    recipe = load_recipe(write_recipe(tmp_path / "recipe", network=TINY, **QUICK, start="mine"))
    with pytest.raises(ModelMissing, match="weights add mine FILE"):
        BoxCourse(recipe).plain_trainer("cpu")
    torch.manual_seed(1)
    brought = DbSam(**recipe.network.options).state_dict()
    sam = {name: value for name, value in brought.items() if ".adapter." not in name}
    add_weights("mine", save_weights(sam, tmp_path / "sam.safetensors"))
    course = BoxCourse(recipe)
    trainer, images = course.plain_trainer("cpu"), course.images(course.files(data))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    assert torch.equal(before["image_encoder.pos_embed"], sam["image_encoder.pos_embed"]), "it starts from the weights"
    sample = images[0]
    trainer.network.eval()
    with torch.no_grad():
        first = trainer.loss(sample)
        assert trainer.encoded == len(set(sample.keys))
        kept = trainer.loss(sample)
        assert trainer.encoded == len(set(sample.keys)), "nothing is encoded twice"
    assert torch.equal(first, kept)
    assert _frozen(_learn(trainer, images)) & _changed(trainer, before) == set()
    parts = ("image_encoder.adapter.", "image_encoder.neck.", "prompt_encoder.", "mask_decoder.iou_prediction_head.")
    assert all(any(name.startswith(part) for name in _changed(trainer, before)) for part in parts)


def test_without_weights_to_start_from_all_of_it_learns(data: Path, tmp_path: Path) -> None:
    course = BoxCourse(load_recipe(write_recipe(tmp_path, network=TINY, **QUICK, estimate=0.0)))
    trainer, images = course.plain_trainer("cpu"), course.images(course.files(data))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    assert len(_frozen(_learn(trainer, images)) & _changed(trainer, before)) > 10
    head = {name for name in _changed(trainer, before) if name.startswith("mask_decoder.iou_prediction_head")}
    assert not head, "nothing teaches it"
    assert not course._recipe().prompting.estimates


def _learn(trainer: BoxTrainer, images: Boxes) -> BoxTrainer:
    trainer.network.train()
    for step in range(2):
        trainer.learn(images[step])
    return trainer


def _changed(trainer: BoxTrainer, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in trainer.network.state_dict().items() if not torch.equal(value, before[name])}


def _frozen(trainer: BoxTrainer) -> set[str]:
    """Names of SAM's own blocks and of what goes into them."""
    return {
        name for name in trainer.network.state_dict() if name.startswith(("image_encoder.blocks", "image_encoder.p"))
    }


def test_boxes_hold_what_they_are_for(data: Path, tmp_path: Path) -> None:
    course = BoxCourse(load_recipe(write_recipe(tmp_path, network=TINY, **QUICK, neighbours=0.0)))
    images = course.images(course.files(data))
    assert all(sighting.boxed == sighting.at for sighting in images.sightings.own)
    gone, carried = images.sightings.gone, images.sightings.carried
    for sightings, there in ((gone, False), (carried, True)):
        assert sightings
        assert all((images.outlined[s.stack].ids[s.at] == s.label).any() == there for s in sightings)
        assert all(abs(s.at - s.boxed) == 1 for s in sightings)
    assert torch.equal(images[1].boxes, images[1].boxes), "a batch is drawn from its number alone"
    for step in range(3):
        batch = images[step]
        for (x0, y0, x1, y1), target in zip(batch.boxes.tolist(), batch.targets[:, 0].numpy(), strict=True):
            rows, columns = np.nonzero(target)
            assert x0 <= columns.min() <= columns.max() <= x1
            assert y0 <= rows.min() <= rows.max() <= y1


def test_turned_slices_keep_their_boxes_and_masks(data: Path, tmp_path: Path) -> None:
    course = BoxCourse(load_recipe(write_recipe(tmp_path, network=TINY, **QUICK, jitter=0.0, neighbours=0.0)))
    images = course.images(course.files(data))
    images.options = cast("BoxOptions", images.options).model_copy(update={"batch": 24})
    batch = images[0]
    assert len({turn for _, _, turn in batch.keys}) > 4
    for number, (stack, at, _) in enumerate(batch.keys):
        ids = images.outlined[stack].ids[at]
        known = {float(small_mask(ids == label, batch.frames[number], (64, 64), 64).sum()) for label in np.unique(ids)}
        for target in batch.targets[2 * number : 2 * number + 2]:
            assert float(target.sum()) in known
            assert batch.slices[number][target[0].numpy() > 0].mean() > batch.slices[number].mean(), "it is the bright"


def test_pictures_and_masks_of_pieces(pictures: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe", network=TINY, **QUICK, pieces=True)
    report = train(recipe, pictures, tmp_path / "run", workers=0)
    assert report.scores[0].counted == "outlines"
    model = load_model(tmp_path / "run", device="cpu")
    assert model.recipe.licence == "that of the training data"
    course = course_of(recipe)
    images = course.images(course.files(pictures))
    assert isinstance(images, Boxes)
    assert max(outlined.ids.max() for outlined in images.outlined) > 1, "each bar is a structure"
    assert not images.sightings.gone
    assert isinstance(images.sightings.own[0], Sighting)


def test_refusals(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    recipe = write_recipe(tmp_path / "recipe", network=TINY, **QUICK, least=4000)
    course = BoxCourse(load_recipe(recipe))
    with pytest.raises(UsageError, match="must hold images and masks"):
        course.files(tmp_path)
    with pytest.raises(InputRefused, match=r"lower training\.least"):
        course.images(course.files(data))
    with pytest.raises(ModelMissing, match=r"weights add sam-vit-b.*375 MB"):
        train("db-sam", data, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="drop --patients"):
        course_of("mr-denoise", tmp_path / "patients.csv")
