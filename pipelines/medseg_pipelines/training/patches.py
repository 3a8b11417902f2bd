"""Segmentation of pictures learned from patches of images and masks, varied in colour, light, sharpness and pose."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from medseg.losses import dice_and_binary_entropy, dice_and_focal
from medseg_pipelines.sections import PicturePreparation
from medseg_pipelines.training.loop import Optimisation, Section, Trainer

_TRIES = 20  # draws of a place until it lies where the picture counts

Range = tuple[float, float]


class Augmentation(Section):
    """How far patches are varied; each range is drawn from evenly, each chance is a share of the patches."""

    turn: float = Field(default=180.0, ge=0, le=180)  # degrees, both ways
    mirror: bool = True
    zoom: Range = (0.85, 1.2)
    squeeze: float = Field(default=0.1, ge=0, lt=1)  # one axis against the other
    mix: float = Field(default=0.1, ge=0)  # of the other colours in a channel, standard deviation
    contrast: Range = (0.7, 1.4)
    brightness: float = Field(default=0.1, ge=0)  # of the channels' own scale, both ways
    bend: Range = (-0.3, 0.3)  # curvature of the grey values: what a gamma does to values around 0
    blur: Range = (0.0, 1.2)  # px
    noise: Range = (0.0, 0.1)  # of the channels' own scale
    grain: float = Field(default=1.0, ge=0)  # px; how far noise hangs together at most
    shade: float = Field(default=0.0, ge=0)  # amplitude of a slow change of brightness across the patch
    spots: float = Field(default=0.0, ge=0, le=1)  # chance of bright and dark spots that are no structure


class PatchOptions(Optimisation):
    """The `training` section of a recipe that learns from patches of pictures."""

    steps: int = Field(ge=1)
    crop: int = Field(default=128, ge=32)  # px of both sides
    batch: int = Field(default=8, ge=1)
    scales: tuple[float, ...] = (1.0,)  # of the recipe's working size; each picture is learned at all of them
    foreground: float = Field(default=0.5, ge=0, le=1)  # share of patches with a labelled pixel in the middle
    cover: float = Field(default=0.5, gt=0, lt=1)  # a reduced pixel is labelled from this share of it on
    loss: Literal["dice-entropy", "dice-focal"] = "dice-entropy"
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True)
class PatchSource:
    """One picture at one scale.

    Attributes:
        planes: Red, green and blue, (3, H, W), float32, as prepared.
        target: (K, H, W), 0 to 1, float32.
        inside: (H, W), where the picture counts.
    """

    planes: Tensor
    target: Tensor
    inside: Tensor


@dataclass(frozen=True)
class Patches:
    """What one step learns from.

    Attributes:
        image: (B, C, h, w).
        target: (B, K, h, w), 0 or 1.
    """

    image: Tensor
    target: Tensor


class PatchSampler(Dataset[Patches]):
    """Batch number n of a training: drawn from the seed and n alone.

    Args:
        sources: To draw from, each with the same chance.
        options: The training section.
        preparation: Whose channels the network takes.
    """

    def __init__(self, sources: list[PatchSource], options: PatchOptions, preparation: PicturePreparation) -> None:
        self.sources, self.options, self.preparation = sources, options, preparation
        self.labelled = [source.target.amax(0).mul(source.inside).gt(0.5).nonzero() for source in sources]

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Patches:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        drawn = [self._patch(generator) for _ in range(self.options.batch)]
        image, target = (torch.stack(column) for column in zip(*drawn, strict=True))
        return Patches(image, target)

    def _patch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Image (C, h, w) and target (K, h, w) of one patch."""
        number = int(torch.randint(len(self.sources), (), generator=generator))
        source, how = self.sources[number], self.options.augmentation
        grid = self._grid(source, self._middle(source, self.labelled[number], generator), generator)
        stacked = torch.cat((source.planes, source.target, source.inside[None].float()))
        found = F.grid_sample(stacked[None], grid, align_corners=True)[0]  # outside the picture: 0, in no field
        planes, target, inside = found.split((3, source.target.shape[0], 1))
        target = (target > self.options.cover).float()
        image = _coloured(planes, self.preparation, how, generator)
        return varied(image, target.amax(0), how, generator) * (inside > 0.5), target

    def _middle(self, source: PatchSource, labelled: Tensor, generator: torch.Generator) -> tuple[int, int]:
        """Row and column of the middle of the next patch."""
        if len(labelled) and uniform(generator, 0, 1) < self.options.foreground:
            row, column = labelled[int(torch.randint(len(labelled), (), generator=generator))].tolist()
            return row, column
        height, width = source.inside.shape
        row = column = 0
        for _ in range(_TRIES):
            row = int(torch.randint(height, (), generator=generator))
            column = int(torch.randint(width, (), generator=generator))
            if bool(source.inside[row, column]):
                break
        return row, column

    def _grid(self, source: PatchSource, middle: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Where the pixels of a patch lie in the picture, (1, h, w, 2), in the units of `grid_sample`."""
        how, crop = self.options.augmentation, self.options.crop
        angle = uniform(generator, -how.turn, how.turn) * pi / 180
        step = 1 / uniform(generator, *how.zoom)
        squeeze = 1 + uniform(generator, -how.squeeze, how.squeeze)
        mirror = -1.0 if how.mirror and uniform(generator, 0, 1) < 0.5 else 1.0
        at = torch.arange(crop) - (crop - 1) / 2
        y, x = torch.meshgrid(at * step * squeeze, at * step * mirror / squeeze, indexing="ij")
        rows, columns = middle[0] + y * cos(angle) - x * sin(angle), middle[1] + y * sin(angle) + x * cos(angle)
        height, width = source.inside.shape
        return torch.stack((2 * columns / max(1, width - 1) - 1, 2 * rows / max(1, height - 1) - 1), dim=2)[None]


def _coloured(planes: Tensor, preparation: PicturePreparation, how: Augmentation, generator: torch.Generator) -> Tensor:
    """(3, h, w) to the channels of the network: what the recipe mixes, and a little of the other colours."""
    base = torch.tensor(preparation.mix)
    weights = base + how.mix * torch.randn(base.shape, generator=generator)
    weights = weights * (base.sum(1) / weights.sum(1).clamp(min=0.2))[:, None]
    mixed = torch.tensordot(weights, planes, dims=1)
    shift, scale = (torch.tensor(v)[:, None, None] for v in (preparation.mean, preparation.deviation))
    return (mixed - shift) / scale


def varied(image: Tensor, labelled: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """(C, h, w) with other light, sharpness and noise, and with spots where nothing is labelled (h, w)."""
    if uniform(generator, 0, 1) < how.spots:
        image = image + _spots(image, labelled, generator)
    image = _blurred(image, uniform(generator, *how.blur))
    image = image * uniform(generator, *how.contrast) + uniform(generator, -how.brightness, how.brightness)
    bend = uniform(generator, *how.bend)
    image = image + bend * (image.tanh() ** 2)
    if how.shade:
        slow = torch.randn((1, 1, 3, 3), generator=generator) * uniform(generator, 0, how.shade)
        image = image + F.interpolate(slow, size=image.shape[1:], mode="bicubic", align_corners=True)[0]
    noise = _blurred(torch.randn(image.shape, generator=generator), uniform(generator, 0, how.grain))
    return image + noise / noise.std().clamp(min=1e-6) * uniform(generator, *how.noise)


def _spots(image: Tensor, labelled: Tensor, generator: torch.Generator) -> Tensor:
    """Up to six soft discs, bright or dark, that fade where a structure is labelled: lesions, dust, reflections."""
    _, height, width = image.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found = torch.zeros(height, width)
    for _ in range(int(torch.randint(1, 7, (), generator=generator))):
        row, column = uniform(generator, 0, height), uniform(generator, 0, width)
        size = uniform(generator, 1.5, height / 8)
        apart = ((y - row).square() + (x - column).square() * uniform(generator, 0.4, 2.5)).sqrt()
        found += torch.sigmoid((size - apart) / uniform(generator, 0.5, 2.0)) * uniform(generator, -2.0, 2.5)
    return found * (1 - 0.7 * labelled)


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """(C, h, w) under a Gaussian of so many pixels; below a third of a pixel as it is."""
    if sigma < 0.3:
        return image
    reach = int(3 * sigma) + 1
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    line = line / line.sum()
    wide = F.pad(image[:, None], [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, line[None, None, None]), line[None, None, :, None])[:, 0]


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """A number between two others."""
    return low + (high - low) * float(torch.rand((), generator=generator))


class PatchTrainer(Trainer):
    """Learns masks; a network with `supervised` outputs on several levels is taught on all of them.

    Args:
        network: Image (B, C, H, W) to logits (B, K, H, W); starts from the weights it has.
        options: The training section.
        device: A torch device.
    """

    def __init__(self, network: nn.Module, options: PatchOptions, *, device: str = "cpu") -> None:
        super().__init__(network, options, total=options.steps, device=device)
        self.loss_of = {"dice-entropy": dice_and_binary_entropy, "dice-focal": dice_and_focal}[options.loss]

    def loss(self, sample: Patches) -> Tensor:
        """Mean over the outputs of the loss that the recipe names."""
        image, target = sample.image.to(self.device), sample.target.to(self.device)
        with self.autocast():
            supervised = getattr(self.network, "supervised", None)
            outputs = (self.network(image),) if supervised is None else supervised(image)
        return torch.stack([self.loss_of(output.float(), target, from_logits=True) for output in outputs]).mean()


def patch_source(planes: np.ndarray, target: np.ndarray, inside: np.ndarray) -> PatchSource:
    """Arrays of one picture at one scale, (3, H, W), (K, H, W) and (H, W), as a source."""
    return PatchSource(torch.from_numpy(planes), torch.from_numpy(target), torch.from_numpy(inside))
