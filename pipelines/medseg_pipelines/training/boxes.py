"""Following boxes, learned from volumes and their label maps: SAM's encoder stays frozen, the rest of DB-SAM learns.

Published training of DB-SAM (2410.04172, section 3): boxes of the true structures, each side moved outward at random;
soft Dice and cross entropy on the decoder's own grid.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from medseg.errors import InputRefused, UsageError
from medseg.io import read
from medseg.networks.db_sam import DbSam, DbSamEncoder, box_loss
from medseg.networks.sam import load_published
from medseg_pipelines.prompting.frame import Frame, network_pixels, small_mask
from medseg_pipelines.prompting.grey import grey_range, to_eight_bit
from medseg_pipelines.prompting.stack import Stack
from medseg_pipelines.recipe import PromptRecipe, Recipe
from medseg_pipelines.slices import slice_axis
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation, Trainer
from medseg_pipelines.weights.cache import load_brought


class BoxOptions(Optimisation):
    """The `training` section of a recipe that learns to follow boxes."""

    images: str  # pattern below the data folder
    labels: str  # the same; sorted, they belong to the images
    start: str | None = None  # SAM's weights in `medseg weights`; None: a frozen encoder that knows nothing
    steps: int = Field(ge=1)
    batch: int = Field(default=8, ge=1)
    least: int = Field(default=100, ge=1)  # pixels of a structure on a slice; smaller ones are not learned from
    jitter: float = Field(default=0.075, ge=0, lt=1)  # share of the longer side by which a box is too large, at most
    cache: int = Field(default=2_000_000_000, ge=0)  # bytes for what the first, frozen stage made of slices


@dataclass(frozen=True, eq=False)
class Sighting:
    """One structure on one slice."""

    stack: int
    at: int
    label: int


@dataclass(frozen=True, eq=False)
class BoxBatch:
    """Slices with a box each.

    Attributes:
        keys: What tells the slices apart.
        slices: (rows, columns), 8 bit, one each.
        frames: Where they lie on the network's square.
        boxes: On that square, (B, 4).
        targets: 1 inside, on the decoder's grid, (B, 1, h, w).
    """

    keys: tuple[tuple[int, int], ...]
    slices: tuple[np.ndarray, ...]
    frames: tuple[Frame, ...]
    boxes: Tensor
    targets: Tensor


class Boxes(Dataset[BoxBatch]):
    """Batch number n of a training: drawn from the seed and n alone.

    Args:
        stacks: 8-bit slices and label ids of every volume.
        options: The training section.
        side: Of the network's square, in pixels.
        grid: Cells of its decoder along one side.
        fit: As the recipe fits slices into the square.

    Raises:
        InputRefused: No structure is large enough to learn from.
    """

    def __init__(
        self, stacks: list[tuple[Stack, np.ndarray]], options: BoxOptions, *, side: int, grid: int, fit: str
    ) -> None:
        self.stacks, self.options, self.side, self.grid, self.fit = stacks, options, side, (grid, grid), fit
        self.sightings = [
            Sighting(number, at, int(label))
            for number, (_, ids) in enumerate(stacks)
            for at in range(len(ids))
            for label, count in zip(*np.unique(ids[at], return_counts=True), strict=True)
            if label and count >= options.least
        ]
        if not self.sightings:
            raise InputRefused(f"no structure has {options.least} pixels on any slice; lower training.least")

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> BoxBatch:
        rng = np.random.default_rng((self.options.seed, step))
        chosen = [self.sightings[i] for i in rng.integers(len(self.sightings), size=self.options.batch)]
        parts = [self._part(sighting, rng) for sighting in chosen]
        slices, frames, boxes, targets = zip(*parts, strict=True)
        keys = tuple((sighting.stack, sighting.at) for sighting in chosen)
        return BoxBatch(keys, slices, frames, torch.cat(boxes), torch.cat(targets))

    def _part(self, sighting: Sighting, rng: np.random.Generator) -> tuple[np.ndarray, Frame, Tensor, Tensor]:
        stack, ids = self.stacks[sighting.stack]
        mask = ids[sighting.at] == sighting.label
        frame = Frame.of(stack.size, stack.spacing, self.side, fit=self.fit)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        tight = np.array((columns[0], rows[0], columns[-1], rows[-1]), float)
        away = rng.uniform(0, self.options.jitter * max(stack.size), 4) * (-1, -1, 1, 1)
        limits = np.array((stack.size[1], stack.size[0]) * 2)  # ends may lie on the border, as published
        box = frame.moved((tight + away).clip(0, limits).reshape(2, 2)).reshape(1, 4)
        target = (small_mask(mask, frame, self.grid, self.side) > 0.5).float()
        return stack.slices[sighting.at], frame, torch.from_numpy(box).float(), target


class BoxTrainer(Trainer):
    """Learns everything but the frozen blocks; what the first stage of these makes of a slice is kept.

    Args:
        network: Its blocks do not learn.
        options: Of the training.
        recipe: How slices are prepared.
        device: A torch device.
    """

    network: DbSam

    def __init__(self, network: DbSam, options: BoxOptions, recipe: PromptRecipe, *, device: str = "cpu") -> None:
        super().__init__(network, options, total=options.steps, device=device)
        self.prompting, self.limit = recipe.prompting, options.cache
        self.kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self.encoded = 0  # slices that passed the first stage

    def loss(self, sample: BoxBatch) -> Tensor:
        """Soft Dice and cross entropy of the low-resolution mask."""
        network = self.network
        encoder = cast("DbSamEncoder", network.image_encoder)
        parts = zip(sample.slices, sample.frames, strict=True)
        pixels = torch.cat([network_pixels(network, slice_, frame, self.prompting) for slice_, frame in parts])
        embedding = encoder(pixels, self._first(encoder, sample.keys, pixels))
        logits = network.decode(embedding, boxes=sample.boxes.to(self.device)).logits
        return box_loss(logits, sample.targets.to(self.device))

    def _first(self, encoder: DbSamEncoder, keys: tuple[tuple[int, int], ...], pixels: Tensor) -> Tensor:
        """Tokens behind the first stage, (B, H, W, C)."""
        found = {key: self.kept[key] for key in keys if key in self.kept}
        fresh = {key: number for number, key in enumerate(keys) if key not in found}
        if fresh:
            self.encoded += len(fresh)
            for key, tokens in zip(fresh, encoder.first_stage(pixels[list(fresh.values())]), strict=True):
                found[key] = self.kept[key] = tokens
        size = next(iter(found.values())).nbytes
        while self.kept and size * len(self.kept) > self.limit:
            self.kept.popitem(last=False)
        return torch.stack([found[key] for key in keys])


class BoxCourse(Course[BoxOptions]):
    """Training of a DB-SAM on volumes and label maps."""

    OPTIONS: ClassVar = BoxOptions

    def __init__(self, recipe: Recipe) -> None:
        if isinstance(recipe, PromptRecipe):  # the folder of the run has weights of its own
            recipe = recipe.model_copy(update={"checkpoint": None})
        super().__init__(recipe)

    def files(self, data: Path) -> list[Path]:
        """First all images, then their label maps in the same order."""
        images, labels = (sorted(data.glob(pattern)) for pattern in (self.options.images, self.options.labels))
        images = [path for path in images if path not in set(labels)]
        if not images or len(images) != len(labels):
            raise UsageError(
                f"data folder '{data}' must hold as many files like {self.options.images} as like "
                f"{self.options.labels}, found {len(images)} and {len(labels)}; see --data"
            )
        return [*images, *labels]

    def trainer(self, device: str) -> BoxTrainer:
        """The network must be a DB-SAM; it starts from SAM's weights where the recipe names some."""
        network = self.network()
        if not isinstance(network, DbSam):
            raise UsageError(f"training 'boxes' needs the network db-sam, got '{self.recipe.network.name}'")
        if self.options.start is not None:
            load_published(network, load_brought(self.options.start)[1])
        network.mask_decoder.iou_prediction_head.requires_grad_(False)  # nothing tells it what is good
        return BoxTrainer(network, self.options, self._recipe(), device=device)

    def images(self, files: list[Path]) -> Boxes:
        """Every structure on every slice."""
        half, config = len(files) // 2, cast("DbSam", self.network()).config
        stacks = [self._stack(a, b) for a, b in zip(files[:half], files[half:], strict=True)]
        grid = 4 * config.img_size // config.patch_size
        return Boxes(stacks, self.options, side=config.img_size, grid=grid, fit=self._recipe().prompting.fit)

    def _stack(self, image: Path, labels: Path) -> tuple[Stack, np.ndarray]:
        volume, ids = read(image), read(labels, kind="labels")
        if not ids.grid.equals(volume.grid, tolerance=1e-3):
            raise InputRefused(f"'{labels.name}' must lie on the grid of '{image.name}', it does not; resample it")
        options = self._recipe().prompting
        eight_bit = volume.with_voxels(to_eight_bit(volume.voxels, grey_range(volume.voxels, options)))
        stack = Stack.of_volume(eight_bit, slice_axis(volume))
        return stack, stack.arranged(ids.voxels)

    def _recipe(self) -> PromptRecipe:
        if not isinstance(self.recipe, PromptRecipe):
            raise UsageError(f"training 'boxes' needs a recipe of task prompting, got {self.recipe.task}")
        return self.recipe
