"""Lengths, widths and tortuosity of vessels whose true values are known."""

import numpy as np
import pytest

from medseg.vessels import centre_line_dice, measure_vessels

EVERYWHERE = np.ones((400, 400), bool)


def _line(angle: float, length: float = 300, width: float = 6) -> np.ndarray:
    y, x = np.mgrid[:400, :400] - 199.5
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (abs(across) <= width / 2) & (abs(along) <= length / 2)


@pytest.mark.parametrize("angle", np.linspace(0, np.pi / 2, 7))
def test_a_straight_vessel_is_straight_at_any_angle(angle: float) -> None:
    found = measure_vessels(_line(angle), EVERYWHERE)
    assert found.length == pytest.approx(300, rel=0.03)
    assert found.width == pytest.approx(6, rel=0.1)
    assert found.tortuosity == pytest.approx(1, abs=0.01)
    assert found.segments == 1


def test_half_a_circle_is_pi_over_two_times_its_chord() -> None:
    y, x = np.mgrid[:400, :400] - 200
    found = measure_vessels((abs(np.hypot(y, x) - 120) <= 3) & (y <= 0), EVERYWHERE)
    assert found.tortuosity == pytest.approx(np.pi / 2, rel=0.03)
    assert found.length == pytest.approx(120 * np.pi, rel=0.03)


def test_millimetres_scale_with_the_spacing() -> None:
    mask = _line(0.4)
    pixels, mm = measure_vessels(mask, EVERYWHERE), measure_vessels(mask, EVERYWHERE, (0.01, 0.01))
    assert mm.length == pytest.approx(0.01 * pixels.length)
    assert mm.area == pytest.approx(1e-4 * pixels.area)
    assert mm.density == pytest.approx(100 * pixels.density)
    assert (mm.area_fraction, mm.tortuosity) == pytest.approx((pixels.area_fraction, pixels.tortuosity))


def test_a_cross_has_four_segments_and_a_ring_none_that_is_straight() -> None:
    cross = measure_vessels(_line(0.0) | _line(np.pi / 2), EVERYWHERE)
    assert cross.segments == 4
    assert cross.length == pytest.approx(600, rel=0.04)
    y, x = np.mgrid[:400, :400] - 200
    assert measure_vessels(abs(np.hypot(y, x) - 100) <= 3, EVERYWHERE).tortuosity > 10


def test_nothing_measures_nothing_and_the_field_counts() -> None:
    empty = measure_vessels(~EVERYWHERE, EVERYWHERE)
    assert (empty.length, empty.width, empty.tortuosity, empty.segments) == (0, 0, 0, 0)
    left = EVERYWHERE.copy()
    left[:, 200:] = False
    half, whole = measure_vessels(_line(0.0), left), measure_vessels(_line(0.0), EVERYWHERE)
    assert half.length == pytest.approx(whole.length / 2, rel=0.05)
    assert half.area_fraction == pytest.approx(whole.area_fraction, rel=0.02)


def test_centre_lines_notice_a_gap_that_area_does_not() -> None:
    whole = _line(0.0)
    broken = whole.copy()
    broken[:, 190:210] = False
    assert centre_line_dice(whole, whole) == 1
    assert centre_line_dice(broken, whole) < 0.98
    thick = _line(0.0, width=11)
    assert centre_line_dice(thick, whole) > centre_line_dice(broken, whole)
    assert np.isnan(centre_line_dice(~EVERYWHERE, ~EVERYWHERE))
    assert centre_line_dice(whole, ~EVERYWHERE) == 0
