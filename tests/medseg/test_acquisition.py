"""Sampling of finer volumes: constants, frequencies, places, the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.acquisition import Acquisition, along_axes, kspace_axis, lanczos_axis, profile_axis, spline_axis
from medseg.networks.disgan import LOBES, doubled

SIZES = [(2, 2), (12, 2), (14, 2), (15, 3), (40, 8)]


@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_a_constant_stays_what_it_is(size: int, factor: int) -> None:
    matrices = [
        kspace_axis(size, factor),
        kspace_axis(size, factor, taper=0.5),
        profile_axis(size, factor, width=0.7),
        lanczos_axis(size // factor, factor),
        spline_axis(size // factor, factor),
    ]
    for matrix in matrices:
        off = (matrix.sum(1) - 1).abs().max()
        assert float(off) < 2e-6  # the filter of SciPy behind splines stops at 1e-6


@pytest.mark.parametrize(("size", "factor"), SIZES)
def test_truncation_keeps_low_frequencies_and_drops_high_ones(size: int, factor: int) -> None:
    matrix, kept = kspace_axis(size, factor), size // factor

    def wave(frequency: int, voxels: int) -> torch.Tensor:
        return torch.cos(torch.pi * frequency * (torch.arange(voxels, dtype=torch.float64) + 0.5) / voxels)

    for frequency in range(size):
        expected = wave(frequency, kept) if frequency < kept else torch.zeros(kept, dtype=torch.float64)
        torch.testing.assert_close(matrix @ wave(frequency, size), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("matrix", [kspace_axis(24, 2), profile_axis(24, 2), profile_axis(24, 4)])
def test_both_grids_share_their_edges(matrix: torch.Tensor) -> None:
    fine = (torch.arange(24, dtype=torch.float64) + 0.5) / 24
    coarse = (torch.arange(len(matrix), dtype=torch.float64) + 0.5) / len(matrix)
    inner = slice(len(matrix) // 4, -len(matrix) // 4)
    bump = torch.exp(-0.5 * ((fine - 0.5) / 0.2) ** 2)
    found = matrix @ bump
    torch.testing.assert_close(found, found.flip(0))  # what lies in the middle stays there
    torch.testing.assert_close(found[inner], torch.exp(-0.5 * ((coarse - 0.5) / 0.2) ** 2)[inner], rtol=0.05, atol=0)


def test_a_taper_only_weakens_high_frequencies() -> None:
    plain, filtered = kspace_axis(32, 2), kspace_axis(32, 2, taper=0.6)
    gains = torch.linalg.norm(filtered @ torch.linalg.pinv(plain), dim=0)
    assert float(gains.max()) <= 1 + 1e-12
    assert float(torch.linalg.norm(filtered)) < float(torch.linalg.norm(plain))


def test_a_wide_profile_is_no_finer_than_a_narrow_one() -> None:
    edge = (torch.arange(40) >= 20).double()
    wide, narrow = (profile_axis(40, 4, width=width) @ edge for width in (1.2, 0.6))
    assert float((wide - wide.round()).abs().sum()) > float((narrow - narrow.round()).abs().sum())


def test_splines_are_those_of_scipy() -> None:
    x = np.random.default_rng(0).normal(size=13)
    expected = ndimage.zoom(x, 3, order=3, mode="reflect", grid_mode=True)
    np.testing.assert_allclose(spline_axis(13, 3).numpy() @ x, expected, atol=1e-12)


def test_lanczos_as_a_matrix_and_as_a_convolution() -> None:
    x = torch.randn(1, 2, 20, 19, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = along_axes(x[0, 1], [lanczos_axis(n, 2, lobes=LOBES) for n in x.shape[2:]])
    inner = (slice(2 * LOBES, -2 * LOBES),) * 3  # at the ends the one mirrors, the other repeats
    torch.testing.assert_close(doubled(x)[0, 1][inner], expected[inner])


def test_a_volume_that_is_made_to_fit_fits_and_changes_least() -> None:
    generator = torch.Generator().manual_seed(1)
    acquisition = Acquisition([kspace_axis(16, 2), None, profile_axis(20, 4)])
    fine = torch.randn(16, 5, 20, generator=generator)
    acquired = torch.randn(8, 5, 5, generator=generator)
    fitted = acquisition.enforce(fine, acquired)
    torch.testing.assert_close(acquisition.measure(fitted), acquired, rtol=0, atol=2e-6)
    torch.testing.assert_close(acquisition.enforce(fitted, acquired), fitted, rtol=0, atol=2e-6)
    assert torch.linalg.norm(fitted - fine) <= torch.linalg.norm(
        acquisition.enforce(torch.zeros(16, 5, 20), acquired) - fine
    )


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of factor, got 15 and 2"):
        kspace_axis(15, 2)
