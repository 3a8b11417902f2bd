"""Training on a folder of volumes and label maps: networks of volumes on blocks, networks of pictures on slices."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from medseg.errors import UsageError
from medseg.io import read
from medseg.losses import dice_and_cross_entropy
from medseg_pipelines.preparation import prepare
from medseg_pipelines.recipe import SegmentationRecipe
from medseg_pipelines.segmentation import preparation_of
from medseg_pipelines.training.folder_course import FolderSection, LabelCourse, classes_of, counted
from medseg_pipelines.training.folder_pairs import Pair
from medseg_pipelines.training.folder_plan import require_size
from medseg_pipelines.training.loop import Trainer
from medseg_pipelines.training.patches import uniform

_PLACES = 50_000  # of each class that are remembered to draw blocks around


class FolderVolumeSection(FolderSection):
    """The `training` section of a recipe that learns from a folder of volumes."""

    steps: int = Field(default=3000, ge=1)
    crop: tuple[int, int, int] = (96, 96, 96)  # voxels in RAS order; 1 at the end: slice by slice
    batch: int = Field(default=2, ge=1)
    labelled: float = Field(default=0.67, ge=0, le=1)  # share of blocks around a labelled voxel, each class as often
    turn: float = 12.0  # degrees in the axial plane, both ways; no mirroring, which would swap left and right
    zoom: tuple[float, float] = (0.85, 1.2)
    contrast: tuple[float, float] = (0.75, 1.3)
    brightness: float = 0.1
    noise: float = 0.08


@dataclass(frozen=True)
class Case:
    """One prepared volume: grey values and classes (0 for the background), (X, Y, Z), and voxels of each class.

    Classes are float32, as `grid_sample` wants them.
    """

    grey: Tensor
    classes: Tensor
    places: tuple[Tensor, ...]


@dataclass(frozen=True)
class Blocks:
    """What one step learns from: grey values (B, 1, *crop) and classes (B, *crop)."""

    image: Tensor
    target: Tensor


class BlockSampler(Dataset[Blocks]):
    """Batch number n of a training: drawn from the seed and n alone.

    Args:
        cases: To draw from, each with the same chance.
        options: The training section.
        varied: Whether blocks are turned, enlarged and changed in their grey values.
    """

    def __init__(self, cases: list[Case], options: FolderVolumeSection, *, varied: bool = True) -> None:
        self.cases, self.options, self.varied = cases, options, varied

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Blocks:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        drawn = [self._block(generator) for _ in range(self.options.batch)]
        image, target = (torch.stack(column) for column in zip(*drawn, strict=True))
        return Blocks(image, target)

    def _block(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Grey values (1, *crop) and classes (*crop) around one voxel."""
        case = self.cases[_below(len(self.cases), generator)]
        middle = [_below(side, generator) for side in case.grey.shape]
        if case.places and uniform(generator, 0, 1) < self.options.labelled:
            voxels = case.places[_below(len(case.places), generator)]
            middle = voxels[_below(len(voxels), generator)].tolist()
        at = self._grid(case, middle, generator)
        grey = F.grid_sample(case.grey[None, None], at, align_corners=True, padding_mode="border")[0]
        classes = F.grid_sample(case.classes[None, None], at, mode="nearest", align_corners=True)[0, 0]
        return self._light(grey, generator), classes.round().long()

    def _grid(self, case: Case, middle: list[int], generator: torch.Generator) -> Tensor:
        """Where the voxels of a block lie in the case, (1, *crop, 3), in the units of `grid_sample`: z, y, x."""
        step = 1 / uniform(generator, *self.options.zoom) if self.varied else 1.0
        angle = uniform(generator, -self.options.turn, self.options.turn) * pi / 180 if self.varied else 0.0
        lines = [torch.arange(side) - (side - 1) / 2 for side in self.options.crop]
        steps = (step, step, 1.0 if self.options.crop[2] == 1 else step)
        x, y, z = torch.meshgrid(*(line * s for line, s in zip(lines, steps, strict=True)), indexing="ij")
        places = (x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle), z)
        places = [place + at for place, at in zip(places, middle, strict=True)]
        scaled = [2 * p / max(1, side - 1) - 1 for p, side in zip(places, case.grey.shape, strict=True)]
        return torch.stack(scaled[::-1], dim=-1)[None]

    def _light(self, grey: Tensor, generator: torch.Generator) -> Tensor:
        if not self.varied:
            return grey
        how = self.options
        grey = grey * uniform(generator, *how.contrast) + uniform(generator, -how.brightness, how.brightness)
        return grey + uniform(generator, 0, how.noise) * torch.randn(grey.shape, generator=generator)


