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
from medseg_kernels.dispatch import is_recorded, kernel_types, launch_options, tl, triton, uses_triton

_BLOCK = 256  # pixels of one plane per program
_CHUNK_PIXELS = 2**16  # coarse pixels, over channels, that the CPU path filters at a time: a dozen maps in cache


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


@triton.jit
def _count(row, column, height, width, RADIUS: tl.constexpr):
    """Pixels of the window around (row, column) that lie inside the map."""
    rows = tl.minimum(row + RADIUS, height - 1) - tl.maximum(row - RADIUS, 0) + 1
    columns = tl.minimum(column + RADIUS, width - 1) - tl.maximum(column - RADIUS, 0) + 1
    return rows * columns


@triton.jit
def _box_kernel(
    x_ptr, out_ptr, height, width, RADIUS: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """Window sums of one plane. MEAN 0 leaves them, 1 divides by the count, 2 is the adjoint of 1."""
    plane = tl.program_id(1).to(tl.int64) * height * width  # int64: maps of a batch pass 2**31 elements
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // width, at % width
    SIDE: tl.constexpr = 2 * RADIUS + 1
    total = tl.zeros((BLOCK,), ACC)
    for tap in range(SIDE * SIDE):
        y, x = row + tap // SIDE - RADIUS, column + tap % SIDE - RADIUS
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        value = tl.load(x_ptr + plane + y * width + x, mask=inside, other=0.0).to(ACC)
        total += value / tl.maximum(_count(y, x, height, width, RADIUS), 1) if MEAN == 2 else value
    if MEAN == 1:
        total /= tl.maximum(_count(row, column, height, width, RADIUS), 1)
    tl.store(out_ptr + plane + at, total, mask=at < height * width)


@triton.jit
def _window_sums(
    x_ptr, y_ptr, a_ptr, row, column, height, width, RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """S of a, a x, a y, a^2 x, a^2 x^2 and a^2 x y, all from one reading of the three maps."""
    SIDE: tl.constexpr = 2 * RADIUS + 1
    s_a, s_ax, s_ay = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    s_aax, s_aaxx, s_aaxy = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for tap in range(SIDE * SIDE):
        v, u = row + tap // SIDE - RADIUS, column + tap % SIDE - RADIUS
        inside = (v >= 0) & (v < height) & (u >= 0) & (u < width)
        at = v * width + u
        a = tl.load(a_ptr + at, mask=inside, other=0.0).to(ACC)
        ax = a * tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC)
        ay = a * tl.load(y_ptr + at, mask=inside, other=0.0).to(ACC)
        s_a += a
        s_ax += ax
        s_ay += ay
        s_aax += a * ax
        s_aaxx += ax * ax
        s_aaxy += ax * ay
    return s_a, s_ax, s_ay, s_aax, s_aaxx, s_aaxy


@triton.jit
def _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area):
    """Move the pointers to the planes of this program's sample and channel; a one-channel guide serves them all."""
    plane = tl.program_id(1).to(tl.int64)
    sample, channel = plane // channels, plane % channels
    guide = sample * guide_channels + channel % guide_channels
    return x_ptr + guide * area, y_ptr + plane * area, a_ptr + sample * area, plane * area, sample


