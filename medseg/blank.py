"""Where a volume holds no image: air that was painted over, what a skull was cut away with, padding of a scanner.

Such places hold no noise, and their border is no edge of anatomy. They are found in 3D, by the smallest value alone;
`medseg.noise`, which looks at single slices, also leaves out padding of a second value. PyTorch alone and within what
TorchScript compiles, so that it also travels in bundles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.neighbours import line_sums, near, with_mirrored_ends


def blank_voxels(image: Tensor) -> Tensor:
    """Cubes of three voxels that all have the smallest value of the image, and what touches them and has it too.

    Noise leaves no such cube.

    Args:
        image: (X, Y, Z), float32.

    Returns:
        (X, Y, Z), bool.
    """
    filled = image > image.min()
    return near(~near(filled, 1), 2) & ~filled


def carried_on(image: Tensor, blank: Tensor, reach: int) -> Tensor:
    """The image, carried on over `reach` voxels into what is blank by means of the neighbours, ring by ring.

    Args:
        image: (X, Y, Z), float32.
        blank: Same shape, bool; from `blank_voxels`.
        reach: Rings; farther in, the image stays as it is.

    Returns:
        Same shape.
    """
    known = ~blank
    values = torch.where(blank, 0.0, image)
    for _ in range(reach):
        total, count = with_mirrored_ends(values, 1), with_mirrored_ends(known.to(image.dtype), 1)
        for axis in range(3):
            total, count = line_sums(total, axis, 3), line_sums(count, axis, 3)
        ring = (count > 0) & ~known
        values = torch.where(ring, total / count.clamp(min=1.0), values)
        known = known | ring
    return torch.where(known, values, image)
