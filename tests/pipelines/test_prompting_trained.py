"""Walks through a volume with weights that have learned: they end where the structure ends."""

from pathlib import Path

import numpy as np
import pytest

from box_task import bars, middle_box, outlines, walks
from medseg.prompts import Prompts
from medseg_pipelines import load_model
from medseg_pipelines.prompting.model import Prompting


@pytest.fixture(scope="module")
def model() -> Prompting:
    """A small DB-SAM that has learned to follow boxes around bars."""
    loaded = load_model(Path(__file__).parents[1] / "bars_model", device="cpu")
    assert isinstance(loaded, Prompting)
    return loaded


def test_boxes_are_followed(model: Prompting) -> None:
    found, itself = outlines(model, seeds=range(2000, 2002), most=20)
    assert np.mean(found) > 0.9
    assert np.mean(itself) < 0.75


def test_walks_end_where_the_bars_end(model: Prompting) -> None:
    done = walks(model, seeds=range(1002, 1004))
    assert len(done) == 8
    assert np.mean([walk.dice for walk in done]) > 0.9
    assert all(walk.beyond <= 1 and not walk.missed for walk in done)


def test_a_walk_ends_at_the_bar_though_another_one_lies_there(model: Prompting) -> None:
    image, labels = bars(1001)
    true = labels.voxels == 4
    found = model.session(image).segment(Prompts(items=(middle_box(true, image),)))
    ends = np.flatnonzero(true.any((0, 1)))[[0, -1]]
    there = np.flatnonzero((found.labels > 0).any((0, 1)))
    assert abs(ends - there[[0, -1]]).max() <= 1
    behind = [score for at, score in found.scores[1].items() if not ends[0] - 1 <= at <= ends[1] + 1]
    assert all(score < 0.4 for score in behind)


def test_three_planes_agree_on_most_of_a_bar(model: Prompting) -> None:
    (agreed,) = walks(model, seeds=range(1004, 1005), consensus=True, count=1)
    assert agreed.dice > 0.85
    assert agreed.beyond <= 1
