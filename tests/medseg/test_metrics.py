"""Metrics against values worked out by hand and against MONAI."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from scipy import ndimage

from medseg.metrics import dice, hausdorff95, volume_error


def _blob(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 2.0) > 0.03


def _batch(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask)[None, None].float()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 5.0)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_equals_monai(seed: int, spacing: tuple[float, float, float]) -> None:
    mask, reference = _blob(seed, (31, 28, 17)), _blob(seed + 10, (31, 28, 17))
    theirs = compute_hausdorff_distance(_batch(mask), _batch(reference), percentile=95, spacing=list(spacing))
    assert dice(mask, reference) == pytest.approx(compute_dice(_batch(mask), _batch(reference)).item(), abs=1e-6)
    assert hausdorff95(mask, reference, spacing) == pytest.approx(theirs.item(), rel=1e-6)


def test_shifted_cube() -> None:
    mask, reference = np.zeros((2, 12, 12, 12), bool)
    mask[2:6, 2:6, 2:6] = True
    reference[4:8, 2:6, 2:6] = True
    assert dice(mask, reference) == 0.5
    assert hausdorff95(mask, reference, (3.0, 1.0, 1.0)) == 6.0
    assert volume_error(mask, reference) == 0.0


def test_structure_at_the_edge_of_the_grid_has_a_surface_there() -> None:
    mask, reference = np.ones((2, 4, 4, 4), bool)
    reference[3] = False
    assert hausdorff95(mask, reference, (2.0, 1.0, 1.0)) == 2.0


def test_empty_structures() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert math.isnan(dice(empty, empty))
    assert math.isnan(hausdorff95(empty, empty, (1.0, 1.0, 1.0)))
    assert math.isnan(volume_error(full, empty))
    for one, other in ((empty, full), (full, empty)):
        assert dice(one, other) == 0.0
        assert hausdorff95(one, other, (1.0, 1.0, 1.0)) == math.inf
    assert volume_error(empty, full) == -1.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="share one shape"):
        dice(np.zeros((2, 2, 2), bool), np.zeros((2, 2, 3), bool))
