"""A model is never run silently on an image it was not made for."""

from dataclasses import replace

import numpy as np
import pytest

from medseg.errors import InputRefused
from medseg.volume import Volume
from medseg_pipelines.recipe import load_recipe
from medseg_pipelines.scope import choose_model, implausible_size, judge, require_in_scope
from tiny_model import head

SCOPE = load_recipe("brain-structures").scope


def _grades(volume: Volume) -> set[str]:
    return {finding.grade for finding in judge(volume, SCOPE)}


def _scaled(factors: tuple[float, float, float]) -> Volume:
    volume = head()
    return replace(volume, affine=volume.affine @ np.diag([*factors, 1.0]))


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI"])
def test_head_is_in_scope(orientation: str) -> None:
    choice = choose_model(head(orientation=orientation))
    assert choice.name == "brain-structures"
    assert "200 x 200 x 200 mm" in choice.reason


def test_ct_is_outside() -> None:
    volume = head()
    volume = volume.with_voxels((volume.voxels.astype(np.int32) - 1000).astype(np.int16))
    assert _grades(volume) == {"outside"}
    with pytest.raises(InputRefused, match="look like CT, expected MR"):
        choose_model(volume)


def test_normalised_mr_with_negative_values_is_in_scope() -> None:
    volume = head()
    grey = volume.voxels.astype(np.float32)
    assert not judge(volume.with_voxels((grey - grey.mean()) / grey.std()), SCOPE)


def test_label_maps_are_outside() -> None:
    volume = head()
    assert _grades(volume.with_voxels(volume.voxels // 100)) == {"outside"}
    assert _grades(volume.with_voxels(volume.voxels // 100, kind="labels")) == {"outside"}


@pytest.mark.parametrize(
    ("factors", "grade", "words"),
    [
        ((2.0, 1.0, 1.0), "outside", "covers 400 mm right-left"),
        ((1.0, 1.0, 0.4), "doubtful", "covers only 80 mm foot-head"),
        ((1.0, 0.2, 1.0), "outside", "covers only 40 mm back-front"),
    ],
)
def test_field_of_view(factors: tuple[float, float, float], grade: str, words: str) -> None:
    gravest = judge(_scaled(factors), SCOPE)[0]
    assert gravest.grade == grade
    assert words in gravest.text


def test_thick_voxels_are_doubtful() -> None:
    assert {f.text for f in judge(head(spacing=8.0), SCOPE)} == {"voxels measure 8 mm, trained on 0.3 to 7 mm"}
    with pytest.raises(InputRefused, match=r"name the model with -m$"):
        choose_model(head(spacing=8.0))


def test_named_model_warns_and_outside_needs_a_second_word() -> None:
    doubtful = judge(head(spacing=8.0), SCOPE)
    assert "8 mm" in require_in_scope(doubtful, "m", force=False)[0]
    outside = judge(_scaled((2.0, 1.0, 1.0)), SCOPE)
    with pytest.raises(InputRefused, match="--force-scope"):
        require_in_scope(outside, "m", force=False)
    assert len(require_in_scope(outside, "m", force=True)) == 2


def test_implausible_size_is_said() -> None:
    assert implausible_size(1200.0, SCOPE) is None
    assert "40 ml" in str(implausible_size(40.0, SCOPE))
