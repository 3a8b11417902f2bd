"""Grey values as MONAI's stock transforms give them, and a way back that is rebuilt from plain numbers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from monai.transforms.intensity.array import (
    NormalizeIntensity,
    ScaleIntensity,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
)
from pydantic import ValidationError

from medseg_pipelines.preparation import prepare, rescale, way
from medseg_pipelines.sections import Intensity
from tiny_model import head

GREY = np.random.default_rng(0).normal(30, 100, (1, 9, 10, 11)).astype(np.float32) * (
    np.random.default_rng(1).random((1, 9, 10, 11)) > 0.3
)


@pytest.mark.parametrize(
    ("step", "stock"),
    [
        ({"kind": "range", "source": (-57, 164), "clip": True}, ScaleIntensityRange(-57, 164, 0, 1, clip=True)),
        ({"kind": "range", "source": (-1000, 400), "target": (-1, 1)}, ScaleIntensityRange(-1000, 400, -1, 1)),
        ({"kind": "extremes", "target": (-1, 1)}, ScaleIntensity(-1, 1)),
        (
            {"kind": "percentiles", "source": (2, 97), "target": (0, 2), "clip": True},
            ScaleIntensityRangePercentiles(2, 97, 0, 2, clip=True),
        ),
        ({"kind": "z-score"}, NormalizeIntensity()),
        ({"kind": "z-score", "nonzero": True}, NormalizeIntensity(nonzero=True)),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_steps_equal_those_of_monai(step: dict[str, Any], stock: Callable[[np.ndarray], Any]) -> None:
    expected = np.asarray(stock(GREY))
    scale = float(np.abs(expected).max())
    assert np.allclose(rescale(GREY, **step), expected, rtol=0, atol=8 * scale * np.finfo(np.float32).eps)


def test_constant_images_stay_finite() -> None:
    flat = np.full((3, 3, 3), 7, np.float32)
    for kind in ("extremes", "z-score"):
        assert np.array_equal(rescale(flat, kind=kind), np.zeros_like(flat))
    assert np.array_equal(rescale(0 * flat, kind="z-score", nonzero=True), 0 * flat)


def test_steps_that_say_too_little_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        rescale(GREY, kind="range")
    for source in (None, (1.0, 1.0)):
        with pytest.raises(ValidationError, match="rising"):
            Intensity(kind="range", source=source)


def test_the_way_is_the_same_when_it_is_rebuilt() -> None:
    volume = head(spacing=5.0, orientation="LPI")
    options: dict[str, Any] = {"orientation": "RAS", "spacing": (4.0, 4.0, 6.0)}
    moved, chain = prepare(volume, margin=10.0, percentiles=(1, 99), **options)
    again = way(volume.grid, box=getattr(chain.steps[1], "box", None), **options)
    assert again.steps[-1].after.equals(moved.grid, tolerance=0)
    untouched, _ = prepare(volume, orientation=None, margin=None, spacing=None, percentiles=(0, 100), intensity=())
    assert np.array_equal(untouched.voxels, volume.voxels)
    assert untouched.grid.equals(volume.grid, tolerance=0)
