"""Multi-scale deformable sampling: every query reads a few points of every level and adds them up, weighted.

Source: DB-SAM, 2410.04172 (Deformable DETR, 2010.04159, eq. 3):

    out[q, head] = sum over levels l, points p of weight[q, head, l, p] * value_l[head] at location[q, head, l, p]

A location (x, y) in [0, 1] lies at x * W - 0.5, y * H - 0.5 in pixels of its level; whatever lies outside counts zero.

B batch, S pixels of all levels together, h heads, D head width, Q queries, L levels, P points per level.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import (
    is_deterministic,
    is_recorded,
    kernel_types,
    launch_options,
    scripted_as,
    tl,
    triton,
    uses_triton,
)

_BLOCK = 16  # queries per program: 16 x 64 channels keep four corner loads in flight


def deform_sample_reference(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool | None = None,
) -> Tensor:
    """What `deform_sample` must equal: one `grid_sample` per level; plain PyTorch, any device, any dtype.

    `deterministic` is there because a recorded model may give it; bits are as PyTorch's `grid_sample` has them.
    """
    batch, _, heads, width = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    grid = (2 * locations - 1).to(value.dtype).permute(0, 2, 3, 1, 4, 5)  # (B, h, L, Q, P, 2)
    out = value.new_zeros(batch * heads, width, queries)
    first = 0
    for level, (rows, columns) in enumerate(spatial_shapes):
        pixels = value[:, first : first + rows * columns].permute(0, 2, 3, 1)  # (B, h, D, pixels)
        pixels = pixels.reshape(batch * heads, width, rows, columns)
        where = grid[:, :, level].reshape(batch * heads, queries, points, 2)
        seen = F.grid_sample(pixels, where, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, :, level].to(value.dtype).transpose(1, 2).reshape(batch * heads, 1, queries, points)
        out = out + (seen * weight).sum(-1)
        first += rows * columns
    return out.reshape(batch, heads * width, queries).transpose(1, 2)


@triton.jit
def _point(location_ptr, levels_ptr, slot, level, inside, ACC: tl.constexpr):
    """Pixel coordinates of one point per query, with size and first row of its level; far outside if not finite."""
    rows, columns = tl.load(levels_ptr + 3 * level), tl.load(levels_ptr + 3 * level + 1)
    x = tl.load(location_ptr + 2 * slot, mask=inside, other=-1.0).to(ACC) * columns - 0.5
    y = tl.load(location_ptr + 2 * slot + 1, mask=inside, other=-1.0).to(ACC) * rows - 0.5
    near = (x > -1) & (x < columns) & (y > -1) & (y < rows)  # false for NaN
    return tl.where(near, x, -2.0), tl.where(near, y, -2.0), rows, columns, tl.load(levels_ptr + 3 * level + 2)


@triton.jit
def _corner(row, column, rows, columns, first, sample, pixels, heads, head, WIDTH: tl.constexpr):
    """Offset of a pixel's channels in `value`, and whether that pixel exists."""
    real = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    pixel = sample * pixels + first + row * columns + column
    return (pixel.to(tl.int64) * heads + head) * WIDTH, real  # int64: values of a batch pass 2**31 elements


