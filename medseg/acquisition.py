"""How a scanner samples a finer object along each axis, and the way back: one small matrix per axis.

Grids share their outer edges: voxel i of the acquired grid covers `factor` finer voxels, from factor i on. Whatever a
matrix does, a constant stays the constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import log, pi, sqrt
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_FWHM = 2 * sqrt(2 * log(2))  # of a Gaussian, in standard deviations


def kspace_axis(size: int, factor: int, *, taper: float = 0.0) -> Tensor:
    """Measure only the middle of k-space: an ideal low-pass, sampled on larger voxels.

    The line is continued by its mirror image, so that its two ends need not fit together; its spectrum is then the
    cosine transform, whose first `size / factor` coefficients are kept.

    Args:
        size: Finer voxels, a multiple of `factor`.
        factor: Finer voxels per acquired one.
        taper: Share of the kept frequencies, from the highest down, over which a raised cosine falls to 0 (Tukey), as
            scanners filter against ringing; 0 for none.

    Returns:
        (size / factor, size), float64.

    Raises:
        ValueError: `size` is no multiple of `factor`.
    """
    kept = _acquired(size, factor)
    frequency = (torch.arange(kept, dtype=torch.float64) + 0.5) / kept
    weight = torch.ones(kept, dtype=torch.float64)
    if taper > 0:
        weight = 0.5 + 0.5 * (pi * ((frequency - 1 + taper) / taper).clamp(0, 1)).cos()
        weight[0] = 1
    return _cosines(kept).T * weight @ _cosines(size)[:kept] / sqrt(factor)


def profile_axis(size: int, factor: int, *, width: float = 1.0) -> Tensor:
    """Excite slices with a Gaussian profile.

    Args:
        size: Finer voxels, a multiple of `factor`.
        factor: Finer voxels per slice.
        width: Full width at half maximum, in slice distances: below 1 with gaps, above 1 where slices overlap.

    Returns:
        (size / factor, size), float64; at the ends the part of the profile that lies on the line counts alone.

    Raises:
        ValueError: `size` is no multiple of `factor`.
    """
    slices = torch.arange(_acquired(size, factor), dtype=torch.float64)
    distance = (torch.arange(size) + 0.5) / factor - (slices[:, None] + 0.5)
    profile = torch.exp(-0.5 * (distance * _FWHM / width) ** 2)
    return profile / profile.sum(1, keepdim=True)


def lanczos_axis(size: int, factor: int, *, lobes: int = 3) -> Tensor:
    """Interpolate acquired voxels on the finer grid by a sinc under a sinc window; beyond the ends they are mirrored.

    Args:
        size: Acquired voxels.
        factor: Finer voxels per acquired one.
        lobes: Acquired voxels to each side that count.

    Returns:
        (factor size, size), float64.
    """
    weights = lanczos_weights(factor, lobes=lobes)  # (factor, taps)
    out = torch.zeros(factor * size, size, dtype=torch.float64)
    first = torch.arange(size)[:, None] - lobes  # of the taps around each acquired voxel
    at = (first + torch.arange(weights.shape[1])) % (2 * size)
    at = torch.where(at < size, at, 2 * size - 1 - at)
    for phase in range(factor):
        out[phase::factor].scatter_add_(1, at, weights[phase].expand(size, -1))
    return out


def lanczos_weights(factor: int, *, lobes: int = 3) -> Tensor:
    """Weights of the acquired voxels from `lobes` before to `lobes` after, for each finer voxel inside one.

    Returns:
        (factor, 2 lobes + 1), float64; each row sums to 1.
    """
    inside = (torch.arange(factor, dtype=torch.float64) + 0.5) / factor - 0.5  # from the centre of the acquired voxel
    distance = torch.arange(-lobes, lobes + 1) - inside[:, None]
    weights = torch.sinc(distance) * torch.sinc(distance / lobes) * (distance.abs() < lobes)
    return weights / weights.sum(1, keepdim=True)


def spline_axis(size: int, factor: int) -> Tensor:
    """Interpolate acquired voxels on the finer grid by the cubic B-spline through them, mirrored beyond the ends.

    Args:
        size: Acquired voxels.
        factor: Finer voxels per acquired one.

    Returns:
        (factor size, size), float64.
    """
    return torch.from_numpy(ndimage.zoom(np.eye(size), (factor, 1), order=3, mode="reflect", grid_mode=True))


def along_axes(image: Tensor, operators: Sequence[Tensor | None]) -> Tensor:
    """Apply one matrix to each axis of a volume.

    Args:
        image: (X, Y, Z).
        operators: Per axis (out, in), in the type of the image, or None to leave the axis as it is.
    """
    for axis, operator in enumerate(operators):
        if operator is not None:
            pair = cast(int, ([1], [axis]))  # the annotation of torch knows only the form with a number
            image = torch.tensordot(operator, image, dims=pair).movedim(0, axis)
    return image.contiguous()


class Acquisition:
    """One linear way from a fine volume to the acquired one, and the least change that makes a volume fit.

    Args:
        operators: Per axis (acquired, fine), or None for an axis that is acquired as finely as it is.
    """

    def __init__(self, operators: Sequence[Tensor | None]) -> None:
        self.operators = [None if a is None else a.double() for a in operators]

    @cached_property
    def _inverses(self) -> list[Tensor | None]:
        return [None if a is None else torch.linalg.pinv(a).float() for a in self.operators]

    @cached_property
    def _singles(self) -> list[Tensor | None]:
        return [None if a is None else a.float() for a in self.operators]

    def measure(self, fine: Tensor) -> Tensor:
        """What the scanner would have acquired of a fine volume; float32."""
        return along_axes(fine, self._singles)

    def enforce(self, fine: Tensor, acquired: Tensor) -> Tensor:
        """The volume nearest to `fine` that reproduces `acquired`.

        The axes are independent, so the pseudo-inverse of the whole is the product of theirs, and one step of
        back-projection, x + A+ (y - A x), ends where iterations would.
        """
        return fine + along_axes(acquired - self.measure(fine), self._inverses)


def _acquired(size: int, factor: int) -> int:
    if size < 1 or factor < 1 or size % factor:
        raise ValueError(f"size must be a multiple of factor, got {size} and {factor}")
    return size // factor


def _cosines(size: int) -> Tensor:
    """Orthonormal cosine transform, (frequency, voxel)."""
    voxel = torch.arange(size, dtype=torch.float64) + 0.5
    basis = torch.cos(pi / size * torch.arange(size, dtype=torch.float64)[:, None] * voxel) * sqrt(2 / size)
    basis[0] /= sqrt(2)
    return basis
