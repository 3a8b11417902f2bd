"""`guided_filter` on a CPU: a few channels at a time, few enough that their dozen maps stay in cache.

Without gradients the maps lie side by side in memory that all turns share, so that one call sums the windows of all of
them. The formulas stand on top of `guided_filter.py`.

B batch, C channels, h w coarse side, H W fine side, r radius.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.affine_upsample import Enlargement, neighbours
from medseg_kernels.dispatch import wants_gradients
from medseg_kernels.line_sums import ColumnSums, RowSums
from medseg_kernels.memory import empty_large

_CHUNK_PIXELS = 2**16  # coarse pixels, over channels, per turn


def guided_filter_on_cpu(
    low_x: Tensor, low_y: Tensor, high_x: Tensor, a: Tensor, total: Tensor, radius: int, eps: float
) -> Tensor:
    """The filter of maps of one dtype, float32 or float64.

    Args:
        low_x: Coarse guide, (B, C, h, w) or (B, 1, h, w).
        low_y: Coarse map, (B, C, h, w).
        high_x: Fine guide, as many channels as `low_x`, (..., H, W).
        a: Positive weights, (B, 1, h, w).
        total: Their sum per sample, (B, 1, 1, 1).
        radius: Of the windows, in coarse pixels.
        eps: What smooths flat windows.

    Returns:
        (B, C, H, W).
    """
    fit = _Fit(a, total, radius, eps)
    channels = max(1, _CHUNK_PIXELS // low_y[0, 0].numel())
    parts = zip(*(_parts(each, channels, low_y.shape[1]) for each in (low_x, low_y, high_x)), strict=True)
    if torch.compiler.is_compiling() or wants_gradients(low_x, low_y, high_x, a):
        enlarge = Enlargement(low_y.shape[2:], high_x.shape[2:], a)
        lines = ((fit.line(x, y), high) for x, y, high in parts)
        return torch.cat([torch.addcmul(enlarge(offset), enlarge(slope), high) for (slope, offset), high in lines], 1)
    out = empty_large((*low_y.shape[:2], *high_x.shape[2:]), a)
    line_of = _FineFit(fit, min(channels, low_y.shape[1]), high_x.shape[2:])
    for into, (x, y, high) in zip(out.split(channels, 1), parts, strict=True):
        slope, offset = line_of(x, y)
        torch.addcmul(offset, slope, high, out=into)
    return out


class _Fit:
    """A and b of every window under one attention map.

    Args:
        a: Positive weights, (B, 1, h, w).
        total: Their sum per sample.
        radius: Of the windows.
        eps: What smooths flat windows.
    """

    def __init__(self, a: Tensor, total: Tensor, radius: int, eps: float) -> None:
        self.radius, self.margin = radius, [radius] * 4
        count = padded_box_sum(F.pad(torch.ones_like(a[:1]), self.margin), radius)
        self.share, self.floor = 1 / count, eps * count
        self.a, self.q_share = F.pad(a, self.margin), 1 / total
        self.s_a = padded_box_sum(self.a, radius)

    def line(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Means of A and b over the windows, two of (B, c, h, w), for a few channels of x and y."""
        ax, ay = self.a * F.pad(x, self.margin), self.a * F.pad(y, self.margin)
        sums = (padded_box_sum(each, self.radius) for each in (ax, ay, self.a * ax, ax * ax, ax * ay))
        slope, offset = self.of_sums(*sums)
        slope, offset = (padded_box_sum(F.pad(each, self.margin), self.radius) for each in (slope, offset))
        return slope * self.share, offset * self.share

    def of_sums(
        self, s_ax: Tensor, s_ay: Tensor, s_aax: Tensor, s_aaxx: Tensor, s_aaxy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """A and b; numerator and denominator of A are both N times those of the formula."""
        q = s_aax * self.q_share
        spread = torch.addcmul(s_aaxx, q, s_ax, value=-1).abs() + self.floor
        slope = torch.addcmul(s_aaxy, q, s_ay, value=-1) / spread
        return slope, torch.addcmul(s_ay, slope, s_ax, value=-1) / self.s_a


class _FineFit:
    """The same on the fine grid and without gradients, for some channels at a time, in maps kept from turn to turn.

    Args:
        fit: Of the windows.
        channels: The most at a time.
        fine: H and W.
    """

    def __init__(self, fit: _Fit, channels: int, fine: Sequence[int]) -> None:
        self.fit, a = fit, fit.a
        samples, _, height, width = a.shape
        self.products = a.new_zeros(5, samples, channels, height, width)  # the margins stay 0
        self.lines = a.new_zeros(2, samples, channels, height, width)
        self.a = self._inside(a)
        rows, row_shares = _windows(height, fit.radius, a)
        self.window_rows, self.mean_rows = RowSums(rows, height), RowSums(rows, height, row_shares)
        between_rows, shares = neighbours(rows.shape[0], fine[0], a)
        self.fine_rows = RowSums(between_rows, rows.shape[0], shares)
        # Windows of columns and what lies between two of them are one sum.
        columns, column_shares = _windows(width, fit.radius, a)
        between, shares = neighbours(columns.shape[0], fine[1], a)
        column_shares = column_shares[between] * shares[:, :, None]
        self.fine_columns = ColumnSums(columns[between].flatten(1), column_shares.flatten(1))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Means of A and b over the windows, enlarged, (2, B, c, H, W)."""
        lines, products = (each[:, :, : y.shape[1]] for each in (self.lines, self.products))
        for product, given in zip(self._inside(products), (x, y), strict=False):
            torch.mul(self.a, given, out=product)
        torch.mul(self.fit.a, products[0], out=products[2])
        torch.mul(products[0], products[:2], out=products[3:])
        sums = _run_sum(self.window_rows(products), 2 * self.fit.radius + 1, -1)
        for kept, found in zip(self._inside(lines), self.fit.of_sums(*sums), strict=True):
            kept.copy_(found)
        return self.fine_rows(self.fine_columns(self.mean_rows(lines)))

    def _inside(self, padded: Tensor) -> Tensor:
        rows, columns = (slice(self.fit.radius, side - self.fit.radius) for side in padded.shape[-2:])
        return padded[..., rows, columns]


def _windows(padded: int, radius: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Padded lines of each window along one axis, (size, 2 radius + 1), and the share of each in its mean."""
    lines = torch.arange(padded - 2 * radius)[:, None] + torch.arange(2 * radius + 1)
    inside = (lines >= radius) & (lines < padded - radius)
    return lines, (1 / inside.sum(1, keepdim=True)).to(like.dtype).expand(lines.shape)


def padded_box_sum(padded: Tensor, radius: int) -> Tensor:
    """Window sums of maps that carry `radius` zeros on every side; shifted adds, far faster here than a pooling."""
    if wants_gradients(padded) and not torch.compiler.is_compiling():
        return _BoxSum.apply(padded, radius)
    return _run_sum(_run_sum(padded, 2 * radius + 1, -2), 2 * radius + 1, -1)


class _BoxSum(torch.autograd.Function):
    """`padded_box_sum` with its adjoint, window sums again; autograd would write a map of zeros per shifted add."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, radius: int) -> Tensor:
        ctx.radius = radius
        return padded_box_sum(padded, radius)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return padded_box_sum(F.pad(grads[0], [2 * ctx.radius] * 4), ctx.radius), None


def _run_sum(x: Tensor, length: int, axis: int) -> Tensor:
    """Sums of `length` neighbours along an axis, from sums of half as many: three additions for five numbers."""
    if length == 1:
        return x
    half, count = length // 2, x.shape[axis] - length + 1
    pairs = _run_sum(x, half, axis)
    total = pairs.narrow(axis, 0, count) + pairs.narrow(axis, half, count)
    return total.add_(x.narrow(axis, length - 1, count)) if length % 2 else total


def _parts(x: Tensor, channels: int, whole: int) -> tuple[Tensor, ...]:
    """Some channels at a time; a single one goes with all. One split, since each slice would have a gradient like x."""
    return x.split(channels, dim=1) if x.shape[1] > 1 else (x,) * math.ceil(whole / channels)
