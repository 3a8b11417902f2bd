"""A network as one TorchScript file that stock MONAI transforms can serve: one score per label of the label map."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TOLERANCE = 1e-3  # of the largest score: recorded and plain paths sum in another order


class LabelScores(nn.Module):
    """Scores per label: the argmax over channels is what our own decoding of class and side gives.

    Channel i belongs to the i-th smallest label id. A label of one side gives way by as much as the side score speaks
    for the other one, so the best label of the right side keeps the score of its class.

    Args:
        network: (B, 1, *grid) to (B, K, *grid), classes and then the side if the table has any.
        table: Label ids per class on the right and on the left of the patient.
    """

    def __init__(self, network: nn.Module, table: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.network, self.classes = network, len(table)
        entries: dict[int, list[tuple[int, int]]] = {}
        for number, (right, left) in enumerate(table):
            sides = [(right, 0)] if right == left else [(right, -1), (left, 1)]
            for label, side in sides:
                entries.setdefault(label, []).append((number, side))
        self.entries = [entries[label] for label in sorted(entries)]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, *grid) to (B, labels, *grid)."""
        scores = self.network(image)
        side = scores[:, self.classes : self.classes + 1]
        columns = []
        for entries in self.entries:
            each = [
                scores[:, at : at + 1] - F.relu(-sign * side) if sign else scores[:, at : at + 1]
                for at, sign in entries
            ]
            columns.append(reduce(torch.maximum, each))
        return torch.cat(columns, dim=1)


class WithBackground(nn.Module):
    """A threshold in front of probabilities: the argmax over channels is 0 where none of them is above it.

    Args:
        network: (B, 1, *grid) to probabilities of labels, (B, K, *grid).
        threshold: What the background gets everywhere.
    """

    def __init__(self, network: nn.Module, threshold: float) -> None:
        super().__init__()
        self.network, self.threshold = network, threshold

    def forward(self, image: Tensor) -> Tensor:
        """(B, 1, *grid) to (B, K + 1, *grid)."""
        found = self.network(image)
        return torch.cat((torch.full_like(found[:, :1], self.threshold), found), dim=1)


def recorded(network: nn.Module, sample: Tensor) -> nn.Module:
    """A network recorded on one input; it takes no other size."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # every shape that becomes a constant: the size is one
        return cast(nn.Module, torch.jit.trace(network, sample, check_trace=False))


def close(found: Tensor, wanted: Tensor) -> bool:
    """Whether two outputs of a network agree but for the order of sums."""
    if found.shape != wanted.shape:
        return False
    return float((found - wanted).abs().max()) <= _TOLERANCE * float(wanted.abs().max())
