"""Early stopping: cases that training never learns from say when it is good, and when it no longer becomes better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Validation:
    """Scores a network now and then, keeps the best weights, and says when to stop.

    Args:
        score: Judges a network in evaluation; larger is better.
        every: Steps between two scores.
        patience: Scores in a row without a new best one after which to stop.
    """

    def __init__(self, score: Callable[[nn.Module], float], *, every: int, patience: int) -> None:
        self.score, self.every, self.patience = score, every, patience
        self.history: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}

    @property
    def best_score(self) -> float:
        """Of all so far."""
        return max((score for _, score in self.history), default=float("-inf"))

    @property
    def done(self) -> bool:
        """Whether the last `patience` scores brought nothing new."""
        scores = [score for _, score in self.history]
        return len(scores) > self.patience and max(scores[-self.patience :]) <= max(scores[: -self.patience])

    def look(self, network: nn.Module, weights: dict[str, Tensor], step: int) -> float:
        """Score a network with other weights than it has, which it gets back afterwards."""
        own = {name: value.detach().clone() for name, value in network.state_dict().items()}
        network.load_state_dict(weights)
        network.eval()
        try:
            with torch.inference_mode():
                found = self.score(network)
        finally:
            network.load_state_dict(own)
            network.train()
        if found > self.best_score:
            self.best = {name: value.detach().clone() for name, value in weights.items()}
        self.history.append((step, found))
        return found

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"history": [list(entry) for entry in self.history], "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a `state`."""
        self.history, self.best = [(int(step), float(score)) for step, score in state["history"]], state["best"]
