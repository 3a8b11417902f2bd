"""Lines of maps that are weighted sums of a few others of the same map, on a CPU: of a window, or two to lie between.

Rows are what an embedding bag sums: each result is read and written once, where shifted additions or gathers go over
the whole map several times. Columns are narrow matrix products: most of their factors are 0, and still they are twice
as fast as gathers; all columns of a plain window are faster yet as shifted additions (`run_sum`). Neither is made for
automatic differentiation: gradients go back through the sums that `adjoint` gives.
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
        rows: Which rows make up each new one, (H, k), int64, from 0 to `height` - 1; one may be named more than once.
        shares: Weight of each, (H, k), at least 0, in the dtype of the maps.
        height: Rows of a map, h.
    """

    def __init__(self, rows: Tensor, shares: Tensor, height: int) -> None:
        self._rows, self._shares, self._height = rows, shares, height
        self._all_rows, self._all_shares = rows, shares  # of as many maps as were ever asked for, one below the other

    def __call__(self, maps: Tensor) -> Tensor:
        """(..., h, w) to (..., H, w)."""
        count = maps.shape[:-2].numel()
        wanted = count * self._rows.shape[0]
        if self._all_rows.shape[0] < wanted:
            first = self._height * torch.arange(count)[:, None, None]
            self._all_rows, self._all_shares = (self._rows + first).flatten(0, 1), self._shares.repeat(count, 1)
        rows, shares = self._all_rows[:wanted], self._all_shares[:wanted]
        sums = F.embedding_bag(rows, maps.reshape(-1, maps.shape[-1]), per_sample_weights=shares, mode="sum")
        return sums.view(*maps.shape[:-2], -1, maps.shape[-1])

    def adjoint(self) -> RowSums:
        """The way back of gradients, (..., H, w) to (..., h, w)."""
        return RowSums(*_transposed(self._rows, self._shares, self._height), self._rows.shape[0])


class ColumnSums:
    """Sums of columns that lie close together, prepared once for many maps of one width.

    Args:
        columns: Which columns make up each new one, (W, k), int64; one may be named more than once.
        shares: Weight of each, (W, k), at least 0, in the dtype of the maps.
        width: Columns of a map, w.
    """

    def __init__(self, columns: Tensor, shares: Tensor, width: int) -> None:
        self._table, self._width, self._products = (columns, shares, width), columns.shape[0], []
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

    def adjoint(self) -> ColumnSums:
        """The way back of gradients, (..., W) to (..., w)."""
        return ColumnSums(*_transposed(*self._table), self._width)


def run_sum(x: Tensor, length: int, axis: int) -> Tensor:
    """Sums of `length` neighbours along an axis, from sums of half as many: three additions for five numbers."""
    if length == 1:
        return x
    half, count = length // 2, x.shape[axis] - length + 1
    pairs = run_sum(x, half, axis)
    total = pairs.narrow(axis, 0, count) + pairs.narrow(axis, half, count)
    return total.add_(x.narrow(axis, length - 1, count)) if length % 2 else total


def _transposed(lines: Tensor, shares: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """New lines that each of `count` old ones is part of, and its share in them; as many for all, some of share 0."""
    old = shares.new_zeros(lines.shape[0], count).scatter_add_(1, lines, shares).t()
    shares, new = old.topk(int((old > 0).sum(1).max()), 1)
    return torch.where(shares > 0, new, new[:, :1]), shares
