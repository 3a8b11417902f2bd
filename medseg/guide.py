"""Noise levels; non-local means, a noisy image cleaned without a network, for networks to start from; and what a
network took that is no noise.

PyTorch alone and within what TorchScript compiles, so that it also travels in bundles and runs where the network does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.neighbours import line_sums, near, neighbour_means, with_mirrored_ends

MARGIN = 5  # voxels around a voxel that `non_local_means` reads, with its defaults
REPEATED_MARGIN = 9  # that `repeated` reads: alike voxels, around those the share of a gain, around that what is blank


def tissue_noise(
    image: Tensor, air: bool = False, bright: float = 3.0, few: float = 0.005, samples: int = 1 << 21
) -> float:
    """The noise level where there is signal, from differences along all three axes, which hold hardly any anatomy.

    Median of the corner differences of 2 x 2 x 2 voxels (Donoho 1994, for the finest Haar details), of whole grey
    values between their steps too. In the air the noise of magnitudes is a third weaker, so air is left out.

    Args:
        image: (X, Y, Z) magnitudes; along an axis of one voxel no difference is taken.
        air: Believe the noise of the air instead where it tells of a lower level: of coarse voxels even the finest
            differences hold anatomy. Too low for scanners that darken the air.
        bright: Rough noise levels above which a voxel holds signal, so that its noise is nearly normal.
        few: Share of the voxels; with fewer bright ones all that are not background count.
        samples: The median of about so many voxels is as good as that of all.

    Returns:
        Standard deviation in each part of the complex image, in grey values; 0 for a constant image.
    """
    detail, mean, gain = image, image, 1.0
    for axis in range(3):
        count = image.shape[axis] - 1
        if count > 0:
            detail = detail.narrow(axis, 1, count) - detail.narrow(axis, 0, count)
            mean = mean.narrow(axis, 1, count) + mean.narrow(axis, 0, count)
            gain *= 2.0
    detail, mean = detail.flatten(), mean.flatten() / gain
    step = max(1, detail.shape[0] // samples) | 1
    detail, mean = (_between_steps(detail[::step], _grey_step(image)) / gain**0.5).abs(), mean[::step]
    filled = mean > image.min()
    if not bool(filled.any()):
        return 0.0
    # 0.6745: the median of the absolute value of a normal variable with standard deviation 1
    rough = float(detail[filled].median()) / 0.6745
    tissue = mean > bright * rough
    if float(tissue.float().mean()) < few:
        return rough
    level = float(detail[tissue].median()) / 0.6745
    dark = filled & ~tissue
    if air and float(dark.float().mean()) >= 10 * few:
        level = min(level, float(detail[dark].median()) / 0.6745 / 0.655)  # Rayleigh's standard deviation
    return level


def _grey_step(image: Tensor, samples: int = 1 << 16, few: int = 16) -> float:
    """What rounding left between neighbouring grey values; 0 where there are fewer of them than `few`."""
    flat = image.flatten()
    values = torch.unique(flat[:: max(1, flat.shape[0] // samples) | 1])
    return float(values.diff().median()) if values.shape[0] >= few else 0.0


def _between_steps(values: Tensor, step: float) -> Tensor:
    """Rounded values spread evenly over what was rounded to each, or their median could only be one of the steps."""
    places = torch.arange(values.shape[0], device=values.device, dtype=torch.float64) * 0.6180339887498949
    return values + ((places - places.floor() - 0.5) * step).to(values.dtype)


def flat_noise(image: Tensor, samples: int = 1 << 23) -> float:
    """The noise level of the flattest places, whether neighbours share their noise, as in CT, or not.

    From the standard deviations within squares of 5 x 5 pixels that are brighter than the mean: a twentieth is lower.
    Where hardly any such square is free of anatomy, as in slices of coarse pixels, faint anatomy counts as noise.

    Args:
        image: (X, Y, S), slices along the last axis, at least 5 pixels along both sides.
        samples: About as many voxels are looked at, in evenly chosen slices.

    Returns:
        Standard deviation in grey values; 0 for a constant image.
    """
    slices = image.permute(2, 0, 1)[:: max(1, image.numel() // samples), None].float()
    slices = slices - slices.mean()
    spread = F.avg_pool2d(slices.square(), 5, 1) - F.avg_pool2d(slices, 5, 1).square()
    inside = F.avg_pool2d((slices > 0).float(), 5, 1) > 0.999
    found = spread[inside] if bool(inside.any()) else spread.flatten()
    lowest = float(found.kthvalue(1 + found.shape[0] // 20)[0])
    return max(0.0, lowest) ** 0.5 / 0.744  # of 25 normal values in a twentieth of all draws


def non_local_means(
    image: Tensor, level: float, patch: int = 5, reach: int = 3, strength: float = 0.8, block: int = 48
) -> Tensor:
    """Averages of voxels whose surroundings look alike (Buades et al. 2005), in 3D.

    Weights fall with the mean squared difference of two patches less what noise alone makes of it; a weight below
    exp(-5) counts as none. Beyond its ends the image is mirrored.

    Args:
        image: (X, Y, Z), float32.
        level: Standard deviation of the noise in grey values.
        patch: Side of the compared cubes, odd.
        reach: Voxels to each side that are averaged.
        strength: Noise levels over which a weight falls to 1 / e.
        block: Side of the cubes that are worked on one after the other; it bounds the memory, not the result.

    Returns:
        Same shape.
    """
    if level <= 0:
        return image.clone()
    return _means(image, None, patch, reach, (strength * level) ** 2, 2 * level**2, 0.0, block)


def repeated(
    residual: Tensor,
    clean: Tensor,
    level: float,
    strength: float = 1.5,
    contrast: float = 0.5,
    magnitudes: bool = True,
    blank: Tensor | None = None,
) -> Tensor:
    """What voxels that look alike have in common in a residual: structure, for noise differs from voxel to voxel.

    Added to the restored image it is twicing (Tukey 1977), with means over voxels alike in the restored image, which
    holds no noise. On strong edges no two voxels are as alike as in flat tissue: the contrast around them counts too.
    What magnitudes gain from noise is no structure: so much of it stays as the residual shows. Cubes of three voxels
    are compared, and those up to three voxels away.

    Args:
        residual: What was taken from an image, (X, Y, Z), float32.
        clean: What was left of it, same shape.
        level: Standard deviation of the noise in grey values.
        strength: Noise levels over which a weight falls to 1 / e in flat tissue; more where neighbours share noise.
        contrast: Share of the standard deviation within a cube that is added to that, as squares.
        magnitudes: The image is the magnitude of a complex one.
        blank: Where there is no image, from `medseg.blank`; what dark voxels beside it gained cannot be told.

    Returns:
        Same shape.
    """
    if level <= 0:
        return torch.zeros_like(residual)
    if magnitudes:
        gain = magnitude_gain(clean, level)
        if blank is not None:
            gain = torch.where(near(blank, 3), 0.0, gain)
        expected = neighbour_means(gain, 3).clamp(min=1e-6 * level)
        share = (neighbour_means(residual, 3) / expected).clamp(0.0, 1.0)
        residual = residual - share * gain
    return _means(clean, residual, 3, 3, (strength * level) ** 2, 0.0, contrast, 48)


def magnitude_gain(clean: Tensor, level: float) -> Tensor:
    """How much larger the mean of a noisy magnitude is than what it would be without noise (Rice 1944).

    Args:
        clean: Magnitudes without noise, any shape.
        level: Standard deviation of the noise in each part of the complex image, above 0.

    Returns:
        Same shape; 1.25 levels at 0, next to nothing from three levels on.
    """
    x = (clean / level).square() / 4
    mean = (1 + 2 * x) * torch.special.i0e(x) + 2 * x * torch.special.i1e(x)
    return level * (math.pi / 2) ** 0.5 * mean - clean.abs()


def _means(
    image: Tensor,
    values: Tensor | None,
    patch: int,
    reach: int,
    scale: float,
    noise: float,
    contrast: float,
    block: int,
) -> Tensor:
    """Means of `values`, else of the image, over voxels alike in it; see `_weights`."""
    margin = reach + patch // 2
    wide = with_mirrored_ends(image, margin)
    wide_values = wide if values is None else with_mirrored_ends(values, margin)
    out = torch.empty_like(image)
    for x in range(0, image.shape[0], block):
        for y in range(0, image.shape[1], block):
            for z in range(0, image.shape[2], block):
                a, b, c = min(block, image.shape[0] - x), min(block, image.shape[1] - y), min(block, image.shape[2] - z)
                sides = [a + 2 * margin, b + 2 * margin, c + 2 * margin]
                part = _cut(wide, [x, y, z], sides).contiguous()
                part_values = _cut(wide_values, [x, y, z], sides)
                found = _block_means(part, part_values, patch, reach, scale, noise, contrast)
                out.narrow(0, x, a).narrow(1, y, b).narrow(2, z, c).copy_(found)
    return out


def _block_means(
    wide: Tensor, values: Tensor, patch: int, reach: int, scale: float, noise: float, contrast: float
) -> Tensor:
    """Means of the inner voxels of a block; each pair of voxels is compared once and counts for both."""
    spread: Tensor | None = None
    if contrast > 0:
        spread = contrast**2 * _patch_variance(wide, patch)
    margin = reach + patch // 2
    size = [side - 2 * margin for side in wide.shape]
    total = _cut(values, [margin, margin, margin], size).clone()
    weights = torch.ones_like(total)
    for i in range(reach + 1):
        for j in range(-reach, reach + 1):
            for k in range(-reach, reach + 1):
                if i > 0 or j > 0 or (j == 0 and k > 0):
                    step = [i, j, k]
                    first = [margin - max(0, s) for s in step]
                    both = [size[a] + abs(step[a]) for a in range(3)]
                    weight = _weights(wide, spread, first, both, step, patch, scale, noise)
                    ahead = _cut(weight, [max(0, s) for s in step], size)
                    total.addcmul_(ahead, _cut(values, [margin + s for s in step], size))
                    weights.add_(ahead)
                    behind = _cut(weight, [max(0, -s) for s in step], size)
                    total.addcmul_(behind, _cut(values, [margin - s for s in step], size))
                    weights.add_(behind)
    return total.div_(weights)


def _patch_variance(x: Tensor, patch: int) -> Tensor:
    """Variance within the cube around each voxel, (X - patch + 1, Y - patch + 1, Z - patch + 1)."""
    mean, square = x, x.square()
    for axis in range(3):
        mean, square = line_sums(mean, axis, patch) / patch, line_sums(square, axis, patch) / patch
    return (square - mean.square()).clamp_(min=0.0)


def _weights(
    wide: Tensor,
    spread: Tensor | None,
    first: list[int],
    size: list[int],
    step: list[int],
    patch: int,
    scale: float,
    noise: float,
) -> Tensor:
    """How much voxels from `first` on and those `step` further on look alike, from 0 to 1.

    Mean squared difference of their cubes less what `noise` makes of it, over `scale` plus the mean `spread` of both.
    """
    half = patch // 2
    first, sides = [f - half for f in first], [n + 2 * half for n in size]
    other = [first[a] + step[a] for a in range(3)]
    apart = (_cut(wide, first, sides) - _cut(wide, other, sides)).square_()
    for axis in range(3):
        apart = line_sums(apart, axis, patch)
    apart = apart.mul_(-1 / (scale * patch**3)).add_(noise / scale).clamp_(max=0.0)
    if spread is not None:
        apart.div_((_cut(spread, first, size) + _cut(spread, other, size)).mul_(0.5 / scale).add_(1.0))
    return torch.threshold_(apart.exp_(), 0.0067379, 0.0)  # exp(-5)


def _cut(block: Tensor, first: list[int], size: list[int]) -> Tensor:
    """A part of a block, a view."""
    return block.narrow(0, first[0], size[0]).narrow(1, first[1], size[1]).narrow(2, first[2], size[2])
