"""Noise levels found in images, and noise made as scanners make it."""

import numpy as np
import pytest
import torch

from medseg.degradation import add_rician_noise, low_dose_noise, smooth_field
from medseg.noise import detail, noise_level, noise_map


def _anatomy(size: int = 96, slices: int = 4) -> np.ndarray:
    x, y = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
    body = 400 * (np.hypot(x, y) < 0.8) + 200 * (np.hypot(x - 0.2, y) < 0.3) + 60 * np.cos(4 * x)
    return np.repeat(body[:, :, None], slices, 2).astype(np.float32)


def test_detail_keeps_the_strength_of_white_noise() -> None:
    noise = np.random.default_rng(0).normal(scale=3, size=(128, 128, 2))
    assert detail(noise).std() == pytest.approx(3, rel=0.05)
    assert np.abs(detail(np.fromfunction(lambda x, y, z: 3 * x - 5 * y + x * 0.1, (20, 20, 1)))).max() < 1e-3


@pytest.mark.parametrize("level", [4.0, 20.0])
def test_level_is_found_in_anatomy(level: float) -> None:
    noisy = _anatomy() + np.random.default_rng(1).normal(scale=level, size=(96, 96, 4))
    # edges cover an eighth of this picture and lift the median by about as much
    assert noise_level(noisy) == pytest.approx(level, rel=0.15)
    assert np.median(noise_map(noisy)) == pytest.approx(level, rel=0.15)


def test_map_follows_noise_that_varies_and_ignores_a_cut_out_background() -> None:
    rng = np.random.default_rng(2)
    strength = np.linspace(2, 20, 96)[:, None, None]
    noisy = 100 + strength * rng.normal(size=(96, 90, 3))
    noisy[:, :40] = 0.0
    found = noise_map(noisy)
    assert found.shape == noisy.shape
    assert found[8, 60].mean() == pytest.approx(3.5, rel=0.4)
    assert found[88, 60].mean() == pytest.approx(18.5, rel=0.3)
    assert found[88, 10].mean() > 8, "background takes the level of what is beside it"
    assert noise_level(np.zeros((20, 20, 1))) == 0.0
    with pytest.raises(ValueError, match="at least 10 pixels"):
        noise_map(np.zeros((9, 20, 1)))


def test_padding_of_two_values_is_no_image() -> None:
    """As in a head CT that was put upright: the scanner's circle holds one value, what was shifted in another."""
    noisy = 40 + np.random.default_rng(3).normal(scale=6, size=(96, 96, 2)).astype(np.float32)
    noisy[:40] = -1500.0
    noisy[70:] = -1024.0
    assert noise_level(noisy) == pytest.approx(6, rel=0.15)
    assert np.median(noise_map(noisy)[:, :, 0]) == pytest.approx(6, rel=0.25)
    steps = np.repeat(np.arange(8.0), 12)[:, None, None] * np.ones((1, 96, 1))
    assert noise_level(steps) == 0.0, "constant parts inside an image are free of noise"


def test_rician_noise_has_its_moments() -> None:
    """Far above the noise the standard deviation is the level; without signal it is Rayleigh's, mean sqrt(pi / 2)."""
    generator = torch.Generator().manual_seed(0)
    bright = add_rician_noise(torch.full((200, 200), 100.0), 4.0, generator)
    dark = add_rician_noise(torch.zeros(200, 200), 4.0, generator)
    assert bright.std().item() == pytest.approx(4.0, rel=0.02)
    assert bright.mean().item() == pytest.approx(100 + 16 / 200, abs=0.1)
    assert dark.mean().item() == pytest.approx(4 * np.sqrt(np.pi / 2), rel=0.02)
    assert dark.min().item() >= 0


def test_field_stays_within_its_bounds_and_follows_the_generator() -> None:
    one, two = (smooth_field((30, 40), 0.5, 2.0, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert one.shape == (30, 40)
    assert 0.5 <= one.min() < one.max() <= 2.0
    assert torch.equal(one, smooth_field((30, 40), 0.5, 2.0, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, two)


def _phantom() -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 96), torch.linspace(-1, 1, 96), indexing="ij")
    body = torch.full((96, 96), -1000.0)
    body[(x / 0.9) ** 2 + (y / 0.6) ** 2 < 1] = 40.0
    for centre in (-0.6, 0.6):
        body[(x - centre) ** 2 + y**2 < 0.01] = 1200.0
    return body


def test_low_dose_noise_depends_on_what_the_rays_cross() -> None:
    body = _phantom()
    draws = torch.stack([low_dose_noise(body, 4.0, torch.Generator().manual_seed(s)) for s in range(12)])
    strength = draws.std(0)
    between_bones, edge = strength[44:52, 44:52].mean(), strength[2:8, 44:52].mean()
    assert between_bones > 1.5 * edge, "what lies behind bone gets fewer photons"
    assert abs(draws.mean() / draws.std()) < 0.1
    thin = torch.stack([low_dose_noise(body, 1.0, torch.Generator().manual_seed(s)) for s in range(4)])
    assert thin[:, 40:56, 40:56].std() != pytest.approx(float(draws[:, 40:56, 40:56].std()), rel=0.2)


def test_low_dose_noise_streaks_and_a_soft_kernel_correlates_it() -> None:
    body = _phantom()

    def neighbours(cutoff: float) -> float:
        noise = low_dose_noise(body, 4.0, torch.Generator().manual_seed(0), cutoff=cutoff)[36:60, 20:76]
        return float(np.corrcoef(noise[:, 1:].flatten(), noise[:, :-1].flatten())[0, 1])

    assert neighbours(0.4) > neighbours(1.0) + 0.05
    wide = low_dose_noise(body, 4.0, torch.Generator().manual_seed(0))[36:60, 20:76]
    along_x = np.corrcoef(wide[:, 2:].flatten(), wide[:, :-2].flatten())[0, 1]
    along_y = np.corrcoef(wide[2:].flatten(), wide[:-2].flatten())[0, 1]
    assert along_x > along_y + 0.05, "streaks run along the line through both bones"


def test_projection_and_back_projection_recover_an_image() -> None:
    """The filtered back projection of exact line integrals is the image: the noise gets its true place and scale."""
    from medseg import degradation as ct

    image = torch.zeros(64, 64)
    image[20:40, 24:44] = 1.0
    theta = torch.arange(180) * (torch.pi / 180)
    sums = ct._line_integrals(image, theta, 94)
    found = ct._back_projected(ct._ramp_filtered(sums, 1.0), theta, (64, 64))
    assert found[24:36, 28:40].mean().item() == pytest.approx(1.0, abs=0.05)
    assert found[:10].abs().mean().item() < 0.03
