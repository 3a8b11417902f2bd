"""Following boxes, learned from a folder of pictures and masks, or of volumes and label maps.

Published training of DB-SAM (2410.04172, section 3): SAM's encoder stays frozen, the rest learns; soft Dice and cross
entropy on the decoder's own grid. Beyond it, boxes may come from the neighbouring slice, and the decoder's estimate of
its own overlap learns along, 0 where the structure is gone: that ends a walk through a volume.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg.io import read
from medseg.io.pictures import ENDINGS, read_picture
from medseg.metrics import dice
from medseg.networks.db_sam import DbSam, DbSamEncoder, box_loss, box_overlap
from medseg.networks.sam import Prediction, load_published
from medseg.picture import Picture
from medseg.volume import Volume
from medseg_pipelines.prompting.frame import network_pixels
from medseg_pipelines.prompting.given import Given
from medseg_pipelines.prompting.grey import grey_range, to_eight_bit
from medseg_pipelines.prompting.stack import Stack
from medseg_pipelines.recipe import PromptRecipe, Recipe
from medseg_pipelines.sections import PromptOptions
from medseg_pipelines.slices import slice_axis
from medseg_pipelines.training.folder_course import FolderCourse, HeldBack, Score, counted
from medseg_pipelines.training.folder_pairs import Pair
from medseg_pipelines.training.folder_plan import is_lossy, mask_ids, require_size
from medseg_pipelines.training.loop import Trainer
from medseg_pipelines.training.sightings import BoxBatch, Boxes, Outlined, Sightings
from medseg_pipelines.weights.cache import load_brought

_MOST = 200  # outlines of one held-back image that the card speaks of


class BoxOptions(HeldBack):
    """The `training` section of a recipe that learns to follow boxes."""

    start: str | None = None  # SAM's weights in `medseg weights`, which stay; None: all of the network learns
    steps: int = Field(ge=1)
    batch: int = Field(default=8, ge=1)  # slices
    boxes: int = Field(default=1, ge=1)  # on each of them
    least: int = Field(default=100, ge=1)  # pixels of a structure on a slice; smaller ones give no box
    pieces: bool = False  # each piece of a label is a structure of its own
    jitter: float = Field(default=0.075, ge=0, lt=1)  # share of the longer side by which a box is too large, at most
    neighbours: float = Field(default=0.0, ge=0, lt=1)  # share of boxes that come from the slice above or below
    estimate: float = Field(default=0.0, ge=0)  # weight of the squared error of the decoder's estimate of its overlap
    turns: bool = False  # slices are also shown mirrored and in quarter turns
    cache: int = Field(default=2_000_000_000, ge=0)  # bytes for what the first, frozen stage made of slices


class BoxTrainer(Trainer):
    """Learns everything but the frozen blocks; what the first stage of these makes of a slice is kept.

    Args:
        network: Its blocks do not learn where the options name weights to start from.
        options: Of the training.
        prompting: How slices are seen.
        device: A torch device.
    """

    network: DbSam

    def __init__(self, network: DbSam, options: BoxOptions, prompting: PromptOptions, *, device: str = "cpu") -> None:
        super().__init__(network, options, total=options.steps, device=device)
        self.options, self.prompting = options, prompting
        self.kept: OrderedDict[tuple[int, int, int], Tensor] = OrderedDict()
        self.encoded = 0  # slices that passed the first stage

    def loss(self, sample: BoxBatch) -> Tensor:
        """Soft Dice and cross entropy of the low-resolution masks, and the error of the estimates."""
        pixels = pixels_of(self.network, sample, self.prompting)
        first = None if self.options.start is None else self._first(sample.keys, pixels)
        said = predict(self.network, sample, pixels, first)
        targets = sample.targets.to(self.device)
        loss = box_loss(said.logits, targets)
        if self.options.estimate:
            loss = loss + self.options.estimate * F.mse_loss(said.iou[:, 0], box_overlap(said.logits, targets))
        return loss

    def _first(self, keys: tuple[tuple[int, int, int], ...], pixels: Tensor) -> Tensor:
        """Tokens behind the first stage, (B, H, W, C)."""
        found = {key: self.kept[key] for key in keys if key in self.kept}
        fresh = {key: number for number, key in enumerate(keys) if key not in found}
        if fresh:
            self.encoded += len(fresh)
            tokens = cast("DbSamEncoder", self.network.image_encoder).first_stage(pixels[list(fresh.values())])
            for key, each in zip(fresh, tokens, strict=True):
                found[key] = self.kept[key] = each
        size = next(iter(found.values())).nbytes
        while self.kept and size * len(self.kept) > self.options.cache:
            self.kept.popitem(last=False)
        return torch.stack([found[key] for key in keys])


def pixels_of(network: DbSam, sample: BoxBatch, options: PromptOptions) -> Tensor:
    """What the encoder reads of the slices of a batch, (B, 3, side, side)."""
    parts = zip(sample.slices, sample.frames, strict=True)
    return torch.cat([network_pixels(network, slice_, frame, options) for slice_, frame in parts])


def predict(network: DbSam, sample: BoxBatch, pixels: Tensor, first: Tensor | None = None) -> Prediction:
    """Masks of the boxes of a batch, P of them.

    Args:
        network: A DB-SAM.
        sample: The batch.
        pixels: Of `pixels_of`.
        first: Tokens behind the first stage, where they are known.
    """
    embedding = cast("DbSamEncoder", network.image_encoder)(pixels, first)
    each = len(sample.boxes) // len(sample.slices)
    return network.decode(embedding.repeat_interleave(each, 0), boxes=sample.boxes.to(pixels.device))


class BoxCourse(FolderCourse[BoxOptions]):
    """Training of a DB-SAM on a folder."""

    OPTIONS: ClassVar = BoxOptions

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        if isinstance(recipe, PromptRecipe):  # the folder of the run has weights of its own
            prompting = recipe.prompting.model_copy(update={"estimates": self.options.estimate > 0})
            self.recipe = recipe.model_copy(update={"checkpoint": None, "prompting": prompting})

    def plain_trainer(self, device: str) -> BoxTrainer:
        """The network must be a DB-SAM; where the recipe names SAM's weights, it starts from them."""
        state = None if self.options.start is None else _brought(self.options.start)  # told before anything large
        network = self._network()
        if state is not None:
            load_published(network, state)
        cast("DbSamEncoder", network.image_encoder).freeze(self.options.start is not None)
        network.mask_decoder.iou_prediction_head.requires_grad_(self.options.estimate > 0)  # else nothing teaches it
        return BoxTrainer(network, self.options, self._recipe().prompting, device=device)

    def images(self, files: list[Path]) -> Boxes:
        """Every structure on every slice."""
        half = len(files) // 2
        pairs = [Pair(image, mask, "") for image, mask in zip(files[:half], files[half:], strict=True)]
        return self._boxes(pairs, self.options)

    def validation_batches(self, pairs: list[Pair]) -> list[BoxBatch]:
        """Slices of the held-back images, as they are."""
        options = self.options
        count = -(-options.judged // (options.batch * options.boxes))
        plain = options.model_copy(update={"turns": False, "steps": count, "seed": options.seed + 1})
        sampler = self._boxes(pairs, plain)
        return [sampler[number] for number in range(count)]

    def judged(self, network: nn.Module, batch: BoxBatch, device: str) -> Tensor:
        """Cells of the decoder's grid."""
        known = cast("DbSam", network)
        said = predict(known, batch, pixels_of(known, batch, self._recipe().prompting))
        return counted(said.logits > 0, batch.targets.to(device) > 0.5)

    def account(self, model: Any) -> list[Score]:
        """Every outline of the held-back images from its tight box, beside the box itself."""
        found, itself = [], []
        for pair in self._held:
            image, outlined = self._read(pair)
            session, own = model.session(image), Sightings.on([outlined], self.options.least).own
            for sighting in own[:: -(-len(own) // _MOST) or 1]:
                box, true = outlined.box(sighting), outlined.ids[sighting.at] == sighting.label
                found.append(dice(session.outline(sighting.at, Given(box=box)), true))
                itself.append(dice(filled(box, true.shape), true))
        against = float(np.mean(itself)) if itself else 0.0
        return [Score("what a box holds", tuple(found), against, counted="outlines", against="the box itself")]

    def _boxes(self, pairs: list[Pair], options: BoxOptions) -> Boxes:
        config = self._network().config
        grid = 4 * config.img_size // config.patch_size
        outlined = [self._read(pair)[1] for pair in pairs]
        return Boxes(outlined, options, self._recipe().prompting, side=config.img_size, grid=grid)

    def _read(self, pair: Pair) -> tuple[Volume | Picture, Outlined]:
        """An image, and what its mask says of its slices."""
        if pair.image.suffix.lower() in ENDINGS:
            image, ids = read_picture(pair.image), mask_ids(pair.mask, half=is_lossy(pair.mask))
            require_size(pair, image.size, ids.shape)
            stack, ids = Stack.of_picture(image), ids[None]
        else:
            image, labels = read(pair.image), read(pair.mask, kind="labels")
            if not labels.grid.equals(image.grid, tolerance=1e-3):
                raise InputRefused(f"{pair.mask.name}: must lie on the grid of '{pair.image.name}'; resample it")
            options = self._recipe().prompting
            grey = to_eight_bit(image.voxels, grey_range(image.voxels, options))
            stack = Stack.of_volume(image.with_voxels(grey), slice_axis(image))
            ids = stack.arranged(labels.voxels)
        return image, Outlined(stack, _pieces(ids) if self.options.pieces else ids)

    def _network(self) -> DbSam:
        network = self.network()
        if not isinstance(network, DbSam):
            raise UsageError(f"training 'boxes' needs the network db-sam, got '{self.recipe.network.name}'")
        return network

    def _recipe(self) -> PromptRecipe:
        if not isinstance(self.recipe, PromptRecipe):
            raise UsageError(f"training 'boxes' needs a recipe of task prompting, got {self.recipe.task}")
        return self.recipe


def _brought(name: str) -> Mapping[str, Tensor]:
    """Weights to start from."""
    try:
        return load_brought(name)[1]
    except ModelMissing as error:
        raise ModelMissing(f"{error}; db-sam-small learns without any") from None


def filled(box: tuple[float, float, float, float], size: tuple[int, ...]) -> np.ndarray:
    """A box of whole pixels as a mask, (rows, columns)."""
    mask = np.zeros(size, bool)
    x0, y0, x1, y1 = (round(end) for end in box)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def _pieces(ids: np.ndarray) -> np.ndarray:
    """Another number for each piece of each label that hangs together, (S, rows, columns)."""
    found, count = np.zeros(ids.shape, np.int32), 0
    for label in np.unique(ids[ids > 0]):
        parts, more = cast("tuple[np.ndarray, int]", ndimage.label(ids == label))
        found += np.where(parts > 0, parts + count, 0).astype(np.int32)
        count += more
    return found
