"""Training on a folder of images and masks, whatever the network: what pictures and volumes share.

A share of the patients is held back. Their patches say when to stop and which weights to keep; in the end the finished
model runs on their whole images, and its card tells how well it did.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from medseg.errors import UsageError
from medseg.metrics import dice
from medseg_pipelines.recipe import Label, PictureRecipe, SegmentationRecipe
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.folder_pairs import Pair, find_pairs, split
from medseg_pipelines.training.loop import Optimisation, Trainer
from medseg_pipelines.training.validation import Validation

Masks = Literal["values", "nonzero", "half"]
FolderOptions = TypeVar("FolderOptions", bound="HeldBack")
LabelOptions = TypeVar("LabelOptions", bound="FolderSection")


class HeldBack(Optimisation):
    """What every training on a folder says of the images that it does not learn from."""

    patients: str | None = None  # CSV table with the columns file and patient
    hold_back: float = Field(default=0.2, gt=0, lt=1)  # share of the patients
    split_seed: int = 0
    every: int = Field(default=50, ge=1)  # steps between two looks at what is held back
    patience: int = Field(default=8, ge=1)  # looks without a better one before the run ends
    judged: int = Field(default=24, ge=1)  # patches of each look


class FolderSection(HeldBack):
    """What every training of a network that labels all of an image says; `folder_plan` finds the rest."""

    learning_rate: float = 1e-3
    decay: float = 0.5
    average: float = 0.99
    masks: Masks = "values"
    shares: tuple[float, ...] = ()  # of each class in all pixels or voxels, as found


@dataclass(frozen=True)
class Score:
    """How well a finished model did on one label of the held-back images.

    Attributes:
        label: Its name.
        dices: One per image that holds the label, or was given it by the model.
        trivial: Mean Dice of what needs no model.
        counted: What the scores are of.
        against: What needs no model.
    """

    label: str
    dices: tuple[float, ...]
    trivial: float
    counted: str = "images"
    against: str = "if everything were labelled"

    @property
    def mean(self) -> float:
        """Over the images."""
        return float(np.mean(self.dices)) if self.dices else float("nan")


class FolderCourse(Course[FolderOptions]):
    """Training on a folder; see the module."""

    def __init__(self, recipe: Any) -> None:
        super().__init__(recipe)
        self._held: list[Pair] = []

    def files(self, data: Path) -> list[Path]:
        """Images to learn from, then their masks in the same order; the others are kept for validation."""
        table = None if self.options.patients is None else Path(self.options.patients)
        learned, self._held = split(find_pairs(data, table), self.options.hold_back, self.options.split_seed)
        return [pair.image for pair in learned] + [pair.mask for pair in learned]

    def trainer(self, device: str) -> Trainer:
        """A run that stops when the held-back images no longer gain."""
        trainer = self.plain_trainer(device)
        batches = self.validation_batches(self._held)
        trainer.validation = Validation(
            lambda network: pooled_dice([self.judged(network, batch, device) for batch in batches]),
            every=self.options.every,
            patience=self.options.patience,
        )
        return trainer

    @abstractmethod
    def plain_trainer(self, device: str) -> Trainer:
        """A run at its first step."""

    @abstractmethod
    def validation_batches(self, pairs: list[Pair]) -> list[Any]:
        """Unvaried patches, the same at every look."""

    @abstractmethod
    def judged(self, network: nn.Module, batch: Any, device: str) -> Tensor:
        """Shared, found and true pixels of each label in a batch, (3, K)."""

    @abstractmethod
    def account(self, model: Any) -> list[Score]:
        """The finished model on every held-back image."""

    def judged_lines(self, scores: Sequence[Score]) -> list[str]:
        """What the card says of them."""
        told = [
            f"Dice on {len(self._held)} held-back image{'s' * (len(self._held) != 1)}, which said when to stop, "
            "so that new images may do worse:",
            "",
            f"| label | {scores[0].counted} | mean Dice | least | {scores[0].against} |",
            "|---|---|---|---|---|",
        ]
        for score in scores:
            least = min(score.dices, default=float("nan"))
            told.append(
                f"| {score.label} | {len(score.dices)} | {score.mean:.3f} | {least:.3f} | {score.trivial:.3f} |"
            )
        return told


class LabelCourse(FolderCourse[LabelOptions]):
    """Training of a network that gives every pixel or voxel of an image one of the recipe's labels, or none."""

    @abstractmethod
    def drawn(self, model: Any, pair: Pair) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Label ids that a finished model gives one image, and the true ones."""

    def labels(self) -> tuple[Label, ...]:
        """Of the recipe."""
        if not isinstance(self.recipe, PictureRecipe | SegmentationRecipe):
            raise UsageError(f"training on a folder needs a recipe that segments, its task is {self.recipe.task}")
        return self.recipe.labels

    def account(self, model: Any) -> list[Score]:
        """The finished model on every held-back image."""
        dices: dict[int, list[float]] = {label.id: [] for label in self.labels()}
        trivial: dict[int, list[float]] = {label.id: [] for label in self.labels()}
        for pair in self._held:
            found, true = self.drawn(model, pair)
            for label in self.labels():
                mask, reference = found == label.id, true == label.id
                if mask.any() or reference.any():
                    dices[label.id].append(dice(mask, reference))
                    trivial[label.id].append(dice(np.ones_like(reference), reference))
        return [
            Score(label.name, tuple(dices[label.id]), float(np.mean(trivial[label.id] or [0.0])))
            for label in self.labels()
        ]


def pooled_dice(counts: list[Tensor]) -> float:
    """Mean over the labels of the Dice of all patches together, from shared, found and true pixels, (3, K) each."""
    shared, found, true = torch.stack(counts).sum(0)
    return float((2 * shared / (found + true).clamp(min=1))[true > 0].mean()) if bool((true > 0).any()) else 0.0


def counted(found: Tensor, true: Tensor) -> Tensor:
    """Shared, found and true pixels of masks (B, K, *grid), boolean, as (3, K)."""
    over = (0, *range(2, found.ndim))
    return torch.stack([x.sum(over).double() for x in (found & true, found, true)]).cpu()


def classes_of(ids: NDArray[np.integer], labels: Sequence[Label], masks: Masks) -> NDArray[np.bool_]:
    """Numbers of a mask, (*grid), to one boolean mask per label, (K, *grid)."""
    if masks == "values":
        return np.stack([ids == label.id for label in labels])
    return (ids > 0)[None]
