"""Segmentation learned from synthetic images of label maps."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras, to_spacing
from medseg.io import read
from medseg.losses import dice_and_cross_entropy, side_entropy
from medseg.networks.wau import WAUNet
from medseg.synthesis import IGNORE, Sample, Subject, SynthesisOptions, Tissue, prepare_subject, synthesise
from medseg_pipelines.recipe import SegmentationRecipe
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation, Section, Trainer


class TissueOptions(Section):
    """One intensity group: label ids of the left (or only) side and of the right side."""

    ids: tuple[int, ...] = ()
    right: tuple[int, ...] = ()
    target: int | None
    white: float | None = None
    fluid: bool = False
    brain: bool = True

    def tissue(self) -> Tissue:
        """The group as the generator wants it."""
        return Tissue(
            ids=(*self.ids, *self.right),
            right=len(self.right),
            target=self.target,
            white=self.white,
            fluid=self.fluid,
            brain=self.brain,
        )


class Stage(Section):
    """A run of steps with one crop, in voxels."""

    steps: int = Field(ge=1)
    crop: tuple[int, int, int]


class SyntheticOptions(Optimisation):
    """The `training` section of a recipe that learns from synthetic images of label maps."""

    labels: str  # pattern of the label maps below the data folder
    held_out: tuple[str, ...] = ()  # file names that training never sees
    tissues: dict[str, TissueOptions]  # the first takes every id that no other names
    synthesis: dict[str, Any] = Field(default_factory=dict)
    stages: list[Stage] = Field(min_length=1)
    side_weight: float = 0.5


class SyntheticImages(Dataset[Sample]):
    """Image number n of a training: drawn from the seed and n alone, so that a resumed run sees what it would have.

    Args:
        subjects: Prepared label maps.
        options: The training section.
    """

    def __init__(self, subjects: list[Subject], options: SyntheticOptions) -> None:
        self.subjects, self.options = subjects, options
        self.tissues = [t.tissue() for t in options.tissues.values()]
        self.crops = [stage.crop for stage in options.stages for _ in range(stage.steps)]
        self.synthesis = [SynthesisOptions(**options.synthesis, crop=crop) for crop in self._distinct_crops()]

    def _distinct_crops(self) -> list[tuple[int, int, int]]:
        return list(dict.fromkeys(self.crops))

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, step: int) -> Sample:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        subject = self.subjects[int(torch.randint(len(self.subjects), (), generator=generator))]
        synthesis = self.synthesis[self._distinct_crops().index(self.crops[step])]
        return synthesise(subject, self.tissues, synthesis, generator)


def load_subjects(paths: list[Path], options: SyntheticOptions) -> list[Subject]:
    """Label maps made ready for the generator.

    Raises:
        InputRefused: A file is no label map, or holds none of the tissues.
    """
    tissues = [t.tissue() for t in options.tissues.values()]
    subjects = []
    for path in paths:
        labels = to_ras(read(path, kind="labels"))[0]
        labels = to_spacing(labels, (1.0, 1.0, 1.0))[0]
        try:
            subjects.append(prepare_subject(labels, tissues))
        except ValueError as error:
            raise InputRefused(f"'{path.name}': {error}") from None
    return subjects


class SyntheticTrainer(Trainer):
    """Learns classes, and sides where there are any, voxel by voxel.

    Args:
        network: Starts from the weights it has.
        options: The training section.
        sided: Whether the last output of the network is the side.
        device: A torch device.
    """

    network: WAUNet

    def __init__(self, network: WAUNet, options: SyntheticOptions, *, sided: bool, device: str = "cpu") -> None:
        super().__init__(network, options, total=sum(stage.steps for stage in options.stages), device=device)
        self.options, self.sided = options, sided

    def loss(self, sample: Sample) -> Tensor:
        """Dice, cross entropy and side on two of the voxel phases of each cell, which ones drawn anew every step."""
        stem = self.network.head.stride[0]
        phases = list(product(range(stem), repeat=3))
        generator = torch.Generator().manual_seed(self.options.seed + self.step)
        chosen = torch.randperm(len(phases), generator=generator)[:2].tolist()
        image, target, side = (x.to(self.device) for x in (sample.image, sample.target, sample.side))
        with self.autocast():
            features = self.network.features(image[None, None])
            logits = [self.network.logits_at(features, phases[i])[0].flatten(1) for i in chosen]
        loss = image.new_zeros(())
        for i, scores in zip(chosen, logits, strict=True):
            place = tuple(slice(start, None, stem) for start in phases[i])
            classes = scores[:-1] if self.sided else scores
            loss = loss + dice_and_cross_entropy(classes, target[place].flatten(), ignore=IGNORE)
            if self.sided:
                loss = loss + self.options.side_weight * side_entropy(scores[-1], side[place].flatten(), ignore=IGNORE)
        return loss / len(chosen)


class SyntheticCourse(Course[SyntheticOptions]):
    """Training of a WAU network on synthetic images."""

    OPTIONS: ClassVar = SyntheticOptions

    def check(self) -> None:
        """The options of the synthesis are those of `SynthesisOptions`, the crop aside, which the stages give."""
        try:
            SynthesisOptions(**self.options.synthesis, crop=self.options.stages[0].crop)
        except TypeError as error:  # an unknown key
            raise UsageError(f"recipe '{self.recipe.name}': training.synthesis: {error}") from None

    def files(self, data: Path) -> list[Path]:
        """The label maps but for those held out."""
        pattern = self.options.labels
        paths = [p for p in sorted(data.glob(pattern)) if p.name not in self.options.held_out]
        if not paths:
            raise UsageError(f"data folder '{data}' must hold label maps like {pattern}, found none; see --data")
        return paths

    def images(self, files: list[Path]) -> SyntheticImages:
        """Synthetic images of the label maps."""
        return SyntheticImages(load_subjects(files, self.options), self.options)

    def trainer(self, device: str) -> SyntheticTrainer:
        """The network must be a WAU network with one output per class, and one more for the side."""
        network, recipe = self.network(), self.recipe
        if not isinstance(network, WAUNet) or not isinstance(recipe, SegmentationRecipe):
            raise UsageError(f"training of synthetic images needs the network wau, got '{recipe.network.name}'")
        if network.head.out_channels != recipe.decode.outputs:
            raise UsageError(
                f"network.options.out_channels must be {recipe.decode.outputs}, one per class of decode.table"
                f"{' and the side' * recipe.decode.sided}, got {network.head.out_channels}"
            )
        for stage in self.options.stages:
            if any(side % network.multiple for side in stage.crop):
                raise UsageError(f"training.stages: crops must be multiples of {network.multiple}, got {stage.crop}")
        return SyntheticTrainer(network, self.options, sided=recipe.decode.sided, device=device)
