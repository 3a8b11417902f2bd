"""Non-local means and the noise level that it needs: against scikit-image's way, plain sums and known noise."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medseg.degradation import add_rician_noise
from medseg.guide import MARGIN, flat_noise, magnitude_gain, non_local_means, repeated, tissue_noise
from medseg.neighbours import mirrored


def _halves(shape: tuple[int, int, int] = (22, 20, 18)) -> torch.Tensor:
    clean = torch.full(shape, 60.0)
    clean[shape[0] // 2 :] = 100.0
    return clean


def _noisy(level: float) -> torch.Tensor:
    return add_rician_noise(_halves(), level, torch.Generator().manual_seed(1))


def _plain(image: np.ndarray, at: tuple[int, int, int], level: float) -> float:
    """The mean of one voxel, written out: patches of 5, three voxels to each side, 0.8 noise levels."""

    def patch(x: int, y: int, z: int) -> np.ndarray:
        return image[x - 2 : x + 3, y - 2 : y + 3, z - 2 : z + 3]

    total = weights = 0.0
    for step in np.ndindex(7, 7, 7):
        other = tuple(a + s - 3 for a, s in zip(at, step, strict=True))
        apart = float(np.mean((patch(*at) - patch(*other)) ** 2))
        weight = np.exp(-max(0.0, apart - 2 * level**2) / (0.8 * level) ** 2)
        if weight > np.exp(-5):
            total, weights = total + weight * image[other], weights + weight
    return total / weights


def test_each_voxel_is_the_mean_of_those_whose_surroundings_look_alike() -> None:
    image = _noisy(8.0)
    found, plain = non_local_means(image, 8.0), image.double().numpy()
    for at in ((6, 7, 8), (10, 10, 9), (11, 9, 7), (14, 6, 6)):
        assert float(found[at]) == pytest.approx(_plain(plain, at, 8.0), rel=1e-5)


def test_blocks_and_mirrored_ends_change_nothing() -> None:
    image = _noisy(8.0)
    whole = non_local_means(image, 8.0)
    torch.testing.assert_close(non_local_means(image, 8.0, block=14), whole, rtol=1e-5, atol=1e-4)
    index = [mirrored(n, MARGIN) for n in image.shape]
    wide = image[index[0]][:, index[1]][:, :, index[2]]
    inner = non_local_means(wide, 8.0)[MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN]
    torch.testing.assert_close(inner, whole, rtol=1e-5, atol=1e-4)
    assert non_local_means(image[:, :, :1], 8.0).shape == (22, 20, 1), "fewer voxels than a patch has"


def test_noise_goes_and_the_edge_stays() -> None:
    image = _noisy(5.0)
    found = non_local_means(image, 5.0) - _halves()
    assert float(found.std()) < 0.35 * float((image - _halves()).std())
    assert float(found[9:13].mean(dim=(1, 2)).abs().max()) < 1.5, "an edge of 40"
    assert torch.equal(non_local_means(image, 0.0), image)


@pytest.mark.parametrize("level", [2.0, 10.0])
def test_level_is_that_of_the_tissue_and_not_of_the_air(level: float) -> None:
    clean = torch.zeros(48, 40, 12)
    clean[16:40, 10:36] = 100.0
    clean[24:30, 16:24] = 160.0
    image = add_rician_noise(clean, level, torch.Generator().manual_seed(2))
    assert tissue_noise(image) == pytest.approx(level, rel=0.06)
    assert tissue_noise(image[:, :, :1]) == pytest.approx(level, rel=0.15)
    assert tissue_noise(torch.zeros(8, 8, 8)) == 0.0
    for scale in (level, 1.2):
        rounded = (image * (scale / level)).round() * 7
        assert tissue_noise(rounded) == pytest.approx(7 * scale, rel=0.06), "between the steps of whole numbers too"


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_flat_places_tell_the_noise_that_neighbours_share(shared: float) -> None:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(64, 60, 6)), (shared, shared, 0))
    clean = np.zeros((64, 60, 6))
    clean[8:56, 8:52] = 100 + 40 * (np.arange(48) // 12 % 2)[:, None, None]
    image = torch.from_numpy(clean + 6 * noise / noise.std()).float()
    assert flat_noise(image) == pytest.approx(6.0, rel=0.05 if shared == 0 else 0.2), "differences would tell 1.6"
    assert flat_noise(image, samples=1000) == pytest.approx(flat_noise(image), rel=0.1)
    assert flat_noise(torch.full((8, 8, 1), 3.0)) == 0.0


def test_all_compile_to_the_same() -> None:
    image = _noisy(6.0)[:12, :12, :10].contiguous()
    for level_of in (tissue_noise, flat_noise):
        assert torch.jit.script(level_of)(image) == level_of(image)
    torch.testing.assert_close(torch.jit.script(non_local_means)(image, 6.0), non_local_means(image, 6.0))


def test_structure_in_a_residual_is_found_and_noise_is_not() -> None:
    clean, noise = _halves(), torch.randn(22, 20, 18, generator=torch.Generator().manual_seed(2)) * 4
    edge = torch.zeros_like(clean)
    edge[9:13] = torch.tensor([1.5, 3, -3, -1.5])[:, None, None]
    found = repeated(edge + noise, clean - edge, 4.0)
    assert float((found - edge)[8:14].std()) < 0.25 * 4, "noise stays in the residual"
    assert float(found[10:12].mean((1, 2)).sub(edge[10:12, 0, 0]).abs().max()) < 0.5, "the edge does not"
    steep = clean.clone()
    steep += 60 * torch.arange(22)[:, None, None] + 25 * torch.arange(20)[None, :, None] ** 1.5
    alone, together = (float(repeated(noise, steep, 4.0, contrast=share).std()) for share in (0.0, 0.5))
    assert together < 0.25 * 4 < 0.35 * 4 < alone, "of steep edges too, where hardly two voxels look alike"
    black = torch.zeros_like(clean)
    dark = add_rician_noise(black, 4.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(dark.mean(), magnitude_gain(black, 4.0).mean(), rtol=0.02, atol=0)
    assert float(repeated(dark, black, 4.0).mean().abs()) < 0.2, "what noise adds to magnitudes does not come back"
    assert float(repeated(dark, black, 4.0, magnitudes=False).mean()) == pytest.approx(5.0, abs=0.3), "a mean does"
    blank = torch.zeros_like(black, dtype=torch.bool)
    blank[:4] = True
    beside = repeated(dark, black, 4.0, blank=blank)[4]
    assert 2.5 < float(beside.mean()) < 5.5, "beside what was painted over nobody knows of a gain"
    assert not repeated(black, black, 4.0).any()
    assert not repeated(noise, clean, 0.0).any()
    torch.testing.assert_close(torch.jit.script(repeated)(noise, clean, 4.0), repeated(noise, clean, 4.0))
