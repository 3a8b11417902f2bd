"""What a scanner does to an image that is measured in less time or with less dose."""

from __future__ import annotations

from math import ceil, hypot, pi

import torch
from torch import Tensor
from torch.nn import functional as F

WATER = 0.0192  # attenuation of water per mm at about 70 keV, the mean energy of a 120 kV spectrum
_DARKEST = 9.0  # line integrals beyond this (1 photon of 8000) are photon starvation, which scanners filter


def add_rician_noise(image: Tensor, level: Tensor | float, generator: torch.Generator) -> Tensor:
    """The magnitude of a complex image with independent normal noise in both parts, as MR scanners give it.

    Args:
        image: Magnitudes, any shape, not negative.
        level: Standard deviation of the noise in each part, one number or broadcastable to the image.
        generator: Where the noise is drawn from.

    Returns:
        Same shape; never negative, and biased upwards where the image is darker than the noise.
    """
    real, imaginary = torch.randn(2, *image.shape, generator=generator) * level
    return torch.hypot(image + real, imaginary)


def smooth_field(shape: tuple[int, int], low: float, high: float, generator: torch.Generator) -> Tensor:
    """A smooth random field between two factors, for noise that grows towards the middle of a coil array.

    Args:
        shape: (H, W).
        low: Smallest value.
        high: Largest value.
        generator: Where it is drawn from.
    """
    coarse = torch.rand(1, 1, 3, 3, generator=generator)
    field = F.interpolate(coarse, size=shape, mode="bicubic", align_corners=True)[0, 0].clamp(0, 1)
    return low + (high - low) * field


def low_dose_noise(
    hounsfield: Tensor,
    spacing: float,
    generator: torch.Generator,
    *,
    angles: int = 180,
    cutoff: float = 1.0,
) -> Tensor:
    """The noise that counting fewer photons leaves in a reconstructed CT slice, for one photon per detector cell.

    Parallel rays are attenuated along the slice; the logarithm of a Poisson count with mean exp(-p) has the variance
    exp(p); that noise is filtered with a ramp and projected back. Filtered back projection is linear, so the noise of N
    photons is this one divided by the root of N. It is strongest behind what attenuates most, and streaks along it.

    Args:
        hounsfield: (H, W), HU.
        spacing: mm per pixel.
        generator: Where the counts are drawn from.
        angles: Of the half turn.
        cutoff: Where the Hann window of the ramp filter ends, as a share of the highest frequency; soft kernels: low.

    Returns:
        (H, W), HU, mean 0.
    """
    height, width = hounsfield.shape
    cells = ceil(hypot(height, width)) + 2
    theta = torch.arange(angles) * (pi / angles)
    attenuation = (1 + hounsfield.clamp(min=-1000.0) / 1000) * WATER
    integrals = _line_integrals(attenuation, theta, cells) * spacing
    counts = torch.randn(integrals.shape, generator=generator) * (integrals.clamp(max=_DARKEST) / 2).exp()
    noise = _back_projected(_ramp_filtered(counts, cutoff), theta, (height, width)) / spacing
    return noise * (1000 / WATER)


def _line_integrals(image: Tensor, theta: Tensor, cells: int) -> Tensor:
    """(H, W) per pixel to sums along rays, (A, cells), in pixels."""
    height, width = image.shape
    offset = torch.arange(cells) - (cells - 1) / 2
    sums = []
    for angle in theta:
        cos, sin = angle.cos(), angle.sin()
        x = offset[:, None] * cos - offset[None, :] * sin  # a row per cell, along it the ray
        y = offset[:, None] * sin + offset[None, :] * cos
        at = torch.stack((2 * x / (width - 1), 2 * y / (height - 1)), dim=-1)
        samples = F.grid_sample(image[None, None], at[None], align_corners=True)  # zero outside: there is air
        sums.append(samples[0, 0].sum(1))
    return torch.stack(sums)


def _ramp_filtered(sinogram: Tensor, cutoff: float) -> Tensor:
    """Each projection times |frequency| under a Hann window (Kak and Slaney, chapter 3.3)."""
    size = sinogram.shape[1]
    padded = 1 << (2 * size - 1).bit_length()
    frequency = torch.fft.rfftfreq(padded)
    window = torch.where(frequency <= cutoff / 2, 0.5 + 0.5 * (2 * pi * frequency / cutoff).cos(), 0.0)
    return torch.fft.irfft(torch.fft.rfft(sinogram, padded) * frequency * window, padded)[:, :size]


def _back_projected(filtered: Tensor, theta: Tensor, shape: tuple[int, int]) -> Tensor:
    """(A, cells) smeared back over the image, (H, W)."""
    height, width = shape
    cells = filtered.shape[1]
    y = (torch.arange(height) - (height - 1) / 2)[:, None]
    x = (torch.arange(width) - (width - 1) / 2)[None, :]
    image = torch.zeros(shape)
    for angle, line in zip(theta, filtered, strict=True):
        at = x * angle.cos() + y * angle.sin() + (cells - 1) / 2
        low = at.floor()
        share = at - low
        index = low.long().clamp(0, cells - 2)
        image += torch.lerp(line[index], line[index + 1], share)
    return image * (pi / len(theta))
