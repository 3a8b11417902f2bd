"""`guided_filter` on a CPU: a few channels at a time, few enough that their dozen maps stay in cache.

Forward and backward are registered ops: autograd would keep those dozen maps of every channel, and what a compiler
makes of the formulas is slower and larger. The backward starts from the inputs again. The formulas stand on top of
`guided_filter.py`; in the code g_z is the gradient of z, s_z the window sum of z.

B batch, C channels, c of them at a time, h w coarse side, H W fine side, r radius.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.affine_upsample import neighbours
from medseg_kernels.dispatch import outside_autocast
from medseg_kernels.line_sums import ColumnSums, RowSums, run_sum
from medseg_kernels.memory import empty_large

_CHUNK_PIXELS = 2**16  # coarse pixels, over samples and channels, per turn


@torch.library.custom_op("medseg::guided_filter_on_cpu", mutates_args=(), device_types="cpu")
def guided_filter_on_cpu(
    low_x: Tensor, low_y: Tensor, high_x: Tensor, a: Tensor, total: Tensor, radius: int, eps: float
) -> Tensor:
    """The filter of maps of one dtype, float32 or float64.

    Args:
        low_x: Coarse guide, (B, C, h, w).
        low_y: Coarse map, (B, C, h, w).
        high_x: Fine guide, (B, C, H, W).
        a: Positive weights, (B, 1, h, w).
        total: Their sum per sample, (B, 1, 1, 1).
        radius: Of the windows, in coarse pixels.
        eps: What smooths flat windows.

    Returns:
        (B, C, H, W).
    """
    out = empty_large(high_x.shape, a)
    with outside_autocast(a.device):
        fit = _Fit(a, total, radius, eps, high_x.shape)
        for into, x, y, high in fit.turns(out, low_x, low_y, high_x):
            line = fit.line(fit.sums(x, y))
            slope, offset = fit.enlarge(torch.stack((line.slope, line.offset)))
            torch.addcmul(offset, slope, high, out=into)
    return out


@torch.library.custom_op("medseg::guided_filter_on_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor,
    low_x: Tensor,
    low_y: Tensor,
    high_x: Tensor,
    a: Tensor,
    total: Tensor,
    radius: int,
    eps: float,
    wanted: list[bool],
) -> list[Tensor]:
    """Gradients of those of the five tensors that are wanted."""
    given = (low_x, low_y, high_x, a, total)
    found = [empty_large(x.shape, x) if needed else None for x, needed in zip(given, wanted, strict=True)]
    with outside_autocast(a.device):
        fit = _FitBackward(a, total, radius, eps, high_x.shape)
        for g, x, y, high, g_x, g_y, g_high in fit.turns(grad, *given[:3], *found[:3]):
            sums = fit.sums(x, y)
            line = fit.line(sums)
            if g_high is not None:
                torch.mul(fit.enlarge(line.slope), g, out=g_high)
            if any(wanted[:2] + wanted[3:]):
                fit.to_inputs(x, y, fit.to_sums(fit.to_line(g, high), sums, line), g_x, g_y)
        for into, value in zip(found[3:], fit.to_attention(), strict=True):
            if into is not None:
                into.copy_(value)
    return [x for x in found if x is not None]


@guided_filter_on_cpu.register_fake
def _like(low_x: Tensor, low_y: Tensor, high_x: Tensor, a: Tensor, total: Tensor, radius: int, eps: float) -> Tensor:
    return high_x.new_empty(high_x.shape)


@_backward.register_fake
def _backward_like(grad: Tensor, *arguments: Any) -> list[Tensor]:
    *given, _, _, wanted = arguments
    return [x.new_empty(x.shape) for x, needed in zip(given, wanted, strict=True) if needed]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *given, ctx.radius, ctx.eps = inputs
    ctx.save_for_backward(*given)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:5])
    found = iter(_backward(grad, *ctx.saved_tensors, ctx.radius, ctx.eps, wanted))
    return *(next(found) if needed else None for needed in wanted), None, None


guided_filter_on_cpu.register_autograd(_differentiate, setup_context=_save)


class _Line(NamedTuple):
    """A and b of every window, (B, c, h, w) each, and what they are made of, numerators and denominators N-fold."""

    slope: Tensor
    offset: Tensor
    q: Tensor
    variance: Tensor  # M(a^2 x^2) - q M(a x)
    spread: Tensor  # its magnitude + eps


class _Fit:
    """The steps of the filter under one attention map, for some channels at a time.

    Args:
        a: Positive weights, (B, 1, h, w).
        total: Their sum per sample.
        radius: Of the windows.
        eps: What smooths flat windows.
        fine: B, C, H and W.
    """

    def __init__(self, a: Tensor, total: Tensor, radius: int, eps: float, fine: Sequence[int]) -> None:
        height, width = a.shape[2:]
        self.radius, self.a, self.share_q = radius, a, 1 / total
        self.padded_a = F.pad(a, [radius] * 4)
        self.channels = min(max(1, _CHUNK_PIXELS // a.numel()), fine[1])
        self.products = self.padded_maps()
        rows = torch.arange(height)[:, None] + torch.arange(2 * radius + 1)
        self.window_rows = RowSums(rows, torch.ones_like(rows, dtype=a.dtype), height + 2 * radius)
        self.floor, self.s_a = eps * self.window_sum(torch.ones_like(a[:1])), self.window_sum_padded(self.padded_a)
        self.mean_rows = RowSums(*_windows(height, radius, a), height)
        self.fine_rows = RowSums(*neighbours(height, fine[2], a), height)
        # Means of columns and what lies between two of them are one sum.
        mean_columns, column_shares = _windows(width, radius, a)
        between, shares = neighbours(width, fine[3], a)
        column_shares = column_shares[between] * shares[:, :, None]
        self.fine_columns = ColumnSums(mean_columns[between].flatten(1), column_shares.flatten(1), width)

    def turns(self, *maps: Tensor | None) -> Iterator[tuple[Any, ...]]:
        """Some channels of each at a time; None stays None."""
        return zip(*(repeat(None) if each is None else each.split(self.channels, 1) for each in maps), strict=False)

    def padded_maps(self) -> Tensor:
        """Five times some channels in margins of 0, (5, B, c, h + 2 r, w + 2 r), to be kept from turn to turn."""
        samples, _, height, width = self.a.shape
        return self.a.new_zeros(5, samples, self.channels, height + 2 * self.radius, width + 2 * self.radius)

    def inside(self, padded: Tensor) -> Tensor:
        """What the margins surround."""
        rows, columns = (slice(self.radius, side - self.radius) for side in padded.shape[-2:])
        return padded[..., rows, columns]

    def window_sum(self, x: Tensor) -> Tensor:
        """(..., h, w) summed over the windows."""
        return self.window_sum_padded(F.pad(x, [self.radius] * 4))

    def window_sum_padded(self, padded: Tensor) -> Tensor:
        """The same of maps within margins."""
        return run_sum(self.window_rows(padded), 2 * self.radius + 1, -1)

    def sums(self, x: Tensor, y: Tensor) -> Tensor:
        """Window sums of ax, ay, a^2 x, a^2 x^2 and a^2 x y, (5, B, c, h, w)."""
        products = self.products[:, :, : y.shape[1]]
        for product, given in zip(self.inside(products), (x, y), strict=False):
            torch.mul(self.a, given, out=product)
        torch.mul(self.padded_a, products[0], out=products[2])
        torch.mul(products[0], products[:2], out=products[3:])
        return self.window_sum_padded(products)

    def line(self, sums: Tensor) -> _Line:
        """A and b of every window."""
        s_ax, s_ay, s_aax, s_aaxx, s_aaxy = sums
        q = s_aax * self.share_q
        variance = torch.addcmul(s_aaxx, q, s_ax, value=-1)
        spread = variance.abs().add_(self.floor)
        slope = torch.addcmul(s_aaxy, q, s_ay, value=-1).div_(spread)
        offset = torch.addcmul(s_ay, slope, s_ax, value=-1).div_(self.s_a)
        return _Line(slope, offset, q, variance, spread)

    def enlarge(self, maps: Tensor) -> Tensor:
        """Means over the windows, enlarged: (..., h, w) to (..., H, W)."""
        return self.fine_rows(self.fine_columns(self.mean_rows(maps)))


class _FitBackward(_Fit):
    """The same steps backwards; what the attention receives is summed up over the turns. Arguments as of `_Fit`."""

    def __init__(self, a: Tensor, total: Tensor, radius: int, eps: float, fine: Sequence[int]) -> None:
        super().__init__(a, total, radius, eps, fine)
        self.grads = self.padded_maps()
        self.from_means, self.from_fine_rows = self.mean_rows.adjoint(), self.fine_rows.adjoint()
        self.from_fine_columns = self.fine_columns.adjoint()
        self.g_a, self.g_s_a, self.g_total = torch.zeros_like(a), torch.zeros_like(a), torch.zeros_like(total)

    def to_line(self, grad: Tensor, high: Tensor) -> Tensor:
        """Gradients of A and b, (2, B, c, h, w)."""
        rows = torch.stack([self.from_fine_rows(each) for each in (grad * high, grad)])
        return self.from_means(self.from_fine_columns(rows))

    def to_sums(self, g_line: Tensor, sums: Tensor, line: _Line) -> Tensor:
        """Gradients of what `sums` added up, (5, B, c, h, w): those of the sums, added up over the same windows."""
        s_ax, s_ay, s_aax, *_ = sums
        slope, offset, q, variance, spread = line
        padded = self.grads[:, :, : slope.shape[1]]
        g_ax, g_ay, g_aax, g_aaxx, g_aaxy = self.inside(padded)
        g_offset = g_line[1].div_(self.s_a)
        torch.addcmul(g_line[0], g_offset, s_ax, value=-1, out=g_aaxy).div_(spread)
        torch.mul(g_aaxy, slope, out=g_aaxx).mul_(variance.sign()).neg_()
        g_q = (g_aaxy * s_ay).addcmul_(g_aaxx, s_ax).neg_()
        torch.mul(g_q, self.share_q, out=g_aax)
        torch.addcmul(g_offset, g_aaxy, q, value=-1, out=g_ay)
        torch.mul(g_offset, slope, out=g_ax).addcmul_(g_aaxx, q).neg_()
        self.g_s_a -= (g_offset * offset).sum(1, keepdim=True)
        self.g_total -= (g_q * s_aax).sum([1, 2, 3], keepdim=True) * self.share_q**2
        return self.window_sum_padded(padded)

    def to_inputs(self, x: Tensor, y: Tensor, grads: Tensor, g_x: Tensor | None, g_y: Tensor | None) -> None:
        """Write the gradients of x and y where they are wanted; changes `grads`, which are those of the products."""
        ax, ay = self.inside(self.products[:2, :, : y.shape[1]])
        g_ax, g_ay, g_aax, g_aaxx, g_aaxy = grads
        g_ax.addcmul_(g_aax, self.a).addcmul_(g_aaxx, ax, value=2).addcmul_(g_aaxy, ay)
        g_ay.addcmul_(g_aaxy, ax)
        for wanted, found in ((g_x, g_ax), (g_y, g_ay)):
            if wanted is not None:
                torch.mul(self.a, found, out=wanted)
        self.g_a += g_ax.mul_(x).addcmul_(g_ay, y).addcmul_(g_aax, ax).sum(1, keepdim=True)

    def to_attention(self) -> tuple[Tensor, Tensor]:
        """Gradients of the weights and of their total, after all turns."""
        return self.g_a + self.window_sum(self.g_s_a), self.g_total


def _windows(size: int, radius: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Lines of each window along one axis, (size, 2 radius + 1), and their shares in its mean; 0 beyond the map."""
    lines = torch.arange(size)[:, None] + torch.arange(-radius, radius + 1)
    inside = ((lines >= 0) & (lines < size)).to(like.dtype)
    return lines.clamp(0, size - 1), inside / inside.sum(1, keepdim=True)