class BlockTrainer(Trainer):
    """Learns classes voxel by voxel.

    Args:
        network: (B, 1, X, Y, Z), or (B, 1, X, Y) where `flat`, to class scores; starts from the weights it has.
        options: The training section.
        flat: Whether it sees slices.
        device: A torch device.
    """

    def __init__(self, network: nn.Module, options: FolderVolumeSection, *, flat: bool, device: str = "cpu") -> None:
        super().__init__(network, options, total=options.steps, device=device)
        self.flat = flat

    def loss(self, sample: Blocks) -> Tensor:
        """Dice over the classes that occur, and cross entropy."""
        target = sample.target.to(self.device)
        with self.autocast():
            scores = scores_of(self.network, sample.image.to(self.device), flat=self.flat)
        return dice_and_cross_entropy(scores.float().transpose(0, 1).flatten(1), target.flatten())


class FolderVolumeCourse(LabelCourse[FolderVolumeSection]):
    """Training on volumes."""

    OPTIONS: ClassVar = FolderVolumeSection

    @property
    def flat(self) -> bool:
        """Whether the network sees slices."""
        return self.options.crop[2] == 1

    def plain_trainer(self, device: str) -> BlockTrainer:
        """The network must take one channel and give a score per class, which its first step shows."""
        return BlockTrainer(self.network(), self._batched(), flat=self.flat, device=device)

    def images(self, files: list[Any]) -> BlockSampler:
        """Varied blocks of all volumes."""
        half = len(files) // 2
        pairs = [Pair(image, mask, "") for image, mask in zip(files[:half], files[half:], strict=True)]
        return BlockSampler([self._case(pair) for pair in pairs], self._batched())

    def validation_batches(self, pairs: list[Pair]) -> list[Blocks]:
        """Unvaried blocks of the held-back volumes."""
        options = self._batched()
        count = -(-options.judged // options.batch)
        plain = options.model_copy(update={"steps": count, "seed": options.seed + 1})
        sampler = BlockSampler([self._case(pair) for pair in pairs], plain, varied=False)
        return [sampler[number] for number in range(count)]

    def judged(self, network: nn.Module, batch: Blocks, device: str) -> Tensor:
        """Voxels of each class but the background."""
        found = scores_of(network, batch.image.to(device), flat=self.flat).argmax(1)
        true, classes = batch.target.to(device), range(1, len(self.labels()) + 1)
        return counted(*(torch.stack([x == k for k in classes], 1) for x in (found, true)))

    def drawn(self, model: Any, pair: Pair) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """On the voxels of the image."""
        masks = classes_of(read(pair.mask, kind="labels").voxels, self.labels(), self.options.masks)
        ids = np.array([label.id for label in self.labels()])
        return model(pair.image, force_scope=True).volume.voxels, np.where(masks.any(0), ids[masks.argmax(0)], 0)

    def _batched(self) -> FolderVolumeSection:
        """Slices are small: as many more of them in a batch."""
        return self.options.model_copy(update={"batch": 4 * self.options.batch}) if self.flat else self.options

    def _case(self, pair: Pair) -> Case:
        image, mask = read(pair.image), read(pair.mask, kind="labels")
        require_size(pair, image.shape, mask.shape)
        recipe = self._recipe()
        prepared, chain = prepare(image, **preparation_of(recipe))
        classes = np.zeros(mask.shape, np.uint8)
        for number, chosen in enumerate(classes_of(mask.voxels, recipe.labels, self.options.masks), start=1):
            classes[chosen] = number
        moved = torch.from_numpy(chain.apply(image.with_voxels(classes, kind="labels")).voxels.astype(np.float32))
        places = [(moved == number).nonzero() for number in range(1, len(recipe.labels) + 1)]
        some = [place[:: max(1, len(place) // _PLACES)].clone() for place in places if len(place)]
        return Case(torch.from_numpy(prepared.voxels), moved, tuple(some))

    def _recipe(self) -> SegmentationRecipe:
        if not isinstance(self.recipe, SegmentationRecipe):
            raise UsageError(f"training 'folder-volumes' needs a recipe of volumes, its task is {self.recipe.task}")
        return self.recipe


def scores_of(network: nn.Module, image: Tensor, *, flat: bool) -> Tensor:
    """Class scores (B, K, X, Y, Z) of grey values (B, 1, X, Y, Z), slice by slice where the network is flat."""
    return network(image[..., 0])[..., None] if flat else network(image)


def _below(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
