"""One connected body, what lies apart dropped."""

import numpy as np

from medseg.components import keep_largest


def _scene() -> np.ndarray:
    labels = np.zeros((20, 12, 12), np.uint8)
    labels[2:8, 2:8, 2:8] = 1  # the body, of two structures
    labels[5:8, 2:8, 2:8] = 2
    labels[15:17, 5:7, 5:7] = 1  # an island
    labels[8:15, 5, 5] = 9  # a bridge of fluid between the two
    return labels


def test_islands_go_though_fluid_leads_to_them() -> None:
    kept = keep_largest(_scene(), loose=[9], reach=3)
    assert not kept[15:17].any()
    assert np.array_equal(kept[:8], _scene()[:8])


def test_fluid_stays_near_the_body_only() -> None:
    kept = keep_largest(_scene(), loose=[9], reach=3)
    assert np.array_equal(np.flatnonzero(kept[:, 5, 5] == 9), [8, 9, 10])


def test_nothing_but_fluid_is_left_as_it_is() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[1, 1, 1] = 9
    assert np.array_equal(keep_largest(labels, loose=[9]), labels)
    assert not keep_largest(np.zeros((3, 3, 3), np.uint8)).any()
