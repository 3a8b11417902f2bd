"""Wavelet transforms against PyWavelets, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.wavelets import from_slice_bands, from_volume_bands, slice_bands, volume_bands

pytest.importorskip("pytorch_wavelets")
pywt = pytest.importorskip("pywt")


@pytest.mark.parametrize("shape", [(8, 6, 4), (7, 9, 5), (1, 2, 3)], ids=str)
def test_volumes_equal_pywavelets_and_come_back(shape: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    bands = volume_bands(x)
    found = pywt.dwtn(x.double().numpy(), "haar", mode="zero", axes=(-3, -2, -1))
    for number, name in enumerate(sorted(found)):
        np.testing.assert_allclose(bands[:, number].numpy(), found[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(from_volume_bands(bands, shape), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "sym4", "bior2.2"])
@pytest.mark.parametrize("shape", [(16, 12), (15, 9)], ids=str)
def test_slices_equal_pywavelets_and_come_back(shape: tuple[int, int], wavelet: str) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(1))
    bands = slice_bands(x, wavelet)
    low, high = pywt.dwt2(x.double().numpy(), wavelet, mode="zero")
    for number, expected in enumerate((low, *high)):
        np.testing.assert_allclose(bands[:, number].numpy(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(from_slice_bands(bands, shape, wavelet), x, rtol=0, atol=5e-6)


def test_slices_then_depth_give_the_bands_of_volumes() -> None:
    x = torch.randn(1, 1, 6, 8, 4, generator=torch.Generator().manual_seed(2))
    planes = slice_bands(x[0].movedim(1, 0))[:, :, 0]  # (D, 4, h, w): aa, da, ad, dd
    low, high = (planes[0::2] + planes[1::2]) / 2**0.5, (planes[0::2] - planes[1::2]) / 2**0.5
    order = (0, 2, 1, 3)  # of volumes H counts more than W
    together = torch.cat((low[:, order], high[:, order]), dim=1).movedim(1, 0)
    torch.testing.assert_close(volume_bands(x)[0, :, 0], together, rtol=0, atol=1e-6)
