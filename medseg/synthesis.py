"""Brain images of any contrast, made from label maps (after Billot et al., SynthSeg, Medical Image Analysis 2023).

A label map is deformed, every tissue gets a random grey value, and the result is degraded as a scanner would:
bias field, slice profile, sampling, noise, gamma. A network that never saw two images of one contrast learns anatomy.
Axes are X, Y, Z of a volume in RAS order at 1 mm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import pi
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medseg.acquisition import along_axes
from medseg.intensity import rescale_percentiles
from medseg.volume import Volume

IGNORE = 255  # class or side of a voxel that no loss looks at
_MAX_DISTANCE = 40  # mm; skull stripping never keeps tissue farther from the brain


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """One intensity group of the label maps, left and right together.

    Attributes:
        ids: Label ids; those of the left side first where the group has sides.
        right: How many of `ids`, from the end, are on the right; 0 for a group without sides.
        target: Class to predict, or None if the voxels count for no loss.
        white: Share of white matter in the grey value of a realistic contrast, the rest is grey matter; None draws
            it freely.
        fluid: True if realistic contrasts give it the value of cerebrospinal fluid.
        brain: False if skull stripping takes it away beyond a margin around the brain.
    """

    ids: tuple[int, ...]
    target: int | None
    right: int = 0
    white: float | None = None
    fluid: bool = False
    brain: bool = True


@dataclass(frozen=True, kw_only=True)
class SynthesisOptions:
    """How far the images vary. Lengths in mm, angles in degrees; a pair is the range of a uniform draw."""

    crop: tuple[int, int, int] = (128, 160, 128)
    shift: float = 48.0  # greatest distance of the crop's centre from the brain's, per axis; small ones are common
    rotation: float = 15.0
    scaling: tuple[float, float] = (0.85, 1.18)
    shear: float = 0.03
    elastic: Mapping[int, float] = field(default_factory=lambda: {32: 4.0, 14: 1.5})  # control spacing: std
    contrasts: Mapping[str, float] = field(
        default_factory=lambda: {"random": 0.3, "t1": 0.45, "t2": 0.15, "flair": 0.1}
    )
    tissue_noise: tuple[float, float] = (0.0, 0.07)
    bias: float = 0.35  # std of the log field
    blur: tuple[float, float] = (0.3, 0.9)
    isotropic: float = 0.45  # share of images kept at 1 mm
    thick: tuple[float, float] = (1.5, 9.0)  # slice spacing of the rest along one axis
    coarse: tuple[float, float] = (1.0, 2.0)  # spacing in plane of the rest
    noise: tuple[float, float] = (0.0, 0.07)
    gamma: float = 0.35  # std of the log exponent
    stripped: float = 0.45  # share of images without what lies outside the brain
    strip_margin: tuple[float, float] = (0.0, 6.0)
    cut: float = 0.15  # share of images whose field of view ends inside the crop
    flip: float = 0.5
    percentiles: tuple[float, float] = (1.0, 99.0)


@dataclass(frozen=True)
class Subject:
    """A label map made ready: tissue index and side per voxel, distance to the brain, centre of the brain."""

    tissue: np.ndarray  # uint8 (X, Y, Z)
    side: np.ndarray  # uint8: 1 left, 0 right, IGNORE where the tissue has no sides
    distance: np.ndarray  # uint8 mm, 0 inside the brain
    centre: tuple[float, float, float]


@dataclass(frozen=True)
class Sample:
    """One synthetic image with its answer; tensors of shape `crop`."""

    image: Tensor  # float32, rescaled as for inference
    target: Tensor  # uint8 class, IGNORE where undefined
    side: Tensor  # uint8: 1 left, 0 right, IGNORE


def prepare_subject(labels: Volume, tissues: Sequence[Tissue], *, margin: int = 24) -> Subject:
    """Index a label map by tissue and crop it to the head.

    Args:
        labels: Label map in RAS order at 1 mm.
        tissues: Groups; tissue 0 is air and takes every id that no group names.
        margin: Voxels of air kept around the head.

    Raises:
        ValueError: Spacing or orientation differ, or no brain tissue was found.
    """
    if labels.orientation != "RAS" or not np.allclose(labels.spacing, 1.0, atol=1e-3):
        raise ValueError(
            f"label map must be RAS at 1 mm, got {labels.orientation} at {labels.spacing}; use to_ras and to_spacing"
        )
    ids = np.maximum(labels.voxels.astype(np.int64), 0)
    size = int(max(ids.max(), *(max(t.ids, default=0) for t in tissues))) + 1
    group, sided = np.zeros(size, np.uint8), np.full(size, IGNORE, np.uint8)
    for index, tissue in enumerate(tissues):
        group[list(tissue.ids)] = index
        left = len(tissue.ids) - tissue.right
        if tissue.right:
            sided[list(tissue.ids[:left])], sided[list(tissue.ids[left:])] = 1, 0
    inside = [i for i, t in enumerate(tissues) if t.brain and t.ids]
    if not np.isin(group[ids], inside).any():
        raise ValueError("label map must hold brain tissue, got none of the ids that the recipe names")
    box = tuple(
        slice(max(0, int(line.min()) - margin), int(line.max()) + margin + 1) for line in np.nonzero(group[ids])
    )
    tissue_map, side = group[ids[box]], sided[ids[box]]
    brain = np.isin(tissue_map, inside)
    away = cast(np.ndarray, ndimage.distance_transform_edt(~brain))
    centre = cast(tuple[float, float, float], ndimage.center_of_mass(brain))
    return Subject(tissue_map, side, np.minimum(away, _MAX_DISTANCE).astype(np.uint8), centre)


def synthesise(
    subject: Subject,
    tissues: Sequence[Tissue],
    options: SynthesisOptions,
    generator: torch.Generator,
    *,
    centre: tuple[float, float, float] | None = None,
    means: Tensor | None = None,
) -> Sample:
    """Draw one image of one subject.

    Args:
        subject: From `prepare_subject` with the same tissues.
        tissues: The groups.
        options: Ranges.
        generator: The only source of randomness; equal state, equal image.
        centre: Voxel of the subject in the middle of the crop, but for the drawn shift; its own centre if not given.
        means: Grey value of each tissue, (tissues,), as `tissue_means` draws them; drawn if not given.
    """
    draw = _Draw(generator)
    where, flipped = _sampling_points(subject, options, draw, subject.centre if centre is None else centre)
    tissue = torch.from_numpy(subject.tissue).flatten()[where]
    side = torch.from_numpy(subject.side).flatten()[where]
    if flipped:
        side = torch.where(side == IGNORE, side, 1 - side)
    if draw.chance(options.stripped):
        distance = torch.from_numpy(subject.distance).flatten()[where]
        tissue = torch.where(distance > draw.uniform(*options.strip_margin), torch.zeros_like(tissue), tissue)
    image = _paint(tissue, _means(tissues, options, draw) if means is None else means, options, draw)
    image = _degrade(image, options, draw)
    targets = torch.tensor([IGNORE if t.target is None else t.target for t in tissues], dtype=torch.uint8)
    target = targets[tissue.long()]
    if draw.chance(options.cut):
        _cut(image, target, draw)
    image = torch.from_numpy(rescale_percentiles(image.numpy(), *options.percentiles))
    image = image * draw.uniform(0.85, 1.15)  # percentiles of a crop are not those of the whole head
    return Sample(image, target, torch.where(target == IGNORE, torch.full_like(side, IGNORE), side))


def tissue_means(tissues: Sequence[Tissue], options: SynthesisOptions, generator: torch.Generator) -> Tensor:
    """Grey value of each tissue in one contrast, (tissues,), about [0, 1], for several images of that contrast."""
    return _means(tissues, options, _Draw(generator))


class _Draw:
    """Scalar draws from one torch generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def normal(self, std: float = 1.0) -> float:
        return std * torch.randn((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def integer(self, below: int) -> int:
        return int(torch.randint(below, (), generator=self.generator))

    def field(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def choice(self, weights: Mapping[str, float]) -> str:
        pick = torch.multinomial(torch.tensor(list(weights.values())), 1, generator=self.generator)
        return list(weights)[int(pick)]


def _sampling_points(
    subject: Subject, options: SynthesisOptions, draw: _Draw, middle: tuple[float, float, float]
) -> tuple[Tensor, bool]:
    """Flat index into the subject's arrays for every voxel of the crop, and whether left and right changed places."""
    crop = options.crop
    matrix = _affine(options, draw)
    flipped = draw.chance(options.flip)
    if flipped:
        matrix[0] = -matrix[0]
    shifts = [(share := draw.uniform(-1, 1)) * abs(share) * options.shift for _ in crop]
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 + by for n, by in zip(crop, shifts, strict=True)]
    warp = torch.zeros(3, *crop)
    for spacing, std in options.elastic.items():
        control = [n // spacing + 2 for n in crop]
        coarse = draw.field(1, 3, *control) * (std * draw.uniform(0, 1))
        warp += F.interpolate(coarse, size=crop, mode="trilinear", align_corners=True)[0]
    flat = torch.zeros(crop, dtype=torch.int64)
    for axis, (size, centre) in enumerate(zip(subject.tissue.shape, middle, strict=True)):
        x, y, z = (matrix[axis, i] * line for i, line in enumerate(axes))
        place = warp[axis] + (x[:, None, None] + y[None, :, None] + z[None, None, :]) + centre
        index = place.round_().clamp_(0, size - 1).long()  # the margin of air continues for ever
        flat = flat * size + index
    return flat, flipped


def _affine(options: SynthesisOptions, draw: _Draw) -> Tensor:
    matrix = torch.eye(3)
    for first, second in ((1, 2), (0, 2), (0, 1)):
        angle = torch.tensor(draw.uniform(-1, 1) * options.rotation * pi / 180)
        turn = torch.eye(3)
        turn[first, first] = turn[second, second] = angle.cos()
        turn[first, second], turn[second, first] = -angle.sin(), angle.sin()
        matrix = matrix @ turn
    scale = torch.tensor([1 / draw.uniform(*options.scaling) for _ in range(3)])
    shear = torch.eye(3) + options.shear * draw.field(3, 3) * (1 - torch.eye(3))
    return matrix @ shear @ torch.diag(scale)


# mean grey value of white matter, grey matter, fluid in realistic contrasts
_CONTRASTS = {
    "t1": ((0.75, 1.0), (0.45, 0.72), (0.08, 0.35)),
    "t2": ((0.25, 0.45), (0.42, 0.65), (0.75, 1.0)),
    "flair": ((0.45, 0.65), (0.6, 0.85), (0.05, 0.3)),
}


def _means(tissues: Sequence[Tissue], options: SynthesisOptions, draw: _Draw) -> Tensor:
    """Grey value of each tissue in one image, about [0, 1]."""
    kind = draw.choice(options.contrasts)
    means = torch.tensor([draw.uniform(0.02, 1.0) for _ in tissues])
    if kind != "random":
        white, grey, fluid = (draw.uniform(*span) for span in _CONTRASTS[kind])
        for index, tissue in enumerate(tissues):
            if tissue.fluid:
                means[index] = fluid + draw.normal(0.03)
            elif tissue.white is not None:
                means[index] = tissue.white * white + (1 - tissue.white) * grey + draw.normal(0.03)
    means[0] = 0.0 if draw.chance(0.5) else draw.uniform(0, 0.12)
    return means.clamp_(0, 1.1)


def _paint(tissue: Tensor, means: Tensor, options: SynthesisOptions, draw: _Draw) -> Tensor:
    """Grey value per tissue with its own spread, then the bias field of the coil."""
    spread = torch.tensor([draw.uniform(*options.tissue_noise) for _ in means])
    spread[0] = 0.0 if float(means[0]) == 0 else float(spread[0])
    index = tissue.long()
    image = means[index] + spread[index] * draw.field(*tissue.shape)
    control = [2 + n // 48 + draw.integer(2) for n in tissue.shape]
    bias = draw.field(1, 1, *control) * (options.bias * draw.uniform(0, 1))
    return image * F.interpolate(bias, size=tuple(tissue.shape), mode="trilinear", align_corners=True)[0, 0].exp()


def _degrade(image: Tensor, options: SynthesisOptions, draw: _Draw) -> Tensor:
    """Point spread, sampling, noise and the interpolation back to 1 mm, then gamma."""
    spacing = [1.0, 1.0, 1.0]
    if not draw.chance(options.isotropic):
        spacing = [draw.uniform(*options.coarse)] * 3
        spacing[draw.integer(3)] = draw.uniform(*options.thick)
    profiles, returns = [], []
    blur = draw.uniform(*options.blur)
    for size, step in zip(image.shape, spacing, strict=True):
        width = max(blur, step * draw.uniform(0.25, 0.5)) if step > 1 else blur
        sample, back = _sampling(size, step, width, draw.uniform(0, 1))
        profiles.append(sample)
        returns.append(back)
    low = along_axes(image, profiles).clamp_(min=0)
    noise = draw.uniform(*options.noise)
    low = low + noise * draw.field(*low.shape)
    if draw.chance(0.5):  # magnitude images: the second channel of a quadrature coil
        low = (low.square() + (noise * draw.field(*low.shape)).square()).sqrt()
    image = along_axes(low, returns).clamp_(min=0)
    top = image.max().clamp_min(1e-6)
    return (image / top).pow_(float(np.exp(draw.normal(options.gamma))))


def _sampling(size: int, step: float, width: float, phase: float) -> tuple[Tensor, Tensor]:
    """Gaussian slice profile at every `step` voxels, (n, size), and linear interpolation back, (size, n)."""
    count = max(2, int((size - 1 - phase * (step - 1)) / step) + 1) if step > 1 else size
    centres = phase * (step - 1) + step * torch.arange(count) if step > 1 else torch.arange(size).float()
    voxels = torch.arange(size).float()
    profile = torch.exp(-0.5 * ((voxels[None] - centres[:, None]) / width) ** 2)
    profile /= profile.sum(1, keepdim=True)
    back = (1 - (voxels[:, None] - centres[None]).abs() / (centres[1] - centres[0])).clamp_(min=0)
    outside = back.sum(1) < 0.999  # before the first and after the last slice the nearest one is repeated
    nearest = (voxels[:, None] - centres[None]).abs().argmin(1)
    back[outside] = F.one_hot(nearest[outside], count).float()
    return profile, back


def _cut(image: Tensor, target: Tensor, draw: _Draw) -> None:
    """End the field of view inside the crop, in place: what is not seen is background."""
    axis = draw.integer(3)
    size = image.shape[axis]
    length = int(size * draw.uniform(0.05, 0.4))
    gone = slice(0, length) if draw.chance(0.5) else slice(size - length, size)
    place = tuple(gone if i == axis else slice(None) for i in range(3))
    image[place] = 0
    target[place] = 0