@triton.jit
def _coefficients_kernel(
    x_ptr, y_ptr, a_ptr, total_ptr, out_ptr, channels, guide_channels, height, width, eps,
    RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A and b of every window of one plane; out is (2, B, C, h, w)."""
    area = height * width
    x_ptr, y_ptr, a_ptr, plane, sample = _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < area
    row, column = at // width, at % width
    s_a, s_ax, s_ay, s_aax, s_aaxx, s_aaxy = _window_sums(
        x_ptr, y_ptr, a_ptr, row, column, height, width, RADIUS, ACC, BLOCK
    )
    n = tl.maximum(_count(row, column, height, width, RADIUS), 1)
    q = s_aax / tl.load(total_ptr + sample).to(ACC)
    slope = (s_aaxy - q * s_ay) / n / (tl.abs(s_aaxx - q * s_ax) / n + eps)
    offset = (s_ay - slope * s_ax) / tl.where(inside, s_a, 1.0)
    tl.store(out_ptr + plane + at, slope, mask=inside)
    planes = tl.num_programs(1).to(tl.int64)
    tl.store(out_ptr + planes * area + plane + at, offset, mask=inside)


@triton.jit
def _coefficients_to_sums_kernel(
    grad_ptr, x_ptr, y_ptr, a_ptr, total_ptr, out_ptr, channels, guide_channels, height, width, eps,
    RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First half of the backward: gradient of the six sums of each window, (6, B, C, h, w), the sums made anew."""
    area = height * width
    x_ptr, y_ptr, a_ptr, plane, sample = _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < area
    row, column = at // width, at % width
    s_a, s_ax, s_ay, s_aax, s_aaxx, s_aaxy = _window_sums(
        x_ptr, y_ptr, a_ptr, row, column, height, width, RADIUS, ACC, BLOCK
    )
    s_a = tl.where(inside, s_a, 1.0)
    n = tl.maximum(_count(row, column, height, width, RADIUS), 1)
    total = tl.load(total_ptr + sample).to(ACC)
    step = tl.num_programs(1).to(tl.int64) * area  # from one map to the next
    g_slope = tl.load(grad_ptr + plane + at, mask=inside, other=0.0).to(ACC)
    g_offset = tl.load(grad_ptr + step + plane + at, mask=inside, other=0.0).to(ACC)

    q = s_aax / total
    spread = s_aaxx - q * s_ax  # N times what the absolute value is taken of
    divisor = tl.abs(spread) + n * eps
    slope = (s_aaxy - q * s_ay) / divisor
    offset = (s_ay - slope * s_ax) / s_a
    g_slope -= g_offset * s_ax / s_a
    g_top = g_slope / divisor  # of s_aaxy - q * s_ay
    g_spread = -g_top * slope * tl.where(spread > 0, 1.0, tl.where(spread < 0, -1.0, 0.0))
    g_q = -g_top * s_ay - g_spread * s_ax
    out_ptr += plane + at
    tl.store(out_ptr, -g_offset * offset / s_a, mask=inside)
    tl.store(out_ptr + step, -g_offset * slope / s_a - g_spread * q, mask=inside)
    tl.store(out_ptr + 2 * step, g_offset / s_a - g_top * q, mask=inside)
    tl.store(out_ptr + 3 * step, g_q / total, mask=inside)
    tl.store(out_ptr + 4 * step, g_spread, mask=inside)
    tl.store(out_ptr + 5 * step, g_top, mask=inside)


@triton.jit
def _sums_to_inputs_kernel(
    sums_ptr, x_ptr, y_ptr, a_ptr, total_ptr, out_ptr, channels, guide_channels, height, width,
    RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Second half: a pixel collects from all windows it is in; out holds gradients of x, y, a, total, per channel."""
    area = height * width
    x_ptr, y_ptr, a_ptr, plane, sample = _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < area
    row, column = at // width, at % width
    step = tl.num_programs(1).to(tl.int64) * area
    SIDE: tl.constexpr = 2 * RADIUS + 1
    g_a, g_ax, g_ay = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    g_aax, g_aaxx, g_aaxy = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for tap in range(SIDE * SIDE):
        v, u = row + tap // SIDE - RADIUS, column + tap % SIDE - RADIUS
        real = (v >= 0) & (v < height) & (u >= 0) & (u < width)
        window = sums_ptr + plane + v * width + u
        g_a += tl.load(window, mask=real, other=0.0).to(ACC)
        g_ax += tl.load(window + step, mask=real, other=0.0).to(ACC)
        g_ay += tl.load(window + 2 * step, mask=real, other=0.0).to(ACC)
        g_aax += tl.load(window + 3 * step, mask=real, other=0.0).to(ACC)
        g_aaxx += tl.load(window + 4 * step, mask=real, other=0.0).to(ACC)
        g_aaxy += tl.load(window + 5 * step, mask=real, other=0.0).to(ACC)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(ACC)
    a = tl.load(a_ptr + at, mask=inside, other=0.0).to(ACC)
    out_ptr += plane + at
    tl.store(out_ptr, a * (g_ax + a * (g_aax + 2 * x * g_aaxx + y * g_aaxy)), mask=inside)
    tl.store(out_ptr + step, a * (g_ay + a * x * g_aaxy), mask=inside)
    from_squares = 2 * a * x * (g_aax + x * g_aaxx + y * g_aaxy)
    tl.store(out_ptr + 2 * step, g_a + x * g_ax + y * g_ay + from_squares, mask=inside)
    tl.store(out_ptr + 3 * step, -a * a * x * g_aax / tl.load(total_ptr + sample).to(ACC), mask=inside)


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
        _box_kernel[_grid(planes)](x, out, x.shape[-2], x.shape[-1], RADIUS=radius, MEAN=mean, **_types(x))
    return out


@torch.library.custom_op("medseg::guided_line", mutates_args=())
def _line(x: Tensor, y: Tensor, a: Tensor, total: Tensor, radius: int, eps: float) -> Tensor:
    x, y, a = x.contiguous(), y.contiguous(), a.contiguous()
    out = _line_like(y, y, a, total, radius, eps)
    sizes = (y.shape[1], x.shape[1], y.shape[2], y.shape[3])
    _coefficients_kernel[_grid(y)](x, y, a, total, out, *sizes, eps, RADIUS=radius, **_types(a))
    return out


@torch.library.custom_op("medseg::guided_line_backward", mutates_args=())
def _line_backward(
    grad: Tensor, x: Tensor, y: Tensor, a: Tensor, total: Tensor, radius: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, x, y, a = grad.contiguous(), x.contiguous(), y.contiguous(), a.contiguous()
    sums, grads = a.new_empty(6, *y.shape), a.new_empty(4, *y.shape)
    sizes = (y.shape[1], x.shape[1], y.shape[2], y.shape[3])
    types = _types(a)
    _coefficients_to_sums_kernel[_grid(y)](grad, x, y, a, total, sums, *sizes, eps, RADIUS=radius, **types)
    _sums_to_inputs_kernel[_grid(y)](sums, x, y, a, total, grads, *sizes, RADIUS=radius, **types)
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


def _box(padded: Tensor, radius: int) -> Tensor:
    """Window sums of maps that carry `radius` zeros on every side; shifted adds, far faster here than a pooling."""
    height, width = padded.shape[-2] - 2 * radius, padded.shape[-1] - 2 * radius
    if radius == 0:
        return padded
    rows = padded[..., :height, :] + padded[..., 1 : 1 + height, :]
    for shift in range(2, 2 * radius + 1):
        rows += padded[..., shift : shift + height, :]
    total = rows[..., :width] + rows[..., 1 : 1 + width]
    for shift in range(2, 2 * radius + 1):
        total += rows[..., shift : shift + width]
    return total


def _guided_filter_plain(
    low_x: Tensor, low_y: Tensor, high_x: Tensor, a: Tensor, total: Tensor, radius: int, eps: float
) -> Tensor:
    """The CPU path: the five products of a few channels at a time, few enough to stay in cache."""
    margin = [radius] * 4
    inverse = 1 / _box(F.pad(torch.ones_like(a[:1]), margin), radius)
    a = F.pad(a, margin)
    s_a = _box(a, radius)
    channels = max(1, _CHUNK_PIXELS // low_y[0, 0].numel())
    outs = []
    for first in range(0, low_y.shape[1], channels):
        x, y, high = (
            each if each.shape[1] == 1 else each[:, first : first + channels] for each in (low_x, low_y, high_x)
        )
        ax, ay = a * F.pad(x, margin), a * F.pad(y, margin)
        products = torch.stack(torch.broadcast_tensors(ax, ay, a * ax, ax * ax, ax * ay))
        s_ax, s_ay, s_aax, s_aaxx, s_aaxy = _box(products, radius).unbind()
        q = s_aax / total
        slope = (s_aaxy - q * s_ay) * inverse / (((s_aaxx - q * s_ax) * inverse).abs() + eps)
        line = torch.stack((slope, (s_ay - slope * s_ax) / s_a))
        outs.append(affine_upsample(_box(F.pad(line, margin), radius) * inverse, high))
    return torch.cat(outs, dim=1)


def box_sum(x: Tensor, radius: int) -> Tensor:
    """Sum each window of side 2 `radius` + 1 over the part of it that lies inside the map.

    Args:
        x: Maps, (B, C, h, w), floating point.
        radius: Pixels on each side of the middle one, at least 0.

    Returns:
        (B, C, h, w) in the dtype of `x`, summed in float32 at least.
    """
    if uses_triton(x):
        return _box_filter(x, radius, 0)
    if is_recorded():
        return box_sum_reference(x, radius)
    wide = x if x.dtype == torch.float64 else x.float()
    return _box(F.pad(wide, [radius] * 4), radius).to(x.dtype)


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
    # TorchScript skips what `is_scripting` guards, but only where it stands in the function itself.
    if not torch.jit.is_scripting() and not is_recorded():  # pyright: ignore[reportPrivateImportUsage] torch's stubs
        return _choose(low_x, low_y, high_x, attention, radius, eps, batch_coupled)
    return guided_filter_reference(low_x, low_y, high_x, attention, radius, eps, batch_coupled)


def _choose(
    low_x: Tensor, low_y: Tensor, high_x: Tensor, attention: Tensor, radius: int, eps: float, batch_coupled: bool
) -> Tensor:
    """The kernels where they can run, else the CPU path; what a scripted model need not compile."""
    wide = torch.float64 if low_y.dtype == torch.float64 else torch.float32
    a = _weight(attention.to(wide))
    total = a.double().sum([1, 2, 3])  # a float32 sum over a large map would lose digits that q needs
    total = (total.sum().expand(total.shape) if batch_coupled else total).to(wide)
    if uses_triton(low_x, low_y, high_x, attention):
        return affine_upsample(_box_filter(_line(low_x, low_y, a, total, radius, eps), radius, 1), high_x)
    low_x, low_y, fine = low_x.to(wide), low_y.to(wide), high_x.to(wide)
    return _guided_filter_plain(low_x, low_y, fine, a, total[:, None, None, None], radius, eps).to(high_x.dtype)


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
