"""DB-SAM learns to follow boxes: what is frozen stays, what the frozen stage made is kept, and the run is a model."""

from pathlib import Path

import pytest
import torch

from box_task import scores, write_recipe, write_task
from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg_pipelines import load_model
from medseg_pipelines.prompting.model import Prompting
from medseg_pipelines.recipe import load_recipe
from medseg_pipelines.training import train
from medseg_pipelines.training.boxes import BoxCourse

STEPS = 60
SHALLOW = {"depth": 2, "stages": [[0, 0], [1, 1]], "global_attn_indexes": [1]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases of slanted bars."""
    return write_task(tmp_path_factory.mktemp("data"), cases=2)


def test_a_short_training_begins_to_follow_boxes_and_is_a_model(data: Path, tmp_path: Path) -> None:
    report = train(
        write_recipe(tmp_path / "recipe", steps=STEPS, batch=4, **SHALLOW), data, tmp_path / "run", workers=0
    )
    assert report.steps == STEPS
    assert load_recipe(tmp_path / "run").weights.trained
    model = load_model(tmp_path / "run", device="cpu")
    assert isinstance(model, Prompting)
    assert model.brought is None, "the run has weights of its own"
    found, _ = scores(model, seeds=range(100, 101))
    assert found > 0.25, f"Dice {found:.3f}; a mask anywhere has 0.1, the long version in box_task.py passes the boxes"


def test_the_frozen_stays_and_its_first_stage_is_kept(data: Path, tmp_path: Path) -> None:
    course = BoxCourse(load_recipe(write_recipe(tmp_path, steps=3, batch=2)))
    trainer, images = course.trainer("cpu"), course.images(course.files(data))
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    sample = images[0]
    trainer.network.eval()
    with torch.no_grad():
        first = trainer.loss(sample)
        assert trainer.encoded == len(set(sample.keys))
        kept = trainer.loss(sample)
        assert trainer.encoded == len(set(sample.keys)), "nothing is encoded twice"
    assert torch.equal(first, kept)
    trainer.network.train()
    for step in range(3):
        trainer.learn(images[step])
    after = trainer.network.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    frozen = {name for name in after if name.startswith(("image_encoder.blocks", "image_encoder.p"))}
    assert not changed & frozen
    parts = ("image_encoder.adapter.", "image_encoder.neck.", "prompt_encoder.", "mask_decoder.")
    assert all(any(name.startswith(part) for name in changed) for part in parts)
    assert torch.equal(images[1].boxes, images[1].boxes), "a batch is drawn from its number alone"


def test_refusals(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    recipe = load_recipe(write_recipe(tmp_path / "recipe", steps=3))
    with pytest.raises(UsageError, match="as many files"):
        BoxCourse(recipe).files(tmp_path)
    large = recipe.model_copy(update={"training": {**recipe.training, "least": 4000}})
    course = BoxCourse(large)
    with pytest.raises(InputRefused, match=r"lower training\.least"):
        course.images(course.files(data))
    with pytest.raises(ModelMissing, match="sam-vit-b"):
        BoxCourse(load_recipe("db-sam")).trainer("cpu")
