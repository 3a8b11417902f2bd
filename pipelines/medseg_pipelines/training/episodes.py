"""Segmentation by examples, learned from tasks: examples with a structure outlined, queries to outline it in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from medseg.episodes import (
    SIDES,
    Anatomy,
    Episode,
    EpisodeOptions,
    anatomy,
    draw_anatomical,
    draw_invented,
    draw_structure,
)
from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras, to_spacing
from medseg.io import read
from medseg.networks.sam2_memory import Memories
from medseg.networks.sam2_sgp import Sam2Sgp, Segmented
from medseg.networks.sam2_sgp_matching import CELL, Matcher, draw_places, matching_loss
from medseg.networks.sam2_sgp_training import guided_loss, released_loss
from medseg.synthesis import SynthesisOptions, Tissue, prepare_subject
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation, Section, Trainer, learning_rate_at

_EPOCHS = 40  # that the schedule of the published loss counts in one stage
_OUT = -20.0  # logit of a place that is certainly left out


class TissueOptions(Section):
    """One intensity group: label ids of the left (or only) side and of the right side."""

    ids: tuple[int, ...] = ()
    right: tuple[int, ...] = ()
    white: float | None = None
    fluid: bool = False
    brain: bool = True


class SupportStage(Section):
    """A run of steps with one size of slices and one thing to learn; the rate rises and falls within it.

    `matching` teaches encoder and matcher which places are alike, all parts of an image at once. `masks` teaches to
    outline; in a network with a matcher, encoder and descriptors then stay as they are.
    """

    steps: int = Field(ge=1)
    side: int = Field(ge=32)  # pixels
    learn: Literal["matching", "masks"] = "masks"
    rate: float = Field(default=1.0, gt=0)  # times the learning rate of the run
    invented: float = Field(default=0.5, ge=0, le=1)  # share of tasks on anatomies that never were


class SupportOptions(Optimisation):
    """The `training` section of a recipe that learns to segment by examples."""

    labels: str  # pattern of the label maps below the data folder
    held_out: tuple[str, ...] = ()  # file names that training never sees
    tissues: dict[str, TissueOptions]  # the first takes every id that no other names
    unnamed: tuple[str, ...] = ()  # tissues that no task ever asks for
    stages: list[SupportStage] = Field(min_length=1)
    tasks: int = Field(default=2, ge=1)  # per step
    examples: tuple[int, int] = (3, 5)  # per task, fewest and most; each is also a query to the others
    queries: int = Field(default=2, ge=1)  # further ones per task, where the structure may be missing
    sequences: float = Field(default=0.4, ge=0, le=1)  # share of steps whose queries are neighbouring slices
    loss: Literal["guided", "released"] = "guided"
    synthesis: dict[str, Any] = Field(default_factory=dict)
    episodes: dict[str, Any] = Field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> tuple[SupportStage, int]:
        """To which stage a step of the run belongs, and which of its steps it is."""
        for stage in self.stages[:-1]:
            if step < stage.steps:
                return stage, step
            step -= stage.steps
        return self.stages[-1], step

    def groups(self) -> list[Tissue]:
        """The tissues as the generator wants them, each with its own number as target."""
        return [
            Tissue(
                ids=(*t.ids, *t.right), right=len(t.right), target=index, white=t.white, fluid=t.fluid, brain=t.brain
            )
            for index, t in enumerate(self.tissues.values())
        ]


@dataclass(frozen=True)
class Tasks:
    """What one step learns from.

    Attributes:
        examples: (tasks, K, 1, side, side), 0..1.
        outlines: Alike, 0 or 1.
        queries: (tasks, Q, 1, side, side), 0..1.
        targets: Alike, 0 or 1.
        sequence: The queries of a task are neighbouring slices.
        parts: Of examples and queries, as in `Episode`, (tasks, K + Q, side, side); -1 where training knows no name.
    """

    examples: Tensor
    outlines: Tensor
    queries: Tensor
    targets: Tensor
    sequence: bool
    parts: Tensor


class TaskSampler(Dataset[Tasks]):
    """Tasks of step n: drawn from the seed and n alone.

    Args:
        anatomies: Of label maps.
        options: The training section.
    """

    def __init__(self, anatomies: list[Anatomy], options: SupportOptions) -> None:
        self.anatomies, self.options = anatomies, options
        self.tissues = options.groups()
        self.synthesis = SynthesisOptions(**options.synthesis)
        self.asked = [i for i, name in enumerate(options.tissues) if i and name not in options.unnamed]
        self.unnamed = torch.tensor([i for i, name in enumerate(options.tissues) if name in options.unnamed])

    def __len__(self) -> int:
        return self.options.steps

    def __getitem__(self, step: int) -> Tasks:
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + step)
        fewest, most = self.options.examples
        examples = fewest + int(torch.randint(most - fewest + 1, (), generator=generator))
        stage, _ = self.options.stage(step)
        chance = float(torch.rand((), generator=generator))
        sequence = stage.learn == "masks" and chance < self.options.sequences
        how = EpisodeOptions(**self.options.episodes, side=stage.side)
        drawn = [self._task(stage, how, examples, sequence, generator) for _ in range(self.options.tasks)]
        images, masks, parts = (torch.stack(column) for column in zip(*drawn, strict=True))
        shown, asked = slice(None, examples), slice(examples, None)
        return Tasks(
            *(x[:, which, None] for which in (shown, asked) for x in (images, masks)), sequence=sequence, parts=parts
        )

    def _task(
        self, stage: SupportStage, how: EpisodeOptions, examples: int, sequence: bool, generator: torch.Generator
    ) -> Episode:
        counts = {"examples": examples, "queries": self.options.queries, "generator": generator, "sequence": sequence}
        if float(torch.rand((), generator=generator)) < stage.invented:
            return draw_invented(self.synthesis, how, **counts)
        axis = int(torch.randint(3, (), generator=generator))
        structure = draw_structure(self.anatomies, self.tissues, self.asked, how, axis=axis, generator=generator)
        drawn = draw_anatomical(self.anatomies, self.tissues, structure, self.synthesis, how, axis=axis, **counts)
        return drawn._replace(parts=drawn.parts.where(~torch.isin(drawn.parts // SIDES, self.unnamed), -1))


def load_anatomies(paths: list[Path], options: SupportOptions) -> list[Anatomy]:
    """Label maps made ready for the generator.

    Raises:
        InputRefused: A file is no label map, or holds none of the tissues.
    """
    tissues = options.groups()
    found = []
    for path in paths:
        labels = to_spacing(to_ras(read(path, kind="labels"))[0], (1.0, 1.0, 1.0))[0]
        try:
            found.append(anatomy(prepare_subject(labels, tissues), tissues))
        except ValueError as error:
            raise InputRefused(f"'{path.name}': {error}") from None
    return found


class SupportTrainer(Trainer):
    """Learns to outline in queries what the examples outline.

    Args:
        network: Starts from the weights it has.
        options: The training section.
        device: A torch device.
    """

    network: Sam2Sgp

    def __init__(self, network: Sam2Sgp, options: SupportOptions, *, device: str = "cpu") -> None:
        if network.matcher is not None:
            network.matcher.silence(network.sam_mask_decoder.output_hypernetworks_mlps)
            if network.corrects:
                network.matcher.silence(network.mask_decoder2.output_hypernetworks_mlps2)
        super().__init__(network, options, total=options.steps, device=device)
        self.options = options

    def learning_rate(self) -> float:
        """Of this step of its stage."""
        stage, at = self.options.stage(self.step)
        return stage.rate * learning_rate_at(at, stage.steps, self.options)

    def age(self) -> int:
        """Steps of this stage."""
        return self.options.stage(self.step - 1)[1] + 1

    def learn(self, sample: Tasks) -> float:
        """One step of what its stage teaches; returns its loss."""
        described = [] if self.network.matcher is None else self.network.matcher.described()
        alike = self.options.stage(self.step)[0].learn == "matching"
        self.network.requires_grad_(not alike)
        for parameter in (*self.network.encoding(), *described):
            parameter.requires_grad_(alike or not described)
        return super().learn(sample)

    def loss(self, sample: Tasks) -> Tensor:
        """What the stage of this step teaches."""
        if self.options.stage(self.step)[0].learn == "matching":
            return self._matching_loss(sample)
        return self._mask_loss(sample)

    def _matching_loss(self, sample: Tasks) -> Tensor:
        """Places of each image are matched to those of some others of its task; the mean over tasks."""
        network, matcher = self.network, cast(Matcher, self.network.matcher)
        chance = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        pixels = _coloured(torch.cat((sample.examples, sample.queries), dim=1).to(self.device))
        with self.autocast():
            places = matcher(network.features(pixels)).unflatten(0, sample.parts.shape[:2])
        parts = sample.parts[..., CELL // 2 :: CELL, CELL // 2 :: CELL].flatten(2)
        tasks = zip(places, parts, strict=True)
        return torch.stack([matching_loss(matcher, *draw_places(*task, chance)) for task in tasks]).mean()

    def _mask_loss(self, sample: Tasks) -> Tensor:
        """Mean over all images of the loss that the recipe names; in a sequence each query reads those before it."""
        examples, outlines, queries, targets = (
            x.to(self.device) for x in (sample.examples, sample.outlines, sample.queries, sample.targets)
        )
        tasks, count = examples.shape[:2]
        network, after = self.network, queries.shape[1]
        nameless = (sample.parts < 0).to(self.device)
        shown, later = nameless[:, :count], nameless[:, count:]
        with self.autocast():
            known = network.features(_coloured(examples))
            asked = network.features(_coloured(queries))
            support = network.support_of(known, outlines.flatten(0, 1))
            number = torch.arange(tasks * count, device=examples.device).unflatten(0, (tasks, count))
            found = network.segment(known, support.chosen(_others(number)))
            losses = [self._judged(found, outlines.flatten(0, 1), shown.flatten(0, 1))] * count
            recalled = support.chosen(number[:, 1:])
            bank: list[Memories] = []
            for place in range(after) if sample.sequence else ():
                found = network.segment(asked.of(slice(place, None, after)), recalled.behind(bank))
                bank.append(network.remember(network.memory(found.embedding, found.logits)))
                losses.append(self._judged(found, targets[:, place], later[:, place]))
            if not sample.sequence:
                found = network.segment(asked, support.chosen(number[:, 1:].repeat_interleave(after, dim=0)))
                losses += [self._judged(found, targets.flatten(0, 1), later.flatten(0, 1))] * after
        return torch.stack(losses).mean()

    def _judged(self, found: Segmented, target: Tensor, nameless: Tensor) -> Tensor:
        """The loss of a batch; places without a name, (B, side, side), count as rightly left out.

        No task asks for them: a network that learned to leave them out would never outline what it was not taught.
        """
        stage, at = self.options.stage(self.step)
        epoch = at * _EPOCHS // stage.steps
        found = found._replace(
            logits=found.logits.masked_fill(nameless[:, None], _OUT),
            pseudo=found.pseudo.masked_fill(F.max_pool2d(nameless[:, None].float(), CELL) > 0, _OUT),
        )
        if self.options.loss == "released":
            return released_loss(found.logits, target, epoch)
        return guided_loss(found, target, epoch)


def _coloured(images: Tensor) -> Tensor:
    """Grey images of all tasks, (tasks, n, 1, side, side), as the network takes them, (tasks n, 3, side, side)."""
    return images.flatten(0, 1).expand(-1, 3, -1, -1)


def _others(number: Tensor) -> Tensor:
    """For each of the examples of each task, (tasks, K), the others, (tasks K, K - 1)."""
    count = number.shape[1]
    others = [[at for at in range(count) if at != own] for own in range(count)]
    return number[:, torch.tensor(others, device=number.device)].flatten(0, 1)


class SupportCourse(Course[SupportOptions]):
    """Training of SAM2-SGP on synthetic tasks."""

    OPTIONS: ClassVar = SupportOptions

    def check(self) -> None:
        """The options of synthesis and tasks are those of their dataclasses."""
        for name, kind, given in (
            ("synthesis", SynthesisOptions, self.options.synthesis),
            ("episodes", EpisodeOptions, {**self.options.episodes, "side": 32}),
        ):
            try:
                kind(**given)
            except TypeError as error:  # an unknown key
                raise UsageError(f"recipe '{self.recipe.name}': training.{name}: {error}") from None
        if any(stage.side % 32 for stage in self.options.stages):
            raise UsageError(f"recipe '{self.recipe.name}': training.stages: sides must be multiples of 32 pixels")
        fewest, most = self.options.examples
        if not 2 <= fewest <= most:
            raise UsageError(
                f"recipe '{self.recipe.name}': training.examples must rise from 2 on, got {self.options.examples}"
            )
        unknown = sorted(set(self.options.unnamed) - set(self.options.tissues))
        if unknown:
            raise UsageError(f"recipe '{self.recipe.name}': training.unnamed: no tissue is called {unknown[0]}")

    def files(self, data: Path) -> list[Path]:
        """The label maps but for those held out."""
        pattern = self.options.labels
        paths = [p for p in sorted(data.glob(pattern)) if p.name not in self.options.held_out]
        if not paths:
            raise UsageError(f"data folder '{data}' must hold label maps like {pattern}, found none; see --data")
        return paths

    def images(self, files: list[Path]) -> TaskSampler:
        """Tasks of the label maps."""
        return TaskSampler(load_anatomies(files, self.options), self.options)

    def trainer(self, device: str) -> SupportTrainer:
        """The network must segment by examples."""
        network = self.network()
        if not isinstance(network, Sam2Sgp):
            raise UsageError(f"training of support sets needs the network sam2-sgp, got '{self.recipe.network.name}'")
        if network.matcher is None and any(stage.learn == "matching" for stage in self.options.stages):
            raise UsageError(
                f"recipe '{self.recipe.name}': training.stages: matching needs a matcher; set network.options.matching"
            )
        return SupportTrainer(network, self.options, device=device)
