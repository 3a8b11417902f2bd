"""Attention-guided filter: fit high = A * guide + b in small windows of a coarse map, apply it on the fine one.

Source: FSG-Net, 2501.18921, section 3. With S a sum over the window of side 2r + 1 cut at the border, N = S(1),
M = S / N, attention weight a > 0 and its sum T:

    q   = S(a^2 x) / T
    A   = (M(a^2 x y) - q M(a y)) / (|M(a^2 x^2) - q M(a x)| + eps)
    b   = (M(a y) - A M(a x)) / M(a)
    out = up(M(A)) * high_x + up(M(b))        up: bilinear, corners aligned

Every window is summed directly. Running sums over the whole image would be fewer additions, but they cancel: float32
then loses ten times as many digits, and the filter would need float64.

B batch, C channels, h w coarse side, H W fine side, r radius.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.affine_upsample import affine_upsample, affine_upsample_reference
from medseg_kernels.dispatch import is_recorded, kernel_types, launch_options, scripted_as, triton, uses_triton
from medseg_kernels.guided_filter_cpu import guided_filter_on_cpu
from medseg_kernels.guided_filter_kernels import (
    box_kernel,
    coefficients_kernel,
    coefficients_to_sums_kernel,
    sums_to_inputs_kernel,
)
from medseg_kernels.line_sums import run_sum

_BLOCK = 256  # pixels of one plane per program


def _weight(attention: Tensor) -> Tensor:
    """Positive weights; the floor keeps windows without any attention away from 0 / 0."""
    return attention.abs() + 1e-12


def box_sum_reference(x: Tensor, radius: int) -> Tensor:
    """What `box_sum` must equal: (B, C, h, w), summed over the part of each window that lies inside."""
    side = 2 * radius + 1
    padded = F.pad(x, [radius, radius, radius, radius])
    rows = padded.unfold(2, side, 1).sum(-1)
    return rows.unfold(3, side, 1).sum(-1)


def guided_filter_reference(
    low_x: Tensor,
    low_y: Tensor,
    high_x: Tensor,
    attention: Tensor,
    radius: int = 2,
    eps: float = 1e-2,
    batch_coupled: bool = False,
) -> Tensor:
    """What `guided_filter` must equal: the formulas above, term by term; any device, any dtype."""
    a = _weight(attention)
    total = a.sum() if batch_coupled else a.sum([1, 2, 3], keepdim=True)
    count = box_sum_reference(torch.ones_like(a[:1]), radius)
    mean_ax = box_sum_reference(a * low_x, radius) / count
    mean_ay = box_sum_reference(a * low_y, radius) / count
    mean_aaxx = box_sum_reference((a * low_x) ** 2, radius) / count
    mean_aaxy = box_sum_reference(a * low_x * a * low_y, radius) / count
    q = box_sum_reference(a / total * a * low_x, radius)
    slope = (mean_aaxy - q * mean_ay) / ((mean_aaxx - q * mean_ax).abs() + eps)
    offset = (mean_ay - slope * mean_ax) / (box_sum_reference(a, radius) / count)
    line = torch.stack((box_sum_reference(slope, radius), box_sum_reference(offset, radius))) / count
    return affine_upsample_reference(line, high_x)


def _grid(planes: Tensor) -> tuple[int, int]:
    """One program per block of pixels and plane of (..., B, C, h, w)."""
    return triton.cdiv(planes.shape[-2] * planes.shape[-1], _BLOCK), planes.shape[-4] * planes.shape[-3]


def _types(x: Tensor) -> dict[str, Any]:
    return {"ACC": kernel_types(x.dtype)["ACC"], "BLOCK": _BLOCK, **launch_options(warps=4, stages=2)}


@torch.library.custom_op("medseg::box_filter", mutates_args=())
def _box_filter(x: Tensor, radius: int, mean: int) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    if x.numel():
        planes = x.view(1, -1, x.shape[-2], x.shape[-1])
        box_kernel[_grid(planes)](x, out, x.shape[-2], x.shape[-1], RADIUS=radius, MEAN=mean, **_types(x))
    return out


@torch.library.custom_op("medseg::guided_line", mutates_args=())
def _line(x: Tensor, y: Tensor, a: Tensor, total: Tensor, radius: int, eps: float) -> Tensor:
    x, y, a = x.contiguous(), y.contiguous(), a.contiguous()
    out = _line_like(y, y, a, total, radius, eps)
    sizes = (y.shape[1], x.shape[1], y.shape[2], y.shape[3])
    coefficients_kernel[_grid(y)](x, y, a, total, out, *sizes, eps, RADIUS=radius, **_types(a))
    return out


@torch.library.custom_op("medseg::guided_line_backward", mutates_args=())
def _line_backward(
    grad: Tensor, x: Tensor, y: Tensor, a: Tensor, total: Tensor, radius: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, x, y, a = grad.contiguous(), x.contiguous(), y.contiguous(), a.contiguous()
    sums, grads = a.new_empty(6, *y.shape), a.new_empty(4, *y.shape)
    sizes = (y.shape[1], x.shape[1], y.shape[2], y.shape[3])
    types = _types(a)
    coefficients_to_sums_kernel[_grid(y)](grad, x, y, a, total, sums, *sizes, eps, RADIUS=radius, **types)
    sums_to_inputs_kernel[_grid(y)](sums, x, y, a, total, grads, *sizes, RADIUS=radius, **types)
    g_x, g_y, g_a, g_total = grads.unbind(0)
    g_x = g_x.clone() if x.shape == y.shape else g_x.sum(1, keepdim=True)
    return g_x.to(x.dtype), g_y.to(y.dtype, copy=True), g_a.sum(1, keepdim=True), g_total.sum([1, 2, 3])


@_box_filter.register_fake
def _box_like(x: Tensor, radius: int, mean: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_line.register_fake
def _line_like(x: Tensor, y: Tensor, a: Tensor, total: Tensor, radius: int, eps: float) -> Tensor:
    return a.new_empty(2, *y.shape)


@_line_backward.register_fake
def _line_backward_like(
    grad: Tensor, x: Tensor, y: Tensor, a: Tensor, total: Tensor, radius: int, eps: float
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(each, memory_format=torch.contiguous_format) for each in (x, y, a, total))


def _line_to_sums(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_line_backward(grad, *ctx.saved_tensors, ctx.radius, ctx.eps), None, None


def _save_line(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.radius, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _box_adjoint(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _box_filter(grad, ctx.radius, ctx.adjoint), None, None


def _save_box(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.radius, ctx.adjoint = inputs[1], (0, 2, 1)[inputs[2]]


_box_filter.register_autograd(_box_adjoint, setup_context=_save_box)
_line.register_autograd(_line_to_sums, setup_context=_save_line)


@scripted_as(box_sum_reference)
def box_sum(x: Tensor, radius: int) -> Tensor:
    """Sum each window of side 2 `radius` + 1 over the part of it that lies inside the map.

    Args:
        x: Maps, (B, C, h, w), floating point.
        radius: Pixels on each side of the middle one, at least 0.

    Returns:
        (B, C, h, w) in the dtype of `x`, summed in float32 at least.
    """
    if is_recorded():
        return box_sum_reference(x, radius)
    return _choose_box_sum(x, radius)


def _choose_box_sum(x: Tensor, radius: int) -> Tensor:
    if uses_triton(x):
        return _box_filter(x, radius, 0)
    wide = x if x.dtype == torch.float64 else x.float()
    rows = run_sum(F.pad(wide, [radius] * 4), 2 * radius + 1, 2)
    return run_sum(rows, 2 * radius + 1, 3).to(x.dtype)


@scripted_as(guided_filter_reference)
def guided_filter(
    low_x: Tensor,
    low_y: Tensor,
    high_x: Tensor,
    attention: Tensor,
    radius: int = 2,
    eps: float = 1e-2,
    batch_coupled: bool = False,
) -> Tensor:
    """Carry a coarse map over to a fine guide, edges of the guide kept where attention is high.

    Args:
        low_x: Coarse guide, (B, C, h, w) or (B, 1, h, w), floating point; h and w above 2 `radius` + 1.
        low_y: Coarse map to carry over, (B, C, h, w).
        high_x: Fine guide, (B, C, H, W) or (B, 1, H, W), as many channels as `low_x`.
        attention: Weight of each coarse pixel, (B, 1, h, w); its magnitude counts.
        radius: Of the windows, in coarse pixels.
        eps: What smooths flat windows, in squared units of `low_x` times squared attention.
        batch_coupled: Normalise the attention by its sum over the whole batch, as the published code does; otherwise
            a sample's result does not depend on its neighbours.

    Returns:
        (B, C, H, W) in the dtype of `high_x`; computed in float32, float64 for float64 inputs, also under autocast.

    Raises:
        ValueError: The shapes do not fit, or a window would span the whole coarse map.
    """
    _check(low_x, low_y, high_x, attention, radius)
    if is_recorded():
        return guided_filter_reference(low_x, low_y, high_x, attention, radius, eps, batch_coupled)
    return _choose(low_x, low_y, high_x, attention, radius, eps, batch_coupled)


def _choose(
    low_x: Tensor, low_y: Tensor, high_x: Tensor, attention: Tensor, radius: int, eps: float, batch_coupled: bool
) -> Tensor:
    """The kernels where they can run, else the CPU path, else the formulas."""
    wide = torch.float64 if low_y.dtype == torch.float64 else torch.float32
    a = _weight(attention.to(wide))
    total = a.double().sum([1, 2, 3])  # a float32 sum over a large map would lose digits that q needs
    total = (total.sum().expand(total.shape) if batch_coupled else total).to(wide)
    if uses_triton(low_x, low_y, high_x, attention):
        return affine_upsample(_box_filter(_line(low_x, low_y, a, total, radius, eps), radius, 1), high_x)
    x, y, fine = low_x.to(wide), low_y.to(wide), high_x.to(wide)
    if y.device.type != "cpu":  # a GPU without triton, or float64 on one
        out = guided_filter_reference(x, y, fine, attention.to(wide), radius, eps, batch_coupled)
    else:
        fine = fine.expand(-1, y.shape[1], -1, -1)
        out = guided_filter_on_cpu(x.expand_as(y), y, fine, a, total[:, None, None, None], radius, eps)
    return out.to(high_x.dtype)


def _check(low_x: Tensor, low_y: Tensor, high_x: Tensor, attention: Tensor, radius: int) -> None:
    batch, channels, height, width = low_y.shape
    if min(height, width) < 2 * radius + 2:
        raise ValueError(f"coarse sides must be at least {2 * radius + 2} for radius {radius}, got {height} x {width}")
    if attention.shape != (batch, 1, height, width):
        raise ValueError(f"attention must be {[batch, 1, height, width]}, got {list(attention.shape)}")
    if low_x.shape[1] not in (1, channels) or low_x[:, :1].shape != attention.shape:
        raise ValueError(f"low_x must be like low_y, {list(low_y.shape)}, or have one channel, got {list(low_x.shape)}")
    if high_x.shape[:2] != low_x.shape[:2]:
        raise ValueError(f"high_x must have batch and channels of low_x, {list(low_x.shape)}, got {list(high_x.shape)}")
