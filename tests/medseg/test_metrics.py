"""Metrics against values worked out by hand and against MONAI."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.regression import PSNRMetric, SSIMMetric
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy import ndimage
from scipy.ndimage import gaussian_filter

from medseg.metrics import dice, edge_preservation, flat_bias, nrmse, psnr, ssim, surface_distances, volume_error

UNIT = (1.0, 1.0, 1.0)


def _blob(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 2.0) > 0.03


def _images(seed: int, shape: tuple[int, ...], offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reference = ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 500 + offset
    return reference + rng.normal(size=shape) * 20, reference


def _batch(voxels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(voxels)[None, None].float()


@pytest.mark.parametrize("spacing", [UNIT, (0.7, 0.7, 5.0)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_label_measures_equal_monai(seed: int, spacing: tuple[float, float, float]) -> None:
    mask, reference = _blob(seed, (31, 28, 17)), _blob(seed + 10, (31, 28, 17))
    masks, step = (_batch(mask), _batch(reference)), list(spacing)
    ours = surface_distances(mask, reference, spacing)
    assert dice(mask, reference) == pytest.approx(compute_dice(*masks).item(), abs=1e-6)
    assert ours.hausdorff95 == pytest.approx(
        compute_hausdorff_distance(*masks, percentile=95, spacing=step).item(), rel=1e-6
    )
    assert ours.average == pytest.approx(
        compute_average_surface_distance(*masks, symmetric=True, spacing=step).item(), rel=1e-6
    )
    for tolerance in (0.5, 1.2):  # no distance on either grid, which rounding could put on either side
        theirs = compute_surface_dice(*masks, [tolerance], include_background=True, spacing=step).item()
        assert ours.normalised_dice(tolerance) == pytest.approx(theirs, abs=1e-6)


def test_shifted_cube() -> None:
    mask, reference = np.zeros((2, 12, 12, 12), bool)
    mask[2:6, 2:6, 2:6] = True
    reference[4:8, 2:6, 2:6] = True
    assert dice(mask, reference) == 0.5
    assert surface_distances(mask, reference, (3.0, 1.0, 1.0)).hausdorff95 == 6.0
    assert volume_error(mask, reference) == 0.0


def test_shifted_slab_has_known_surface_measures() -> None:
    mask, reference = np.zeros((2, 9, 1, 1), bool)  # every voxel of a line is surface
    mask[2:5], reference[3:6] = True, True
    found = surface_distances(mask, reference, (2.0, 1.0, 1.0))
    assert sorted(found.there) == sorted(found.back) == [0.0, 0.0, 2.0]
    assert found.average == pytest.approx(4 / 6)
    assert (found.normalised_dice(1.9), found.normalised_dice(2.0)) == (4 / 6, 1.0)


def test_structure_at_the_edge_of_the_grid_has_a_surface_there() -> None:
    mask, reference = np.ones((2, 4, 4, 4), bool)
    reference[3] = False
    assert surface_distances(mask, reference, (2.0, 1.0, 1.0)).hausdorff95 == 2.0


def test_empty_structures() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    neither = surface_distances(empty, empty, UNIT)
    for value in (dice(empty, empty), neither.hausdorff95, neither.average, neither.normalised_dice(1.0)):
        assert math.isnan(value)
    assert math.isnan(volume_error(full, empty))
    for one, other in ((empty, full), (full, empty)):
        found = surface_distances(one, other, UNIT)
        assert dice(one, other) == 0.0
        assert (found.hausdorff95, found.average, found.normalised_dice(1.0)) == (math.inf, math.inf, 0.0)
    assert volume_error(empty, full) == -1.0


@pytest.mark.parametrize("shape", [(60, 21, 17), (11, 16, 40)], ids=str)  # more than one slab; one window long
@pytest.mark.parametrize("offset", [0.0, -1000.0])
def test_image_measures_equal_monai(shape: tuple[int, int, int], offset: float) -> None:
    image, reference = _images(0, shape, offset)
    span = float(np.ptp(reference))
    # MONAI computes in single precision: its cancellation grows with the offset, so it gets images without one there.
    volumes = _batch(image - offset), _batch(reference - offset)
    assert psnr(image, reference, span) == pytest.approx(PSNRMetric(max_val=span)(*volumes).item(), abs=1e-4)
    if offset == 0:
        theirs = SSIMMetric(spatial_dims=3, data_range=span)(*volumes).item()
        assert ssim(image, reference, span) == pytest.approx(theirs, abs=1e-5)
    error = math.sqrt(((image - reference) ** 2).mean()) / span
    assert nrmse(image, reference, span) == pytest.approx(error, rel=1e-12)


def test_ssim_of_one_slice_is_two_dimensional() -> None:
    image, reference = _images(1, (1, 40, 33))
    span = float(np.ptp(reference))
    theirs = SSIMMetric(spatial_dims=2, data_range=span)(_batch(image[0]), _batch(reference[0])).item()
    assert ssim(image, reference, span) == pytest.approx(theirs, abs=1e-5)


def test_ssim_counts_only_what_is_inside() -> None:
    image, reference = _images(2, (40, 16, 16))
    inside = np.ones(image.shape, bool)
    inside[20:] = False
    spoilt = image.copy()
    spoilt[26:] = 0  # six voxels: the window reaches five
    assert ssim(spoilt, reference, 100.0, inside=inside) == ssim(image, reference, 100.0, inside=inside)
    assert math.isnan(ssim(image, reference, 100.0, inside=np.zeros(image.shape, bool)))


def test_equal_images() -> None:
    image, _ = _images(3, (12, 12, 12))
    assert (psnr(image, image, 1.0), nrmse(image, image, 1.0)) == (math.inf, 0.0)
    assert ssim(image, image, 1.0) == pytest.approx(1.0)


def test_unsigned_images_do_not_wrap_round() -> None:
    assert nrmse(np.zeros(8, np.uint8), np.full(8, 2, np.uint8), 4.0) == 0.5


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="share one shape"):
        dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))
    with pytest.raises(ValueError, match="tolerance must be"):
        surface_distances(np.ones((2, 2), bool), np.ones((2, 2), bool), (1.0, 1.0)).normalised_dice(-1.0)
    with pytest.raises(ValueError, match="data range must be"):
        psnr(np.zeros(3), np.ones(3), 0.0)
    with pytest.raises(ValueError, match="must hold voxels"):
        psnr(np.zeros((0, 3)), np.zeros((0, 3)), 1.0)


def _steps() -> np.ndarray:
    """Two flat halves with an edge between, above an empty frame."""
    image = np.zeros((24, 24, 24))
    image[4:-4, 4:12, 4:-4], image[4:-4, 12:-4, 4:-4] = 50.0, 100.0
    return image


def test_edges_are_lost_by_blur_and_by_noise() -> None:
    reference = _steps()
    noise = np.random.default_rng(0).normal(size=reference.shape)
    assert edge_preservation(reference, reference) == pytest.approx(1.0)
    assert edge_preservation(3 * reference + 7, reference) == pytest.approx(1.0)
    blurred, noisy = (edge_preservation(x, reference) for x in (gaussian_filter(reference, 2), reference + 20 * noise))
    assert blurred < 0.95
    assert noisy < edge_preservation(reference + 2 * noise, reference) < 1.0
    assert math.isnan(edge_preservation(reference, np.ones_like(reference)))


def test_bias_is_that_of_flat_tissue_alone() -> None:
    reference = _steps()
    shifted = np.where(reference > 0, reference + 5, 0)
    assert flat_bias(shifted, reference, 100.0) == pytest.approx(0.05)
    only_edges = reference.copy()
    only_edges[:, 11:13] += 40
    assert flat_bias(only_edges, reference, 100.0) == pytest.approx(0.0)
    assert math.isnan(flat_bias(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)), 1.0))
