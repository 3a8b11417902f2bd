"""Recipes: what ships is right, and what is wrong is told in words that help."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from medseg.errors import ModelMissing, UsageError
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe, load_segmentation_recipe, recipe_names
from tiny_model import tiny_recipe


def _error(folder: Path, content: Any) -> str:
    (folder / RECIPE_FILE).write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(UsageError) as caught:
        load_recipe(folder)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.licence


def test_labels_of_brain_structures_pair_left_and_right() -> None:
    recipe = load_segmentation_recipe("brain-structures")
    by_id = {label.id: label for label in recipe.labels}
    for right, left in recipe.decode.table:
        if right != left:
            assert (by_id[right].side, by_id[left].side) == ("right", "left")
            assert by_id[right].structure == by_id[left].structure
        elif right:
            assert by_id[right].side is None


def test_unknown_key_gets_a_guess(tmp_path: Path) -> None:
    content = tiny_recipe()
    content["inference"]["overlp"] = content["inference"].pop("overlap")
    assert _error(tmp_path, content).endswith("unknown key 'inference.overlp', did you mean 'overlap'?")
    content = tiny_recipe()
    content["labels"][2]["colour"] = content["labels"][2].pop("color")
    assert _error(tmp_path, content).endswith("unknown key 'labels.2.colour', did you mean 'color'?")


def test_faults_name_the_field(tmp_path: Path) -> None:
    content = tiny_recipe()
    content["decode"]["table"][1] = [1, 99]
    assert "decode.table and labels must name the same ids" in _error(tmp_path, content)
    content = tiny_recipe()
    content["preparation"]["percentiles"] = [99, 1]
    assert "preparation: percentiles must rise" in _error(tmp_path, content)
    content = tiny_recipe()
    del content["scope"]
    assert "scope: Field required" in _error(tmp_path, content)
    assert "must be a table of sections" in _error(tmp_path, "- 1")
    assert "is not YAML" in _error(tmp_path, "a: [")


def test_unknown_model_gets_a_guess(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'brain-structures'"):
        load_recipe("brain-structure")
    with pytest.raises(ModelMissing):
        load_recipe(tmp_path)


def test_recipe_is_frozen() -> None:
    recipe = load_recipe("brain-structures")
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_loads_neither_torch_nor_monai() -> None:
    code = "import sys, medseg_pipelines.recipe; print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
