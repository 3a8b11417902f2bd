"""Launch of the segment attention kernels: block sizes by head width, grids, and the order of their arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medseg_kernels.dispatch import INTERPRETED, dot_precision, kernel_types, launch_options, triton
from medseg_kernels.layout import SegmentLayout, key_block, padded_width
from medseg_kernels.softmax_kernels import (
    _backward_bias_kernel,
    _backward_kv_kernel,
    _backward_q_kernel,
    _forward_kernel,
)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: SegmentLayout, added: tuple[Tensor | None, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Output (Nq, h, Dv) of `segment_attention`, and per query the largest logit and the sum of weights, (2, Nq, h).

    `added` is rel_h, rel_w, bias.
    """
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    sums = torch.empty((2, *q.shape[:2]), dtype=_sum_dtype(q), device=q.device)
    constants = _constants(q, v, layout, scale, backward=False, table=added[2] is not None)
    slots = len(layout.q_segment)
    if slots:
        grid = (triton.cdiv(slots, constants["BLOCK_Q"]), q.shape[1])
        pointers = (q, k, v, out, *sums, *_tables(layout), *added)
        for spans in (False, True):
            _forward_kernel[grid](*pointers, *_sizes(q, k, v, layout, added), SPANS=spans, **constants)
    return out, sums


def launch_backward(
    saved: tuple[Tensor, ...], grad: Tensor, layout: SegmentLayout, added: tuple[Tensor | None, ...], scale: float
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, rel_h, rel_w and bias; `saved` is q, k, v and what `launch_forward` returned."""
    q, k, v, out, sums = saved
    grad = grad.contiguous()
    delta = torch.empty_like(sums[0])
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    rel_h, rel_w, bias = added
    drel_h, drel_w = (None if x is None else torch.empty_like(x) for x in (rel_h, rel_w))
    constants = _constants(q, v, layout, scale, backward=True, table=bias is not None)
    inputs, sizes = (q, k, v, grad, *sums, delta), _sizes(q, k, v, layout, added)
    tables = (*_tables(layout), *added)
    slots = len(layout.q_segment), len(layout.k_segment)
    if slots[0]:
        grid = (triton.cdiv(slots[0], constants["BLOCK_Q"]), q.shape[1])
        for spans in (False, True):
            _backward_q_kernel[grid](*inputs, out, dq, drel_h, drel_w, *tables, *sizes, SPANS=spans, **constants)
    if slots[1]:
        turned = constants | key_side(constants, layout.grid)
        grid = (triton.cdiv(slots[1], turned["BLOCK_K"]), q.shape[1])
        for spans in (False, True):
            _backward_kv_kernel[grid](*inputs, dk, dv, *tables, *sizes, SPANS=spans, **turned)
    dbias = None if bias is None else _launch_bias(inputs, bias, layout, constants)
    return dq, dk, dv, drel_h, drel_w, dbias


def _launch_bias(inputs: tuple[Tensor, ...], bias: Tensor, layout: SegmentLayout, constants: dict[str, Any]) -> Tensor:
    """Gradient of the bias table: segments are dealt out in up to 32 parts, and the parts summed in order."""
    q, k, v = inputs[:3]
    heads, places_q, places_k = bias.shape
    segments = len(layout.q_start) - 1
    share = max(1, triton.cdiv(segments, 32))
    parts = triton.cdiv(segments, share)
    partial = torch.empty((parts, *bias.shape), dtype=inputs[4].dtype, device=bias.device)
    constants = {name: value for name, value in constants.items() if name != "WIDTH"}
    blocks = triton.cdiv(places_q, constants["BLOCK_Q"]) * triton.cdiv(places_k, constants["BLOCK_K"])
    strides = (q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1))
    sizes = (*strides, heads, places_q, places_k, segments, share)
    if blocks and parts:
        grid = (blocks, heads * parts)
        _backward_bias_kernel[grid](*inputs, partial, *_tables(layout), bias, *sizes, **constants)
    return partial.sum(0).to(bias.dtype)


def _tables(layout: SegmentLayout) -> tuple[Tensor | None, ...]:
    return layout.q_rows, layout.q_segment, layout.q_start, layout.k_rows, layout.k_segment, layout.k_start


def _sizes(q: Tensor, k: Tensor, v: Tensor, layout: SegmentLayout, added: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    """The kernels' integer arguments, in their order: strides, slots, key grid, bias table."""
    rel_h, rel_w, bias = added
    strides = (q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1))
    slots = (len(layout.q_segment), len(layout.k_segment))
    grid = (0, 0) if rel_h is None or rel_w is None else (rel_h.shape[2], rel_w.shape[2])
    table = (0, 0) if bias is None else (bias.shape[1], bias.shape[2])
    return *strides, *slots, *grid, *table


def _constants(
    q: Tensor, v: Tensor, layout: SegmentLayout, scale: float, *, backward: bool, table: bool
) -> dict[str, Any]:
    """Block sizes and launch options by head width; the tests compile exactly these for sm_80 and sm_90."""
    width = max(q.shape[2], v.shape[2])
    constants = block_sizes(width, q.element_size(), layout.grid, backward=backward, table=table)
    return constants | {
        "D": q.shape[2],
        "DV": v.shape[2],
        "SCALE": scale,
        "BLOCK_D": padded_head(q.shape[2]),
        "BLOCK_DV": padded_head(v.shape[2]),
        "PRECISION": dot_precision(q.dtype),
        **kernel_types(q.dtype),
    }


def block_sizes(
    width: int, element_size: int, grid: tuple[int, int] | None, *, backward: bool, table: bool
) -> dict[str, Any]:
    """Choose BLOCK_Q, BLOCK_K, WIDTH and the launch options.

    Wide heads and float32 fill the registers sooner, so their blocks are smaller. A decomposed bias fixes BLOCK_K to
    whole key grid rows. The interpreter gets small blocks, so that small tests still cross block borders.

    Args:
        width: The wider of the two head widths.
        element_size: Bytes per number of q.
        grid: Key grid of the layout.
        backward: Whether for the backward kernels.
        table: Whether a bias table is added, whose gathered block takes registers of its own.
    """
    exact = element_size > 2
    if INTERPRETED:
        queries, keys = 32, 32
    elif backward:
        queries, keys = (32, 32) if exact or width > 128 or grid is not None else (64, 32)
    elif exact or width > 64:
        queries, keys = (32, 32) if exact and width > 32 else (64, 32)
    else:
        queries, keys = (64, 64) if table else (128, 64)
    if grid is not None:
        queries, keys = min(queries, 64 if padded_width(grid) >= 64 else 32), key_block(grid)
    options = launch_options(warps=8, stages=2)
    return {"BLOCK_Q": queries, "BLOCK_K": keys, "WIDTH": 16 if grid is None else padded_width(grid), **options}


def key_side(constants: dict[str, Any], grid: tuple[int, int] | None) -> dict[str, Any]:
    """Turn the blocks round for the pass whose programs own keys: what is owned is read once, so it is the larger.

    A decomposed bias keeps its key blocks, which are whole grid rows.
    """
    turn = {"BLOCK_Q": "BLOCK_K", "BLOCK_K": "BLOCK_Q"} if grid is None else {}
    return {name: constants[other] for name, other in turn.items()}


def padded_head(width: int) -> int:
    """Columns of a block that holds a head: a tensor core takes no fewer than 16."""
    return max(16, triton.next_power_of_2(width))


def _sum_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
