"""The eight ways of a square."""

from __future__ import annotations

import numpy as np

from medseg.turns import TURNS, turned


def test_eight_ways_differ_and_hold_the_same_values() -> None:
    square = np.arange(9).reshape(3, 3)
    ways = [turned(square, way) for way in range(TURNS)]
    assert (ways[0] == square).all()
    assert len({way.tobytes() for way in ways}) == TURNS
    assert all(way.flags.c_contiguous and sorted(way.ravel()) == list(range(9)) for way in ways)


def test_other_axes_turn_alike() -> None:
    planes = np.arange(12).reshape(3, 2, 2)
    for way in range(TURNS):
        expected = np.stack([turned(plane, way) for plane in planes])
        np.testing.assert_array_equal(turned(planes, way, axes=(1, 2)), expected)
