"""Built-in partitioners: what they group, and what they must not depend on."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medseg.partition import Intensity, Partitioner, Superpixels, partition
from medseg.partition.intensity import cluster_of_bins

BUILT_IN = [Intensity(), Superpixels(), Superpixels(count=40, through_slices=True)]


@pytest.fixture
def phantom() -> np.ndarray:
    """A body with two organs of equal grey value in air, in HU, with noise; (X, Y, S)."""
    x, y, _ = np.mgrid[:64, :72, :3]
    values = np.full(x.shape, -1000.0)
    values[(x - 32) ** 2 + (y - 36) ** 2 < 28**2] = -80
    for place in (22, 50):
        values[(x - 32) ** 2 + (y - place) ** 2 < 8**2] = 60
    return values + np.random.default_rng(0).normal(0, 10, x.shape)


@pytest.mark.parametrize("how", BUILT_IN, ids=repr)
def test_regions_are_the_same_each_time_and_in_any_unit(how: Partitioner, phantom: np.ndarray) -> None:
    found = partition(phantom, how)
    assert found.dtype == np.int32
    assert found.shape == phantom.shape
    assert found.min() >= 1
    np.testing.assert_array_equal(found, partition(phantom.copy(), how))
    assert (partition(phantom * 4 + 4096, how) == found).mean() > 0.999  # up to rounding at borders


@pytest.mark.parametrize("how", BUILT_IN, ids=repr)
@pytest.mark.parametrize("size", [(1, 1, 1), (3, 2, 1), (5, 1, 2), (16, 16, 4)])
def test_a_constant_image_is_one_region(how: Partitioner, size: tuple[int, int, int]) -> None:
    found = partition(np.full(size, -1024, np.int16), how)
    np.testing.assert_array_equal(found, np.ones(size, np.int32))


@pytest.mark.parametrize("how", BUILT_IN, ids=repr)
def test_progress_counts_slices_and_may_stop_the_run(how: Partitioner, phantom: np.ndarray) -> None:
    calls: list[tuple[int, int]] = []
    partition(phantom, how, progress=lambda done, of: calls.append((done, of)))
    assert calls[-1] == (3, 3)

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        partition(phantom, how, progress=stop)


def test_intensity_groups_tissue_and_not_places(phantom: np.ndarray) -> None:
    found = partition(phantom, Intensity(clusters=3, smoothing=0))  # smoothing makes a fourth, of mixed pixels
    air, body, left, right = (found[place] for place in ((2, 2, 0), (32, 36, 1), (32, 22, 0), (32, 50, 2)))
    assert (air, body, left, right) == (1, 2, 3, 3)
    assert (found[26:39, 16:29] == 3).mean() > 0.9


def test_intensity_keeps_a_cluster_together_through_slices_of_other_content(phantom: np.ndarray) -> None:
    apart = phantom.copy()
    apart[:, :, 2] = -1000
    found = partition(apart, Intensity(clusters=3, smoothing=0))
    assert set(np.unique(found[:, :, 2])) == {1}


def test_an_outlier_does_not_take_the_clusters(phantom: np.ndarray) -> None:
    phantom[0, 0, 0] = 3e8
    found = partition(phantom, Intensity(clusters=3, smoothing=0))
    assert found[32, 22, 0] != found[32, 36, 0] != found[60, 70, 0]


def test_smoothing_reaches_less_far_across_thick_slices() -> None:
    values = np.zeros((9, 9, 4))
    values[:, :, 0] = 1000
    cubes, thick = (partition(values, Intensity(), spacing=(1, 1, step)) for step in (1.0, 10.0))
    assert len(np.unique(cubes)) == 4  # the edge is smeared over all slices
    assert len(np.unique(thick)) == 2


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 5))
def test_histogram_is_cut_where_the_variance_is_least(counts: list[int], clusters: int) -> None:
    if not any(counts):
        counts = [1, *counts]
    values = np.repeat(np.arange(len(counts)), counts)

    def loss(numbers: np.ndarray) -> float:
        return sum(float(np.var(values[numbers == n]) * (numbers == n).sum()) for n in np.unique(numbers))

    found = cluster_of_bins(np.array(counts), clusters)
    assert found[np.flatnonzero(counts)[0]] == 1
    assert set(np.diff(found)) <= {0, 1}
    assert len(np.unique(found[values])) == min(clusters, len(np.unique(values)))
    cuts = (np.searchsorted(cut, values, side="right") for cut in combinations(range(1, len(counts)), clusters - 1))
    assert loss(found[values]) <= min(map(loss, cuts), default=0.0) + 1e-9


def _pieces(inside: np.ndarray) -> int:
    numbers = np.empty(inside.shape, np.int32)
    ndimage.label(inside, output=numbers)
    return int(numbers.max())


def test_superpixels_are_connected_and_start_anew_in_each_slice(phantom: np.ndarray) -> None:
    found = partition(phantom, Superpixels(count=60))
    for index in range(3):
        ids = np.unique(found[:, :, index])
        assert ids[0] == 1
        assert 20 < len(ids) < 120
        assert all(_pieces(found[:, :, index] == i) == 1 for i in ids)


def test_superpixels_through_slices_share_ids(phantom: np.ndarray) -> None:
    found = partition(phantom, Superpixels(count=40, through_slices=True))
    assert set(np.unique(found[:, :, 0])) & set(np.unique(found[:, :, 2]))


def test_superpixels_follow_an_edge(phantom: np.ndarray) -> None:
    found = partition(phantom, Superpixels(count=100, smoothing=0))[:, :, 1]
    inside = phantom[:, :, 1] > -500
    shares = [inside[found == i].mean() for i in range(1, int(found.max()) + 1)]
    assert sum(0.05 < share < 0.95 for share in shares) < 0.1 * len(shares)


def test_wrong_stacks_and_values_are_refused(phantom: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(X, Y, S\)"):
        partition(phantom[..., 0], Intensity())
    with pytest.raises(ValueError, match="not empty"):
        partition(phantom[:0], Intensity())
    phantom[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        partition(phantom, Superpixels())


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="clusters must be above 0, got 0"):
        Intensity(clusters=0)
    with pytest.raises(ValueError, match="compactness"):
        Superpixels(compactness=0)
    with pytest.raises(ValueError, match="smoothing"):
        Superpixels(smoothing=-1)


def test_naming_a_partitioner_loads_neither_torch_nor_scikit_image() -> None:
    code = "import sys, medseg.partition; assert not {'torch', 'skimage', 'scipy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
