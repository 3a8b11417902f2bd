"""The loop that every training shares: steps that can stop at any time and go on exactly where they were."""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from medseg.errors import MedsegError, UsageError
from medseg_pipelines.training.together import any_of_all, average_gradients, rank_and_size
from medseg_pipelines.training.validation import Validation

_KEEP_EVERY = 300  # seconds between checkpoints

Progress = Callable[[int, int, float], None]


class Diverged(MedsegError):
    """The loss or its gradient is no longer a number; the last good state is kept."""


class Section(BaseModel):
    """A part of the `training` section of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Optimisation(Section):
    """What every kind of training says of its steps."""

    learning_rate: float = Field(gt=0)
    warmup: int = 100  # steps
    decay: float = Field(default=0.3, ge=0, le=1)  # share of the steps over which the rate falls to zero
    weight_decay: float = 1e-5
    average: float = Field(default=0.998, ge=0, lt=1)  # of the exponential moving average of the weights
    seed: int = 0


def learning_rate_at(step: int, total: int, options: Optimisation) -> float:
    """Rises linearly, stays, and falls linearly to zero over the last part of the run."""
    falling = max(1, round(total * options.decay))
    return options.learning_rate * min(1.0, (step + 1) / max(1, options.warmup), (total - step) / falling)


class Trainer(ABC):
    """A network, its optimiser and the average of its weights, at one step of a run.

    Args:
        network: Starts from the weights it has; moved to the device.
        options: Of the optimiser.
        total: Steps of the whole run.
        device: A torch device.
    """

    def __init__(self, network: nn.Module, options: Optimisation, *, total: int, device: str = "cpu") -> None:
        self.network, self.total, self.device = network.to(device), total, device
        self._optimisation = options
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        self.step = 0
        self.details: dict[str, float] = {}  # of the last step, for the log beside its loss
        self.validation: Validation | None = None  # where cases are held back to stop early
        self.torn = False  # an interrupt fell into the update: weights, moments and average are not of one step

    @abstractmethod
    def loss(self, sample: Any) -> Tensor:
        """The scalar to be minimised, of the image that belongs to this step."""

    def learning_rate(self) -> float:
        """Of this step."""
        return learning_rate_at(self.step, self.total, self._optimisation)

    def learn(self, sample: Any) -> float:
        """One step; returns its loss.

        Raises:
            Diverged: The loss or its gradient is not finite; nothing was changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(sample)
        loss.backward()
        self.share_gradients(self.network)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.require_finite(loss, norm)
        self.torn = True
        self.update()
        self.torn = False
        return loss.item()

    def share_gradients(self, network: nn.Module) -> None:
        """Give every process of a `torchrun` the mean of all gradients, so that their weights stay equal."""
        average_gradients(network.parameters())

    def require_finite(self, loss: Tensor, norm: Tensor) -> None:
        """Stop before an update with a bad number.

        Raises:
            Diverged: A loss or the norm of a gradient is not finite.
        """
        if not bool(torch.isfinite(loss).all() & torch.isfinite(norm).all()):
            told = ", ".join(f"{value:.4g}" for value in loss.flatten().tolist())
            raise Diverged(
                f"training diverged at step {self.step}: loss {told}, gradient {norm.max().item():.4g}; "
                "lower learning_rate and resume"
            )

    def update(self) -> None:
        """Take the step of the optimiser, and the average along."""
        self.optimizer.step()
        self.step += 1
        age = self.age()
        keep = min(self._optimisation.average, age / (age + 10))  # forget the random start quickly
        for name, value in self.network.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:  # a norm counts its batches
                self.average[name].copy_(value)

    def age(self) -> int:
        """Steps since what is learned now began."""
        return self.step

    def autocast(self) -> torch.autocast:
        """bfloat16 for the products of the network, where that saves time."""
        return torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=fast_bfloat16(self.device))

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on; images and noise are drawn from the seed and the step."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            **({} if self.validation is None else {"validation": self.validation.state()}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a `state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]
        if self.validation is not None:
            self.validation.restore(state["validation"])

    def validate(self) -> bool:
        """Judge the averaged weights when it is time to; whether to stop."""
        if self.validation is None or self.step % self.validation.every:
            return False
        self.details["validation"] = round(self.validation.look(self.network, self.average, self.step), 4)
        return self.validation.done

    def result(self) -> dict[str, Tensor]:
        """The weights that the run is for: the best that were judged, or else the averaged ones."""
        return self.validation.best if self.validation is not None and self.validation.best else self.average

    def save(self, path: Path) -> None:
        """Write the whole state under a temporary name and put it in place at once."""
        partial = path.with_suffix(".partial")
        torch.save(self.state(), partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Go on from `save`.

        Raises:
            UsageError: The file is damaged or belongs to another network.
        """
        try:
            self.restore(torch.load(path, map_location=self.device, weights_only=True))
        except (RuntimeError, OSError, EOFError, KeyError, ValueError, UnpicklingError):
            raise UsageError(
                f"'{path.name}' is damaged or of another network; resume with the recipe of the run, or start anew"
            ) from None


def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 saves time here; a CPU without the instructions emulates it up to 60 times slower."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def run_steps(
    trainer: Trainer,
    images: Dataset[Any],
    state: Path,
    log: Path,
    *,
    workers: int,
    seconds: float | None,
    progress: Progress | None,
) -> None:
    """Step to the end, until time is up or validation has had enough; image number n belongs to step n.

    Of several processes of one `torchrun` the first writes, and all stop together.

    Args:
        trainer: At the step to go on from.
        images: As many as the run has steps.
        state: File of the checkpoints.
        log: One JSON line is added per step.
        workers: Processes that draw images.
        seconds: Stop after this long, or None.
        progress: Called after each step with step, all steps and the loss; may raise to stop.
    """
    started = saved = time.monotonic()
    first = rank_and_size()[0] == 0
    into = log if first else Path(os.devnull)
    with into.open("a", buffering=1, encoding="utf-8") as lines:  # line by line, to be followed and to survive a kill
        try:
            for sample in _loader(images, trainer, workers):
                loss = trainer.learn(sample)
                enough = trainer.validate()
                now = time.monotonic()
                entry = {
                    "step": trainer.step,
                    "loss": round(loss, 5),
                    "seconds": round(now - started, 1),
                    **trainer.details,
                }
                lines.write(json.dumps(entry) + "\n")
                trainer.details.pop("validation", None)
                if progress:
                    progress(trainer.step, trainer.total, loss)
                if first and now - saved > _KEEP_EVERY:
                    trainer.save(state)
                    saved = now
                late = seconds is not None and now - started > seconds
                if any_of_all(enough or late, trainer.device):
                    break
        finally:  # a cancelled or diverged run keeps its last good step too
            if first and not trainer.torn:
                trainer.save(state)


def _loader(images: Dataset[Any], trainer: Trainer, workers: int) -> Iterator[Any]:
    return iter(
        DataLoader(
            images,
            batch_size=None,
            sampler=range(trainer.step, trainer.total),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="spawn" if workers else None,
        )
    )
