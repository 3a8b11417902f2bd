"""Apply a coarse line A * x + b to a fine map x, A and b enlarged on the way (FSG-Net's guided filter, 2501.18921).

A and b are enlarged bilinearly with their corners on the corners of x: fine coordinate i lies at i (h - 1) / (H - 1) of
the coarse axis. Neighbour and share come from the integers i (h - 1) and H - 1, never from a rounded ratio: that error
grows with the side and exceeds all others of the filter on wide maps.

B batch, C channels, h w coarse side, H W fine side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import (
    is_recorded,
    kernel_types,
    launch_options,
    scripted_as,
    tl,
    triton,
    uses_triton,
)

_BLOCK = 256  # pixels of one plane per program


def affine_upsample_reference(line: Tensor, x: Tensor) -> Tensor:
    """What the op must equal: enlarge, multiply, add; plain PyTorch, any device, any dtype."""
    size = [x.shape[2], x.shape[3]]
    slope = F.interpolate(line[0], size, mode="bilinear", align_corners=True)
    return slope * x + F.interpolate(line[1], size, mode="bilinear", align_corners=True)


@triton.jit
def _source(at, low, high, ACC: tl.constexpr):
    """Coarse neighbours of a fine coordinate and the share of the second, exact: in integers up to one division."""
    reach = tl.maximum(high - 1, 1)
    first = at * (low - 1) // reach
    share = (at * (low - 1) - first * reach).to(ACC) / reach
    return first, tl.minimum(first + 1, low - 1), share


@triton.jit
def _bilinear(low_ptr, y0, y1, x0, x1, fy, fx, width, inside, ACC: tl.constexpr):
    """Mix four coarse values; the plane is `low_ptr`'s."""
    top = tl.load(low_ptr + y0 * width + x0, mask=inside, other=0.0).to(ACC) * (1 - fx)
    top += tl.load(low_ptr + y0 * width + x1, mask=inside, other=0.0).to(ACC) * fx
    bottom = tl.load(low_ptr + y1 * width + x0, mask=inside, other=0.0).to(ACC) * (1 - fx)
    bottom += tl.load(low_ptr + y1 * width + x1, mask=inside, other=0.0).to(ACC) * fx
    return top * (1 - fy) + bottom * fy


