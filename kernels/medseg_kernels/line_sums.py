"""Lines of maps that are weighted sums of a few others of the same map, on a CPU: of a window, or two to lie between.

Rows are what an embedding bag sums: each result is read and written once, where shifted additions or gathers go over
the whole map several times. Columns are narrow matrix products: most of their factors are 0, and still they are twice
as fast as gathers. A compiler fuses additions by itself, and the backward of both is slow: this is for neither.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

_COLUMNS = 32  # per matrix product; more have more zeros among their factors, fewer more calls


class RowSums:
    """Sums of rows, prepared once for many maps of one height.

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


class ColumnSums:
    """Sums of columns that lie close together, prepared once for many maps.

    Args:
        columns: Which columns make up each new one, (W, k), int64; one may be named more than once.
        shares: Weight of each, (W, k), in the dtype of the maps.
    """

    def __init__(self, columns: Tensor, shares: Tensor) -> None:
        self._width, self._products = columns.shape[0], []
        for start, end in pairwise([*range(0, self._width, _COLUMNS), self._width]):
            from_columns = columns[start:end]
            first, last = int(from_columns.min()), int(from_columns.max())
            factors = shares.new_zeros(end - start, last - first + 1)
            factors.scatter_add_(1, from_columns - first, shares[start:end])
            self._products.append((slice(first, last + 1), slice(start, end), factors.t().contiguous()))

    def __call__(self, maps: Tensor) -> Tensor:
        """(..., w) to (..., W)."""
        stacked = maps.reshape(-1, maps.shape[-1])
        sums = stacked.new_empty(stacked.shape[0], self._width)
        for read, written, factors in self._products:
            torch.mm(stacked[:, read], factors, out=sums[:, written])
        return sums.view(*maps.shape[:-1], self._width)
