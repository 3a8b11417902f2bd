"""Rows of maps that are weighted sums of a few rows of the same map, on a CPU: a window's rows, or two to lie between.

That is what an embedding bag computes: each result is read and written once, where shifted additions or gathers go over
the whole map several times. Its backward is slow, and a compiler fuses additions by itself: this is for neither.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


class RowSums:
    """The sums, prepared once for many maps of one height.

    Args:
        rows: Which rows make up each new one, (H, k), int64, from 0 to `height` - 1.
        height: Rows of a map, h.
        shares: Weight of each, (H, k), in the dtype of the maps; None for plain sums.
    """

    def __init__(self, rows: Tensor, height: int, shares: Tensor | None = None) -> None:
        self._rows, self._height, self._shares = rows, height, shares
        self._all_rows, self._all_shares = rows, shares  # of as many maps as were ever asked for, one below the other

    def __call__(self, maps: Tensor) -> Tensor:
        """(..., h, w) to (..., H, w)."""
        count = maps.shape[:-2].numel()
        wanted = count * self._rows.shape[0]
        if self._all_rows.shape[0] < wanted:
            first = self._height * torch.arange(count)[:, None, None]
            self._all_rows = (self._rows + first).flatten(0, 1)
            self._all_shares = None if self._shares is None else self._shares.repeat(count, 1)
        shares = None if self._all_shares is None else self._all_shares[:wanted]
        stacked = maps.reshape(-1, maps.shape[-1])
        sums = F.embedding_bag(self._all_rows[:wanted], stacked, per_sample_weights=shares, mode="sum")
        return sums.view(*maps.shape[:-2], -1, maps.shape[-1])
