"""Grey values from any scanner to one range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.intensity import rescale_percentiles


def _noise(shape: tuple[int, ...] = (20, 21, 22)) -> np.ndarray:
    return np.random.default_rng(0).gamma(2.0, 100.0, size=shape)


def test_percentiles_become_zero_and_one() -> None:
    voxels = _noise()
    low, high = np.percentile(voxels, [1, 99])
    scaled = rescale_percentiles(voxels, 1, 99)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, np.clip((voxels - low) / (high - low), 0, 1.5), atol=1e-6)


@given(slope=st.floats(1e-3, 1e3), offset=st.floats(-100, 100))
def test_unit_of_the_scanner_does_not_matter(slope: float, offset: float) -> None:
    voxels = _noise((8, 9, 10))
    # float32 carries seven digits of the greatest grey value, and an offset eats some of them
    allowed = 1e-6 * (2 + abs(offset) / (slope * voxels.std()))
    again = rescale_percentiles(slope * voxels + offset, 1, 99)
    np.testing.assert_allclose(again, rescale_percentiles(voxels, 1, 99), atol=allowed)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64, np.float32])
def test_any_voxel_type_and_the_input_stays(dtype: type) -> None:
    voxels = np.clip(_noise(), 0, 255).astype(dtype)
    before = voxels.copy()
    scaled = rescale_percentiles(voxels, 0, 100)
    assert np.array_equal(voxels, before)
    assert (float(scaled.min()), float(scaled.max())) == (0.0, 1.0)


def test_top_is_clipped() -> None:
    voxels = np.concatenate([np.linspace(0, 1, 999), [50.0]])
    assert float(rescale_percentiles(voxels, 1, 99).max()) == 1.5
    assert float(rescale_percentiles(voxels, 1, 99, top=2.0).max()) == 2.0


def test_images_of_almost_one_value() -> None:
    assert not rescale_percentiles(np.full((4, 4, 4), 7), 1, 99).any()
    dot = np.zeros((10, 10, 10), np.int16)
    dot[5, 5, 5] = 300
    scaled = rescale_percentiles(dot, 1, 99)
    assert scaled[5, 5, 5] == 1
    assert scaled.sum() == 1


def test_layout_in_memory_does_not_matter() -> None:
    voxels = _noise()
    assert np.array_equal(rescale_percentiles(voxels.T, 1, 99).T, rescale_percentiles(voxels, 1, 99))
