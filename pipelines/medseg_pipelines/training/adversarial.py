"""Training of a generator: first its mean absolute error alone, then against a discriminator (DISGAN, section 3)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.disgan import SHARE, Discriminator, Generator
from medseg.networks.disgan_training import FeatureExtractor, discriminator_loss, generator_loss, noise_level
from medseg.weights import load_weights
from medseg_pipelines.training.loop import Diverged, Optimisation, Section, Trainer, learning_rate_at
from medseg_pipelines.training.together import average_buffers, mean_of_all

_MEMORY = 0.95  # of the running mean of the error
_SNAPSHOT = 50  # steps between copies of a good state
_GOOD = 1.2  # times the best running error, up to which a state is worth a copy
_COLLAPSED = 3.0  # times the best running error, from which the generator has lost the image


class Adversarial(Section):
    """The second part of a training: against a discriminator that sees blocks of its own size."""

    steps: int = Field(default=0, ge=0)
    block: int = Field(default=64, ge=64)  # finer voxels along each side
    batch: int = Field(default=2, ge=2)  # the relativistic loss compares within the batch
    learning_rate: float = Field(default=1e-4, gt=0)  # of both networks
    content: float = 1.0
    adversarial: float = 5e-3
    feature: float = 1e-2  # counts only with `feature_weights`
    feature_weights: str | None = None  # of a MedicalNet ResNet-10, safetensors below the data folder
    discriminator: dict[str, Any] = Field(default_factory=dict)  # options of the network

    @model_validator(mode="after")
    def _whole_blocks(self) -> Adversarial:
        if self.block % 64:
            raise ValueError(f"block must be a multiple of 64, as the discriminator needs it, got {self.block}")
        return self


class AdversarialTrainer(Trainer):
    """A generator, and its discriminator as soon as that has steps.

    Args:
        network: Starts from interpolation where it has a shortcut.
        options: Of the optimiser of the first part.
        adversarial: The second part.
        steps: Of the first part.
        device: A torch device.
        features: Weights of the feature extractor, or None to go without.
    """

    network: Generator

    def __init__(
        self,
        network: Generator,
        options: Optimisation,
        adversarial: Adversarial,
        *,
        steps: int,
        device: str = "cpu",
        features: Path | None = None,
    ) -> None:
        if network.shortcut:
            last = network.conv3[2]
            for parameter in last.parameters():
                nn.init.zeros_(parameter)
        super().__init__(network, options, total=steps + adversarial.steps, device=device)
        self.options, self.adversarial, self.alone = options, adversarial, steps
        self.running, self.best = 0.0, float("inf")
        self._good: dict[str, Any] | None = None
        self.features = _extractor(features, device) if features else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.judge = Discriminator(**adversarial.discriminator).to(device) if adversarial.steps else nn.Identity()
        parameters = list(self.judge.parameters()) or [nn.Parameter(torch.zeros(()))]
        self.judge_optimizer = torch.optim.Adam(parameters, lr=adversarial.learning_rate)

    def learning_rate(self) -> float:
        """Of this step; constant against the discriminator, as published."""
        if self.step >= self.alone:
            return self.adversarial.learning_rate
        return learning_rate_at(self.step, self.alone, self.options)

    def loss(self, sample: Any) -> Tensor:
        """Mean absolute error."""
        return F.l1_loss(self._restored(sample), sample.fine.to(self.device))

    def learn(self, sample: Any) -> float:
        """One step; returns the mean absolute error or, against the discriminator, the whole loss.

        Raises:
            Diverged: A loss or gradient is not finite and nothing was changed, or the generator has lost the image and
                its last good state is back.
        """
        if self.step < self.alone:
            error = super().learn(sample)
            self.details = {}
        else:
            error = self._contest(sample)
        return error

    def _restored(self, sample: Any) -> Tensor:
        """The block; what the network gives for the context around it is cut off."""
        with self.autocast():
            branch = self.network.branch(sample.acquired.to(self.device)).float()
        cut = [(wide - kept) // 2 for wide, kept in zip(branch.shape[2:], sample.fine.shape[2:], strict=True)]
        place = tuple(slice(c, wide - c) for c, wide in zip(cut, branch.shape[2:], strict=True))
        branch = branch[(..., *place)]
        return sample.interpolated.to(self.device) + SHARE * branch if self.network.shortcut else branch

    def _contest(self, sample: Any) -> float:
        """One step of both networks: all gradients first, so that a bad number changes nothing."""
        fine = sample.fine.to(self.device)
        noise = self._noise(fine)
        restored = self._restored(sample)
        content = F.l1_loss(restored, fine)
        shared = mean_of_all(content)
        self.require_finite(shared, shared)  # before the discriminator's batch norms remember it
        losses = (self._generator_loss(restored, fine, noise), self._judge_loss(restored.detach(), fine, noise))
        norms = []
        for loss, network, optimizer in zip(
            losses, (self.network, self.judge), (self.optimizer, self.judge_optimizer), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient
            self.share_gradients(network)
            norms.append(nn.utils.clip_grad_norm_(network.parameters(), 1.0))
        self.require_finite(torch.stack(losses), torch.stack(norms))
        self.torn = True
        self.judge_optimizer.step()
        self.update()
        self.torn = False
        average_buffers(self.judge)
        self._watch(shared.item())
        generator, judge = (loss.item() for loss in losses)
        self.details = {"error": round(shared.item(), 5), "discriminator": round(judge, 5)}
        return generator

    def _noise(self, like: Tensor) -> Tensor:
        """What real and generated volumes get before they are judged, drawn from seed and step alone."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        level = noise_level(self.step - self.alone, self.adversarial.steps)
        return level * torch.randn(like.shape, generator=generator).to(like)

    def _generator_loss(self, restored: Tensor, fine: Tensor, noise: Tensor) -> Tensor:
        with self._judging():
            with torch.no_grad():
                real = self.judge(fine + noise).float()
            fake = self.judge(restored + noise).float()
            features = None if self.features is None else (self.features(restored), self.features(fine))
        o = self.adversarial
        return generator_loss(
            restored, fine, fake, real, features, content=o.content, adversarial=o.adversarial, feature=o.feature
        )

    def _judge_loss(self, restored: Tensor, fine: Tensor, noise: Tensor) -> Tensor:
        with self._judging():
            real, fake = self.judge(fine + noise), self.judge(restored + noise)
        return discriminator_loss(real.float(), fake.float())

    def _judging(self) -> torch.autocast:
        """As `autocast`, but not on CPUs: there the gradient of a convolution over 2 x 2 x 2 voxels, as in the deepest
        stages of the discriminator, is garbage in bfloat16 (oneDNN of torch 2.13)."""
        return self.autocast() if torch.device(self.device).type == "cuda" else torch.autocast("cpu", enabled=False)

    def _watch(self, content: float) -> None:
        """Follow the error; keep a copy of good states, and go back to it where the generator collapsed.

        Raises:
            Diverged: It did.
        """
        done = self.step - self.alone
        self.running = content if done == 1 else _MEMORY * self.running + (1 - _MEMORY) * content
        self.best = min(self.best, self.running)
        if self.running > _COLLAPSED * self.best and self._good is not None:
            at, error = self.step, self.running
            self.restore(self._good)
            raise Diverged(
                f"training collapsed at step {at}: error {error:.4g}, best {self.best:.4g}; the state of step "
                f"{self.step} is kept; lower training.adversarial.adversarial or its learning_rate and resume"
            )
        if done % _SNAPSHOT == 1 and self.running <= _GOOD * self.best:
            self._good = copy.deepcopy(self.state())

    def state(self) -> dict[str, Any]:
        """The discriminator, its optimiser and the running error as well."""
        return super().state() | {
            "judge": self.judge.state_dict(),
            "judge_optimizer": self.judge_optimizer.state_dict(),
            "running": self.running,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a `state`."""
        super().restore(state)
        self.judge.load_state_dict(state["judge"])
        self.judge_optimizer.load_state_dict(state["judge_optimizer"])
        self.running, self.best = state["running"], state["best"]


def _extractor(weights: Path, device: str) -> FeatureExtractor:
    network = FeatureExtractor()
    load_weights(network, weights)
    return network.to(device)