@triton.jit
def _load_corner(
    value_ptr, row, column, rows, columns, first, sample, pixels, heads, head, channel,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Channels of one pixel per query, zero outside the map."""
    at, real = _corner(row, column, rows, columns, first, sample, pixels, heads, head, WIDTH)
    mask = real[:, None] & (channel < WIDTH)[None, :]
    return tl.load(value_ptr + at[:, None] + channel[None, :], mask=mask, other=0.0).to(ACC)


@triton.jit
def _sample_kernel(
    value_ptr, levels_ptr, location_ptr, weight_ptr, out_ptr, queries, pixels, heads, levels, points,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of queries of one sample and head: walk the points, add four weighted corners of each."""
    sample, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    inside = query < queries
    row_of_query = (sample.to(tl.int64) * queries + query) * heads + head
    total = tl.zeros((BLOCK, CHANNELS), ACC)
    for point in range(levels * points):
        slot = row_of_query * levels * points + point
        x, y, rows, columns, first = _point(location_ptr, levels_ptr, slot, point // points, inside, ACC)
        weight = tl.load(weight_ptr + slot, mask=inside, other=0.0).to(ACC)
        left, top = tl.floor(x), tl.floor(y)
        fx, fy = x - left, y - top
        for corner in range(4):
            right, low = corner % 2, corner // 2
            share = tl.where(right == 1, fx, 1 - fx) * tl.where(low == 1, fy, 1 - fy) * weight
            seen = _load_corner(
                value_ptr, top.to(tl.int32) + low, left.to(tl.int32) + right, rows, columns, first, sample, pixels,
                heads, head, channel, WIDTH, ACC,
            )  # fmt: skip
            total += share[:, None] * seen
    mask = inside[:, None] & (channel < WIDTH)[None, :]
    tl.store(out_ptr + row_of_query[:, None] * WIDTH + channel[None, :], total, mask=mask)


@triton.jit
def _sample_grad_kernel(
    grad_ptr, value_ptr, levels_ptr, location_ptr, weight_ptr, scale_ptr, g_value_ptr, g_location_ptr, g_weight_ptr,
    queries, pixels, heads, levels, points,
    FIXED: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same walk backwards. Locations and weights are sums over channels; values are scattered with atomic adds.

    FIXED adds 64-bit integers, `scale` units to one: those sums do not depend on their order, float ones do.
    """
    sample, head = tl.program_id(1) // heads, tl.program_id(1) % heads
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, CHANNELS)
    inside = query < queries
    row_of_query = (sample.to(tl.int64) * queries + query) * heads + head
    mask = inside[:, None] & (channel < WIDTH)[None, :]
    grad = tl.load(grad_ptr + row_of_query[:, None] * WIDTH + channel[None, :], mask=mask, other=0.0).to(ACC)
    for point in range(levels * points):
        slot = row_of_query * levels * points + point
        x, y, rows, columns, first = _point(location_ptr, levels_ptr, slot, point // points, inside, ACC)
        weight = tl.load(weight_ptr + slot, mask=inside, other=0.0).to(ACC)
        left, top = tl.floor(x), tl.floor(y)
        fx, fy = x - left, y - top
        g_x, g_y, g_weight = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
        for corner in range(4):
            right, low = corner % 2, corner // 2
            row, column = top.to(tl.int32) + low, left.to(tl.int32) + right
            seen = _load_corner(
                value_ptr, row, column, rows, columns, first, sample, pixels, heads, head, channel, WIDTH, ACC
            )
            along = tl.sum(grad * seen, axis=1)
            share_x, share_y = tl.where(right == 1, fx, 1 - fx), tl.where(low == 1, fy, 1 - fy)
            g_weight += share_x * share_y * along
            g_x += (2 * right - 1) * share_y * along
            g_y += (2 * low - 1) * share_x * along
            at, real = _corner(row, column, rows, columns, first, sample, pixels, heads, head, WIDTH)
            part = (share_x * share_y * weight)[:, None] * grad
            if FIXED:
                part = (part.to(tl.float64) * tl.load(scale_ptr)).to(tl.int64)
            tl.atomic_add(g_value_ptr + at[:, None] + channel[None, :], part, mask=mask & real[:, None])
        tl.store(g_weight_ptr + slot, g_weight, mask=inside)
        tl.store(g_location_ptr + 2 * slot, g_x * weight * columns, mask=inside)
        tl.store(g_location_ptr + 2 * slot + 1, g_y * weight * rows, mask=inside)


@lru_cache(maxsize=64)
def _level_table(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    """Rows, columns and first pixel of each level, (L, 3); kept, since a copy to the device would stall every call."""
    table, first = [], 0
    for rows, columns in zip(sizes[::2], sizes[1::2], strict=True):
        table.append((rows, columns, first))
        first += rows * columns
    return torch.tensor(table, dtype=torch.int32, device=device)


def _setting(value: Tensor, locations: Tensor) -> tuple[tuple[int, int], tuple[int, ...], dict[str, Any]]:
    """Launch grid, sizes and constants that both kernels share."""
    batch, queries, heads, levels, points, _ = locations.shape
    width = value.shape[3]
    constants = {"WIDTH": width, "CHANNELS": triton.next_power_of_2(width), "ACC": kernel_types(value.dtype)["ACC"]}
    sizes = (queries, value.shape[1], heads, levels, points)
    options = launch_options(warps=4, stages=2)
    return (triton.cdiv(queries, _BLOCK), batch * heads), sizes, {**constants, "BLOCK": _BLOCK, **options}


@torch.library.custom_op("medseg::deform_sample", mutates_args=())
def _sample(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, fixed: bool) -> Tensor:
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    out = _sample_like(value, sizes, locations, weights, fixed)
    levels = _level_table(tuple(sizes), value.device)
    if out.numel():
        grid, numbers, constants = _setting(value, locations)
        _sample_kernel[grid](value, levels, locations, weights, out, *numbers, **constants)
    return out


@torch.library.custom_op("medseg::deform_sample_backward", mutates_args=())
def _sample_backward(
    grad: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, fixed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grad, value, locations, weights = (x.contiguous() for x in (grad, value, locations, weights))
    g_locations, g_weights = torch.empty_like(locations), torch.empty_like(weights)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    g_value = torch.zeros(value.shape, dtype=torch.int64 if fixed else wide, device=value.device)
    levels = _level_table(tuple(sizes), value.device)
    scale = _fixed_point(grad, weights) if fixed else grad
    if grad.numel():
        grid, numbers, constants = _setting(value, locations)
        _sample_grad_kernel[grid](
            grad, value, levels, locations, weights, scale, g_value, g_locations, g_weights, *numbers, FIXED=fixed,
            **constants,
        )  # fmt: skip
    g_value = g_value.double() / scale if fixed else g_value
    return g_value.to(value.dtype, copy=True), g_locations, g_weights


def _fixed_point(grad: Tensor, weights: Tensor) -> Tensor:
    """Largest power of two by which every sum of scattered parts still fits 63 bits; float64, never read by the CPU."""
    parts = weights.shape[1] * weights.shape[3] * weights.shape[4]  # a pixel gets at most one share of each point
    largest = grad.abs().amax().double() * weights.abs().amax().double() * parts
    exponent = torch.frexp(largest).exponent.clamp(min=-900)  # largest < 2**exponent; all-zero gradients have none
    return torch.ldexp(torch.ones_like(largest), 62 - exponent)


@_sample.register_fake
def _sample_like(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, fixed: bool) -> Tensor:
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@_sample_backward.register_fake
def _sample_backward_like(
    grad: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor, fixed: bool
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (value, locations, weights))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sizes, locations, weights, ctx.fixed = inputs
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, locations, weights = ctx.saved_tensors
    g_value, g_locations, g_weights = _sample_backward(grad, value, ctx.sizes, locations, weights, ctx.fixed)
    return g_value, None, g_locations, g_weights, None


_sample.register_autograd(_backward, setup_context=_save)


def _sample_plain(value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The CPU path: every corner is a row of a table, and a weighted embedding bag adds rows up as it reads them."""
    batch, pixels, heads, width = value.shape
    queries = locations.shape[1]
    size = torch.tensor(sizes, dtype=torch.int32, device=value.device)  # (L, 2) rows, columns
    first = (size.prod(1).cumsum(0) - size.prod(1)).int()[:, None]
    limit = size.flip(1)[:, None]  # (L, 1, 2) columns, rows
    at = locations * limit - 0.5
    near = ((at > -1) & (at < limit)).all(-1, keepdim=True)  # false for NaN
    at = torch.where(near, at, 0.0)
    corner, indices, shares = at.detach().floor(), [], []
    share = torch.stack((1 - (at - corner), at - corner))  # (2, B, Q, h, L, P, 2): of the lower and the upper neighbour
    corner = corner.int()  # halves what the index costs; a table of 2**31 rows fits no memory
    table = torch.arange(batch, dtype=torch.int32, device=value.device)[:, None, None, None, None] * pixels
    head = torch.arange(heads, dtype=torch.int32, device=value.device)[:, None, None]
    for low in range(2):
        for right in range(2):
            x, y = corner[..., 0] + right, corner[..., 1] + low
            real = near[..., 0] & (x >= 0) & (x < limit[..., 0]) & (y >= 0) & (y < limit[..., 1])
            pixel = first + y * limit[..., 0] + x
            indices.append(torch.where(real, (table + pixel) * heads + head, 0))
            shares.append(torch.where(real, share[right, ..., 0] * share[low, ..., 1] * weights, 0.0))
    bags = (batch * queries * heads, -1)
    index, share = torch.stack(indices, -1).view(bags), torch.stack(shares, -1).view(bags)
    rows = value.reshape(-1, width).to(share.dtype)
    return F.embedding_bag(index, rows, per_sample_weights=share, mode="sum").view(batch, queries, heads * width)


@scripted_as(deform_sample_reference)
def deform_sample(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool | None = None,
) -> Tensor:
    """Sample feature maps of several sizes at learned points and add the samples up, weighted.

    Args:
        value: Maps, flattened row by row and one behind the other, (B, S, h, D), floating point.
        spatial_shapes: (rows, columns) of each level.
        locations: Points (x, y) in units of the whole map, (B, Q, h, L, P, 2), floating point; outside [0, 1], or not
            finite, a point reads zeros and gets no gradient beyond the border.
        weights: (B, Q, h, L, P), floating point, usually a softmax over levels and points.
        deterministic: Whether the gradient of `value` must have the same bits on every run, at about twice its cost on
            a GPU; torch's own switch if not given.

    Returns:
        (B, Q, h * D) in the dtype of `value`; summed in float32.

    Raises:
        ValueError: The levels do not hold S pixels, or locations and weights do not fit each other.
    """
    pixels = sum(rows * columns for rows, columns in spatial_shapes)
    if pixels != value.shape[1]:
        raise ValueError(f"spatial_shapes must hold {value.shape[1]} pixels like value, got {spatial_shapes}")
    if locations.shape[:-1] != weights.shape or locations.shape[3] != len(spatial_shapes):
        raise ValueError(
            f"locations must be (B, Q, h, {len(spatial_shapes)}, P, 2) and weights the same without the 2, "
            f"got {list(locations.shape)} and {list(weights.shape)}"
        )
    if is_recorded():
        return deform_sample_reference(value, spatial_shapes, locations, weights)
    return _choose(value, spatial_shapes, locations, weights, deterministic)


def _choose(
    value: Tensor,
    spatial_shapes: list[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    deterministic: bool | None,
) -> Tensor:
    """The kernels where they can run, else the CPU path."""
    if uses_triton(value, locations, weights):
        fixed = is_deterministic() if deterministic is None else deterministic
        sizes = [side for shape in spatial_shapes for side in shape]
        return _sample(value, sizes, locations, weights, fixed)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    return _sample_plain(value, spatial_shapes, locations.to(wide), weights.to(wide)).to(value.dtype)
