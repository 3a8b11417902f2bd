"""Training of a model from its recipe: steps that can stop at any time and go on exactly where they were."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medseg.errors import InputRefused, MedsegError, UsageError
from medseg.geometry import to_ras, to_spacing
from medseg.io import read
from medseg.losses import dice_and_cross_entropy, side_entropy
from medseg.networks import build_network
from medseg.networks.wau import WAUNet
from medseg.synthesis import IGNORE, Sample, Subject, SynthesisOptions, Tissue, prepare_subject, synthesise
from medseg.weights import save_weights
from medseg_pipelines.recipe import Recipe, load_recipe

_KEEP_EVERY = 300  # seconds between checkpoints


class Diverged(MedsegError):
    """The loss or its gradient is no longer a number; the last good state is kept."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TissueOptions(_Section):
    """One intensity group: label ids of the left (or only) side and of the right side."""

    ids: list[int] = []
    right: list[int] = []
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


class Stage(_Section):
    """A run of steps with one crop, in voxels."""

    steps: int = Field(ge=1)
    crop: tuple[int, int, int]


class TrainingOptions(_Section):
    """The `training` section of a recipe that learns from synthetic images of label maps."""

    kind: Literal["synthetic-segmentation"]
    labels: str  # pattern of the label maps below the data folder
    held_out: list[str] = []  # file names that training never sees
    tissues: dict[str, TissueOptions]  # the first takes every id that no other names
    synthesis: dict[str, Any] = {}
    stages: list[Stage] = Field(min_length=1)
    learning_rate: float = Field(gt=0)
    warmup: int = 100  # steps
    decay: float = Field(default=0.3, ge=0, le=1)  # share of the steps over which the rate falls to zero
    weight_decay: float = 1e-5
    average: float = Field(default=0.998, ge=0, lt=1)  # of the exponential moving average of the weights
    side_weight: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class TrainingReport:
    """What a training run left behind."""

    steps: int
    loss: float  # mean of the last hundred steps
    weights: Path


def training_options(model: str | Path) -> TrainingOptions:
    """The checked training section of a recipe.

    Raises:
        UsageError: The recipe has none, or a field is wrong.
    """
    recipe = load_recipe(model)
    if not recipe.training:
        raise UsageError(f"model '{recipe.name}' has no training section in its recipe")
    try:
        options = TrainingOptions.model_validate(recipe.training)
        SynthesisOptions(**options.synthesis, crop=options.stages[0].crop)
    except ValidationError as error:
        fault = error.errors()[0]
        at = ".".join(str(part) for part in ("training", *fault["loc"]))
        raise UsageError(f"recipe '{recipe.name}': {at}: {fault['msg']}") from None
    except TypeError as error:  # an unknown key, or the crop, which the stages give
        raise UsageError(f"recipe '{recipe.name}': training.synthesis: {error}") from None
    return options


class SyntheticImages(Dataset[Sample]):
    """Image number n of a training: drawn from the seed and n alone, so that a resumed run sees what it would have.

    Args:
        subjects: Prepared label maps.
        options: The training section.
    """

    def __init__(self, subjects: list[Subject], options: TrainingOptions) -> None:
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


def load_subjects(paths: list[Path], options: TrainingOptions) -> list[Subject]:
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


def learning_rate_at(step: int, total: int, options: TrainingOptions) -> float:
    """Rises linearly, stays, and falls linearly to zero over the last part of the run."""
    falling = max(1, round(total * options.decay))
    return options.learning_rate * min(1.0, (step + 1) / max(1, options.warmup), (total - step) / falling)


