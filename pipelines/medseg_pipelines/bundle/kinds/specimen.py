"""Made-up images that bundles are tried on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medseg.volume import Volume


def made_up(shape: Sequence[int], spacing: Sequence[float], *, body: Sequence[float] = (1.0, 1.0, 1.0)) -> Volume:
    """An oblique image with grey values of a soft body, whole numbers.

    Args:
        shape: Voxels.
        spacing: mm along the array axes.
        body: Half axes of what is no background, in shares of nearly the whole image.
    """
    axes = np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in shape], indexing="ij")
    radius = np.sqrt(sum((axis / share) ** 2 for axis, share in zip(axes, body, strict=True)))
    noise = np.random.default_rng(0).normal(size=tuple(shape))
    waves = np.sin(9 * axes[0]) * np.cos(7 * axes[1]) + np.sin(5 * axes[2])
    voxels = np.where(radius < 1, 300 + 120 * waves + 90 * axes[0] + 15 * noise, 4 * np.abs(noise))
    return oblique(np.clip(voxels, 0, None).round().astype(np.int16), spacing)


def oblique(voxels: NDArray[np.int16], spacing: Sequence[float]) -> Volume:
    """Voxels as a volume that is turned in space and whose first axis points to the left; spacing in mm."""
    tilt = np.array([[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(np.asarray(spacing) * (-1, 1, 1))
    affine[:3, 3] = (40.0, -35.5, 12.25)
    return Volume(voxels, affine)


def made_up_fundus(height: int, width: int) -> NDArray[np.uint8]:
    """An orange disc on black with dark lines, (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 <= (0.48 * min(height, width)) ** 2
    lines = (abs(y - height / 2 - 6 * np.sin(x / 15)) < 3) | (abs(x - width / 2 - 0.2 * y) < 2)
    noise = np.random.default_rng(0).normal(0, 3, (height, width))
    light = np.where(disc, 150 + 0.1 * x + noise - 50 * lines, 6 + 0.5 * noise)
    return np.clip(np.stack([light, 0.6 * light, 0.3 * light], axis=2), 0, 255).astype(np.uint8)


def made_up_cells(height: int, width: int) -> NDArray[np.uint8]:
    """Bright discs on a dark ground, some of which touch, (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    draw = np.random.default_rng(0)
    light = draw.normal(12, 3, (height, width))
    for row, column in draw.uniform((10, 10), (height - 10, width - 10), (height * width // 1200, 2)):
        depth = 1 - ((y - row) ** 2 + (x - column) ** 2) / 121
        light = np.maximum(light, np.where(depth > 0, 90 + 70 * depth, 0))
    return np.repeat(np.clip(light, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
