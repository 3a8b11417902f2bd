"""A noisy magnitude image cleaned without a network, by non-local means, for networks to start from.

PyTorch alone and within what TorchScript compiles, so that it also travels in bundles and runs where the network does.
"""

from __future__ import annotations

import torch
from torch import Tensor

MARGIN = 5  # voxels around a voxel that `non_local_means` reads, with its defaults


def tissue_noise(
    image: Tensor, air: bool = False, bright: float = 3.0, few: float = 0.005, samples: int = 1 << 21
) -> float:
    """The noise level where there is signal, from differences along all three axes, which hold hardly any anatomy.

    Median of the corner differences of 2 x 2 x 2 voxels (Donoho 1994, for the finest Haar details). In the air the
    noise of magnitudes is a third weaker, so air is left out.

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
    detail, mean = detail.abs().flatten() / gain**0.5, mean.flatten() / gain
    step = max(1, detail.shape[0] // samples)
    detail, mean = detail[::step], mean[::step]
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
    margin = reach + patch // 2
    wide = image
    for axis in range(3):
        wide = wide.index_select(axis, mirrored(image.shape[axis], margin).to(image.device))
    out = torch.empty_like(image)
    for x in range(0, image.shape[0], block):
        for y in range(0, image.shape[1], block):
            for z in range(0, image.shape[2], block):
                a, b, c = min(block, image.shape[0] - x), min(block, image.shape[1] - y), min(block, image.shape[2] - z)
                part = wide.narrow(0, x, a + 2 * margin).narrow(1, y, b + 2 * margin).narrow(2, z, c + 2 * margin)
                found = _block_means(part.contiguous(), level, patch, reach, strength)
                out.narrow(0, x, a).narrow(1, y, b).narrow(2, z, c).copy_(found)
    return out


def mirrored(size: int, margin: int) -> Tensor:
    """Indices of a line that goes on as its mirror image at both ends, (size + 2 margin,)."""
    at = torch.arange(-margin, size + margin) % (2 * size)
    return torch.where(at < size, at, 2 * size - 1 - at)


def _block_means(wide: Tensor, level: float, patch: int, reach: int, strength: float) -> Tensor:
    """Means of the inner voxels of a block; each pair of voxels is compared once and counts for both."""
    margin = reach + patch // 2
    size = [side - 2 * margin for side in wide.shape]
    total = _cut(wide, [margin, margin, margin], size).clone()
    weights = torch.ones_like(total)
    for i in range(reach + 1):
        for j in range(-reach, reach + 1):
            for k in range(-reach, reach + 1):
                if i > 0 or j > 0 or (j == 0 and k > 0):
                    step = [i, j, k]
                    first = [margin - max(0, s) for s in step]
                    weight = _weights(
                        wide, first, [size[a] + abs(step[a]) for a in range(3)], step, level, patch, strength
                    )
                    ahead = _cut(weight, [max(0, s) for s in step], size)
                    total.addcmul_(ahead, _cut(wide, [margin + s for s in step], size))
                    weights.add_(ahead)
                    behind = _cut(weight, [max(0, -s) for s in step], size)
                    total.addcmul_(behind, _cut(wide, [margin - s for s in step], size))
                    weights.add_(behind)
    return total.div_(weights)


def _weights(
    wide: Tensor, first: list[int], size: list[int], step: list[int], level: float, patch: int, strength: float
) -> Tensor:
    """How much voxels from `first` on and those `step` further on look alike, from 0 to 1."""
    half = patch // 2
    first, sides = [f - half for f in first], [n + 2 * half for n in size]
    other = [first[a] + step[a] for a in range(3)]
    apart = (_cut(wide, first, sides) - _cut(wide, other, sides)).square_()
    for axis in range(3):
        count = apart.shape[axis] - 2 * half
        summed = apart.narrow(axis, 0, count) + apart.narrow(axis, 1, count)
        for number in range(2, patch):
            summed.add_(apart.narrow(axis, number, count))
        apart = summed
    scale = (strength * level) ** 2
    weight = apart.mul_(-1 / (scale * patch**3)).add_(2 * level**2 / scale).clamp_(max=0.0).exp_()
    return torch.threshold_(weight, 0.0067379, 0.0)  # exp(-5)


def _cut(block: Tensor, first: list[int], size: list[int]) -> Tensor:
    """A part of a block, a view."""
    return block.narrow(0, first[0], size[0]).narrow(1, first[1], size[1]).narrow(2, first[2], size[2])