class Trainer:
    """A network, its optimiser and the average of its weights, at one step of a run.

    Args:
        network: Starts from the weights it has; moved to the device.
        options: The training section.
        sided: Whether the last output of the network is the side.
        device: A torch device.
    """

    def __init__(self, network: WAUNet, options: TrainingOptions, *, sided: bool, device: str = "cpu") -> None:
        self.network, self.options, self.sided, self.device = network.to(device), options, sided, device
        self.total = sum(stage.steps for stage in options.stages)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.step = 0
        self.torn = False  # an interrupt fell into the update: weights, moments and average are not of one step

    def learn(self, sample: Sample) -> float:
        """One step; returns its loss.

        Raises:
            Diverged: The loss or its gradient is not finite; nothing was changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.total, self.options)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(sample)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            raise Diverged(
                f"training diverged at step {self.step}: loss {loss.item():.4g}, gradient {norm.item():.4g}; "
                "lower learning_rate and resume"
            )
        self.torn = True
        self.optimizer.step()
        self.step += 1
        keep = min(self.options.average, self.step / (self.step + 10))  # forget the random start quickly
        for name, value in self.network.state_dict().items():
            self.average[name].lerp_(value, 1 - keep)
        self.torn = False
        return loss.item()

    def _loss(self, sample: Sample) -> Tensor:
        """Dice, cross entropy and side on two of the voxel phases of each cell, which ones drawn anew every step."""
        stem = self.network.head.stride[0]
        phases = list(product(range(stem), repeat=3))
        generator = torch.Generator().manual_seed(self.options.seed + self.step)
        chosen = torch.randperm(len(phases), generator=generator)[:2].tolist()
        image, target, side = (x.to(self.device) for x in (sample.image, sample.target, sample.side))
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=fast_bfloat16(self.device)):
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

    def save(self, path: Path) -> None:
        """Write the whole state under a temporary name and put it in place at once."""
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from `save`.

        Raises:
            UsageError: The file is damaged or belongs to another network.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step = state["average"], state["step"]
        except (RuntimeError, OSError, EOFError, KeyError, UnpicklingError):
            raise UsageError(
                f"'{path.name}' is damaged or of another network; resume with the recipe of the run, or start anew"
            ) from None


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 saves time here; a CPU without the instructions emulates it up to 60 times slower."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def train(
    model: str | Path,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 1,
    seconds: float | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> TrainingReport:
    """Train a model from its recipe.

    Args:
        model: Name of a model, or a folder that holds a recipe.
        data: Folder that the recipe's pattern of label maps starts from.
        out: Folder of the run: `state.pt`, `log.jsonl`, `weights.safetensors`.
        resume: Go on from `state.pt` of `out`.
        device: "cpu", "cuda" or "cuda:N".
        workers: Processes that draw images.
        seconds: Stop after this long with everything saved; `resume` goes on.
        progress: Called after each step with step, all steps and the loss.

    Raises:
        UsageError: No label maps, or `out` holds a run and `resume` is off, or nothing to resume, or the recipe names
            a network that this loop cannot train.
        InputRefused: A label map cannot be used.
        Diverged: The loss is no longer finite.
    """
    options = training_options(model)
    paths = [p for p in sorted(data.glob(options.labels)) if p.name not in options.held_out]
    if not paths:
        raise UsageError(f"data folder '{data}' must hold label maps like {options.labels}, found none; see --data")
    state, log = out / "state.pt", out / "log.jsonl"
    if state.exists() != resume:
        problem = "holds no run to resume" if resume else "holds a run already; use --resume or another folder"
        raise UsageError(f"output folder '{out}' {problem}")
    recipe = load_recipe(model)
    trainer = _trainer(recipe, options, device)
    if resume:
        trainer.load(state)
    images = SyntheticImages(load_subjects(paths, options), options)
    out.mkdir(parents=True, exist_ok=True)
    _run(trainer, images, state, log, workers=workers, seconds=seconds, progress=progress)
    weights = save_weights(trainer.average, out / "weights.safetensors", half=recipe.weights.dtype == "float16")
    losses = [json.loads(line)["loss"] for line in log.read_text(encoding="utf-8").splitlines()[-100:]]
    return TrainingReport(trainer.step, sum(losses) / max(1, len(losses)), weights)


def _trainer(recipe: Recipe, options: TrainingOptions, device: str) -> Trainer:
    """A run at its first step, with weights drawn from the seed of the recipe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = build_network(recipe.network.name, **recipe.network.options)
    if not isinstance(network, WAUNet):
        raise UsageError(f"training '{options.kind}' needs the network wau, got '{recipe.network.name}'")
    if network.head.out_channels != recipe.decode.outputs:
        raise UsageError(
            f"network.options.out_channels must be {recipe.decode.outputs}, one per class of decode.table"
            f"{' and the side' * recipe.decode.sided}, got {network.head.out_channels}"
        )
    for stage in options.stages:
        if any(side % network.multiple for side in stage.crop):
            raise UsageError(f"training.stages: crops must be multiples of {network.multiple}, got {stage.crop}")
    return Trainer(network, options, sided=recipe.decode.sided, device=device)


def _run(
    trainer: Trainer,
    images: SyntheticImages,
    state: Path,
    log: Path,
    *,
    workers: int,
    seconds: float | None,
    progress: Callable[[int, int, float], None] | None,
) -> None:
    """Step to the end or until time is up."""
    started = saved = time.monotonic()
    with log.open("a", buffering=1, encoding="utf-8") as lines:  # line by line, to be followed and to survive a kill
        try:
            for sample in _loader(images, trainer.step, workers):
                loss = trainer.learn(sample)
                now = time.monotonic()
                entry = {"step": trainer.step, "loss": round(loss, 5), "seconds": round(now - started, 1)}
                lines.write(json.dumps(entry) + "\n")
                if progress:
                    progress(trainer.step, trainer.total, loss)
                if now - saved > _KEEP_EVERY:
                    trainer.save(state)
                    saved = now
                if seconds is not None and now - started > seconds:
                    break
        finally:  # a cancelled or diverged run keeps its last good step too
            if not trainer.torn:
                trainer.save(state)


def _loader(images: SyntheticImages, start: int, workers: int) -> Iterator[Sample]:
    return iter(
        DataLoader(
            images,
            batch_size=None,
            sampler=range(start, len(images)),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="spawn" if workers else None,
        )
    )
