"""Things told apart: what is learned of them, the cut, their measures and scores."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medseg.instance_measures import measure_things
from medseg.instance_scores import score_instances
from medseg.instances import Separation, instance_targets, separate


def discs(size: tuple[int, int], places: list[tuple[float, float, float]]) -> NDArray[np.int32]:
    """Numbered discs (row, column, radius), later ones on top."""
    y, x = np.mgrid[: size[0], : size[1]]
    ids = np.zeros(size, np.int32)
    for number, (row, column, radius) in enumerate(places, start=1):
        ids[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = number
    return ids


CELLS = discs((90, 120), [(20, 20, 12), (20, 41, 10), (60, 60, 15), (60, 88, 14), (84, 20, 9), (5, 100, 1)])


def as_found(ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    return (instance_targets(ids) * 255).astype(np.uint8)


def test_cores_of_neighbours_do_not_touch_and_lie_inside() -> None:
    things, cores = instance_targets(CELLS) > 0
    np.testing.assert_array_equal(things, CELLS > 0)
    assert not (cores & ~things).any()
    for number in range(1, 6):
        mine = number == CELLS
        share = (cores & mine).sum() / mine.sum()
        assert 0.1 < share < 0.75
    assert not (np.diff(CELLS, axis=1) * (cores[:, 1:] & cores[:, :-1])).any()


def test_what_was_taken_apart_comes_back() -> None:
    again = separate(as_found(CELLS), Separation())
    assert again.max() == 6
    scores = score_instances(again, CELLS)
    assert scores.f1 == 1.0
    assert scores.panoptic_quality > 0.98


def test_squares_give_what_the_whole_gives() -> None:
    whole = separate(as_found(CELLS), Separation())
    parts = separate(as_found(CELLS), Separation(block=37, halo=40))
    assert parts.max() == whole.max()
    assert score_instances(parts, whole).panoptic_quality == 1.0


def test_a_thing_without_a_core_stays_and_a_small_one_goes() -> None:
    found = as_found(CELLS)
    found[1, CELLS == 5] = 0
    kept = separate(found, Separation(smallest=10))
    assert kept[84, 20] > 0
    assert not kept[CELLS == 6].any()
    assert set(np.unique(kept)) == set(range(6))


def test_nothing_found_is_an_empty_picture() -> None:
    nothing = separate(np.zeros((2, 20, 30), np.uint8), Separation())
    assert not nothing.any()
    assert len(measure_things(nothing)) == 0
    assert score_instances(nothing, nothing).panoptic_quality == 1.0


def test_measures_of_known_forms() -> None:
    ids = np.zeros((700, 80), np.int32)
    ids[100:110, 20:60] = 1  # 10 x 40
    ids[500:700, 70:80] = 2  # touches the border
    things = measure_things(ids)
    np.testing.assert_array_equal(things.area, [400, 2000])
    assert (things.row[0], things.column[0]) == (104.5, 39.5)
    assert [side[0] for side in (things.top, things.bottom, things.left, things.right)] == [100, 109, 20, 59]
    assert things.long[0] == pytest.approx(40 * 4 / 12**0.5)
    assert things.short[0] == pytest.approx(10 * 4 / 12**0.5)
    np.testing.assert_array_equal(things.at_border, [False, True])


def test_scores_of_a_known_case() -> None:
    true, found = np.zeros((10, 30), int), np.zeros((10, 30), int)
    true[:, :10], true[:, 10:20] = 1, 2
    found[:, :8], found[:, 25:] = 7, 9  # 80 of 100 shared; a false one; the second missed
    scores = score_instances(found, true)
    assert (scores.found, scores.true) == (2, 2)
    assert scores.f1 == pytest.approx(2 / 4)
    assert scores.panoptic_quality == pytest.approx(2 * 0.8 / 4)
    assert scores.aji == pytest.approx(80 / (100 + 100 + 50))
    assert scores.dice == pytest.approx(160 / (130 + 200))


def test_scores_do_not_depend_on_the_numbers() -> None:
    other = np.array([0, 6, 5, 4, 3, 2, 60_000])[CELLS]
    assert score_instances(other, CELLS).aji == 1.0
    with pytest.raises(ValueError, match="one size"):
        score_instances(CELLS[:5], CELLS)