@triton.jit
def _apply_kernel(
    line_ptr, x_ptr, grad_ptr, out_ptr, channels, guide_channels, height, width, fine_height, fine_width,
    BACKWARD: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Enlarge A and b, `line` (2, B, C, h, w), and write A x + b; BACKWARD writes the gradient of x, A * grad."""
    area, fine = height * width, fine_height * fine_width
    plane = tl.program_id(1).to(tl.int64)
    guide = plane // channels * guide_channels + plane % channels % guide_channels
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < fine
    y0, y1, fy = _source(at // fine_width, height, fine_height, ACC)
    x0, x1, fx = _source(at % fine_width, width, fine_width, ACC)
    slope = _bilinear(line_ptr + plane * area, y0, y1, x0, x1, fy, fx, width, inside, ACC)
    if BACKWARD:
        out = slope * tl.load(grad_ptr + plane * fine + at, mask=inside, other=0.0).to(ACC)
    else:
        step = tl.num_programs(1).to(tl.int64) * area
        offset = _bilinear(line_ptr + step + plane * area, y0, y1, x0, x1, fy, fx, width, inside, ACC)
        out = slope * tl.load(x_ptr + guide * fine + at, mask=inside, other=0.0).to(ACC) + offset
    tl.store(out_ptr + plane * fine + at, out, mask=inside)


@triton.jit
def _first_reached(at, low, high):
    """First fine coordinate whose bilinear footprint holds coarse coordinate `at`."""
    before = tl.maximum(at - 1, 0) * tl.maximum(high - 1, 1) // (low - 1) + 1
    return tl.where(at > 0, before, 0)


@triton.jit
def _weight(fine, at, low, high, ACC: tl.constexpr):
    """Bilinear weight of coarse coordinate `at` in fine coordinate `fine`; 0 outside the footprint or the map."""
    reach = tl.maximum(high - 1, 1)
    left = reach - tl.abs(fine * (low - 1) - at * reach)
    return tl.where((left > 0) & (fine < high), left.to(ACC) / reach, 0.0)


@triton.jit
def _apply_grad_kernel(
    x_ptr, grad_ptr, out_ptr, channels, guide_channels, height, width, fine_height, fine_width, rows, columns,
    ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of A and b: a coarse pixel collects from rows x columns fine ones it may have reached; no atomics."""
    area, fine = height * width, fine_height * fine_width
    plane = tl.program_id(1).to(tl.int64)
    guide = plane // channels * guide_channels + plane % channels % guide_channels
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // width, at % width
    y, x = _first_reached(row, height, fine_height), _first_reached(column, width, fine_width)
    g_slope, g_offset = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for tap in range(rows * columns):
        v, u = y + tap // columns, x + tap % columns
        weight = _weight(v, row, height, fine_height, ACC) * _weight(u, column, width, fine_width, ACC)
        reached = (weight > 0) & (row < height)
        grad = tl.load(grad_ptr + plane * fine + v * fine_width + u, mask=reached, other=0.0).to(ACC) * weight
        g_slope += grad * tl.load(x_ptr + guide * fine + v * fine_width + u, mask=reached, other=0.0).to(ACC)
        g_offset += grad
    out_ptr += plane * area + at
    tl.store(out_ptr, g_slope, mask=at < area)
    tl.store(out_ptr + tl.num_programs(1).to(tl.int64) * area, g_offset, mask=at < area)


def _grid(planes: Tensor) -> tuple[int, int]:
    """One program per block of pixels and plane of (..., B, C, h, w)."""
    return triton.cdiv(planes.shape[-2] * planes.shape[-1], _BLOCK), planes.shape[-4] * planes.shape[-3]


def _types(x: Tensor) -> dict[str, Any]:
    return {"ACC": kernel_types(x.dtype)["ACC"], "BLOCK": _BLOCK, **launch_options(warps=4, stages=2)}


@torch.library.custom_op("medseg::affine_upsample", mutates_args=())
def _apply(line: Tensor, high_x: Tensor) -> Tensor:
    line, high_x = line.contiguous(), high_x.contiguous()
    out = _apply_like(line, high_x)
    sizes = (line.shape[2], high_x.shape[1], *line.shape[3:], *high_x.shape[2:])
    _apply_kernel[_grid(out)](line, high_x, high_x, out, *sizes, BACKWARD=False, **_types(line))
    return out


@torch.library.custom_op("medseg::affine_upsample_backward", mutates_args=())
def _apply_backward(grad: Tensor, line: Tensor, high_x: Tensor) -> tuple[Tensor, Tensor]:
    grad, line, high_x = grad.contiguous(), line.contiguous(), high_x.contiguous()
    g_high, g_line, types = torch.empty_like(grad), torch.empty_like(line), _types(line)
    sizes = (line.shape[2], high_x.shape[1], *line.shape[3:], *high_x.shape[2:])
    _apply_kernel[_grid(grad)](line, high_x, grad, g_high, *sizes, BACKWARD=True, **types)
    # A footprint is two coarse steps wide, its ends not counted.
    taps = [2 * max(fine - 1, 1) // (low - 1) + 1 for low, fine in zip(line.shape[3:], high_x.shape[2:], strict=True)]
    _apply_grad_kernel[_grid(line)](high_x, grad, g_line, *sizes, *taps, **types)
    return g_line, g_high if high_x.shape[1] == line.shape[2] else g_high.sum(1, keepdim=True)


@_apply.register_fake
def _apply_like(line: Tensor, high_x: Tensor) -> Tensor:
    return high_x.new_empty(line.shape[1], line.shape[2], high_x.shape[2], high_x.shape[3])


@_apply_backward.register_fake
def _apply_backward_like(grad: Tensor, line: Tensor, high_x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(line), torch.empty_like(high_x)


_apply.register_autograd(
    lambda ctx, grad: _apply_backward(grad, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _enlarged(low: Tensor, size: Sequence[int]) -> Tensor:
    """(..., h, w) to (..., H, W); columns first, while there are few rows. `interpolate` rounds its coordinates."""
    columns, shares = neighbours(low.shape[-1], size[1], low)
    x0, x1 = columns.expand(*low.shape[:-1], *columns.shape).unbind(-1)
    low = torch.lerp(low.gather(-1, x0), low.gather(-1, x1), shares[:, 1])
    rows, shares = neighbours(low.shape[-2], size[0], low)
    y0, y1 = rows.unbind(1)
    return torch.lerp(low.index_select(-2, y0), low.index_select(-2, y1), shares[:, 1:])


def neighbours(coarse: int, fine: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Both coarse neighbours of each fine coordinate, (fine, 2), and the share of each in it."""
    at, reach = torch.arange(fine, device=like.device) * (coarse - 1), max(fine - 1, 1)
    first = at // reach
    share = ((at - first * reach).double() / reach).to(like.dtype)
    return torch.stack((first, (first + 1).clamp(max=coarse - 1)), 1), torch.stack((1 - share, share), 1)


@scripted_as(affine_upsample_reference)
def affine_upsample(line: Tensor, x: Tensor) -> Tensor:
    """Enlarge slope and offset to the size of `x` and apply them to it.

    Args:
        line: Slope and offset on the coarse grid, (2, B, C, h, w), h and w at least 2, float32 or float64.
        x: Fine map, (B, C, H, W), or (B, 1, H, W) for one map under all slopes.

    Returns:
        (B, C, H, W) in the dtype of `x`, computed in that of `line`.
    """
    if is_recorded():
        return affine_upsample_reference(line, x)
    if uses_triton(line, x):
        return _apply(line, x)
    slope, offset = _enlarged(line, x.shape[2:]).unbind()
    return torch.addcmul(offset, slope, x.to(line.dtype)).to(x.dtype)
