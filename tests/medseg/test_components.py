"""One connected body, what lies apart dropped."""

import numpy as np

from medseg.components import keep_largest, without_specks


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


def test_specks_and_the_border_of_the_field_go_and_vessels_that_reach_it_stay() -> None:
    y, x = np.mgrid[:80, :80]
    distance = np.hypot(y - 40, x - 40)
    field = distance < 38
    labels = np.where((abs(x - 40) < 2) & field, np.uint8(1), np.uint8(0))  # a vessel from border to border
    kept = labels.copy()
    labels[(distance > 34) & field & (x > 50)] = 1  # the border
    labels[20:23, 20:23] = 1  # a speck
    labels[25:28, 20:23] = 2
    assert np.array_equal(without_specks(labels, field, least=10, rim=5), kept)
    assert np.array_equal(without_specks(labels, field, least=0, rim=0), labels)
