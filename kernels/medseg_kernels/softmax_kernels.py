"""Triton kernels of segment attention and their launch; `softmax_attention.py` says what they compute.

A forward program owns BLOCK_Q query slots of one head. It walks over the key slots of the segments those queries
belong to, BLOCK_K at a time, and keeps three things per query: the largest logit so far (m), the sum of
2**(logit - m) so far (total), and the sum of those weights times v (acc). When m grows, total and acc shrink by the
same factor. At the end acc / total is the output. No logit outlives its step: no attention matrix is ever in memory.

The backward pass recomputes the weights from the saved log-sum (lse, in base 2), once per query block for dq and once
per key block for dk and dv. With p the weight, g the output gradient and delta = sum_d g out of each query,
    dv = p^T g,   ds = p (g v^T - delta),   dq = scale ds k,   dk = scale ds^T q,   dbias = ds.
Each gradient is summed by one program in a fixed order: no atomics, the same bits on every run.

Exponents are in base 2 because the hardware's are. Offsets are int64: a batch of volumes passes 2**31 elements.
Whether a query sees a key is one comparison of segment ids; empty slots bear ids that match nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medseg_kernels.dispatch import INTERPRETED, constant, dot_precision, kernel_types, launch_options, tl, triton
from medseg_kernels.layout import SegmentLayout, key_block, padded_width

LOG2E = constant(1.4426950408889634)
NO_QUERY = constant(-1)
NO_KEY = constant(-2)


@triton.jit
def _slots(begin, end, rows_ptr, segment_ptr, NOBODY: tl.constexpr, BLOCK: tl.constexpr):
    """Slot numbers, rows and segments of one block; slots behind `end` and slots without a row belong to NOBODY."""
    slot = begin + tl.arange(0, BLOCK)
    row = slot.to(tl.int64)
    if rows_ptr is not None:
        row = tl.load(rows_ptr + slot, mask=slot < end, other=-1).to(tl.int64)
    real = (slot < end) & (row >= 0)
    return slot, row, tl.load(segment_ptr + slot, mask=real, other=NOBODY)


@triton.jit
def _rows(ptr, row, real, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr):
    """(BLOCK, BLOCK_D) of a matrix, zeros where there is no row and behind the last column."""
    column = tl.arange(0, BLOCK_D)
    x = tl.load(ptr + row[:, None] * stride + column, mask=real[:, None] & (column < D), other=0.0)
    return x.to(ACC) if UPCAST else x


@triton.jit
def _put_rows(ptr, x, row, real, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write (BLOCK, BLOCK_D) back to its rows."""
    column = tl.arange(0, BLOCK_D)
    at = ptr + row[:, None] * stride + column
    tl.store(at, x.to(ptr.dtype.element_ty), mask=real[:, None] & (column < D))


@triton.jit
def _added(
    rel_h_ptr, rel_w_ptr, bias_ptr, q_start_ptr, k_start_ptr, k_segment_ptr, q_slot, q_row, q_segment,
    k_slot, k_segment, k_first, h, heads, KH, KW, LQ, LK,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """(BLOCK_Q, BLOCK_K) to add to the logits: one term per key grid row plus one per column, or a table by place."""
    real = (q_segment >= 0)[:, None]
    if rel_h_ptr is not None:
        # A key block is whole grid rows of one segment, so its bias is an outer sum: rel_h down, rel_w across.
        y = (k_first - tl.load(k_start_ptr + tl.load(k_segment_ptr + k_first))) // WIDTH + tl.arange(
            0, BLOCK_K // WIDTH
        )
        x = tl.arange(0, WIDTH)
        at = (q_row * heads + h)[:, None]
        down = tl.load(rel_h_ptr + at * KH + y, mask=real & (y < KH), other=0.0).to(ACC)
        across = tl.load(rel_w_ptr + at * KW + x, mask=real & (x < KW), other=0.0).to(ACC)
        added = tl.reshape(down[:, :, None] + across[:, None, :], (BLOCK_Q, BLOCK_K))
    else:
        q_place = q_slot - tl.load(q_start_ptr + q_segment, mask=q_segment >= 0, other=0)
        k_place = k_slot - tl.load(k_start_ptr + k_segment, mask=k_segment >= 0, other=0)
        at = bias_ptr + (h * LQ + q_place)[:, None] * LK + k_place
        added = tl.load(at, mask=real & (k_segment >= 0), other=0.0).to(ACC)
    return added


@triton.jit
def _weights(
    q, k, v, grad, lse, delta, added, q_segment, k_segment,
    SCALE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Weights p and logit gradients ds of one block, both (BLOCK_Q, BLOCK_K), recomputed from the saved log-sums."""
    logit = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * (SCALE * LOG2E) + added * LOG2E
    seen = q_segment[:, None] == k_segment
    p = tl.where(seen, tl.exp2(logit - lse[:, None]), 0.0)
    toward = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
    return p, tl.where(seen, p * (toward - delta[:, None]), 0.0)


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,
    q_rows_ptr, q_segment_ptr, q_start_ptr, k_rows_ptr, k_segment_ptr, k_start_ptr, rel_h_ptr, rel_w_ptr, bias_ptr,
    q_stride, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, q_slots, k_slots, KH, KW, LQ, LK,
    D: tl.constexpr, DV: tl.constexpr, SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    UPCAST: tl.constexpr
):  # fmt: skip
    """Output and log-sum of BLOCK_Q query slots of one head."""
    h, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first = tl.program_id(0) * BLOCK_Q
    last = tl.minimum(first + BLOCK_Q, q_slots) - 1
    q_slot, q_row, q_segment = _slots(first, q_slots, q_rows_ptr, q_segment_ptr, NO_QUERY, BLOCK_Q)
    real = q_segment >= 0
    q = _rows(q_ptr + h * q_stride_h, q_row, real, q_stride, D, BLOCK_D, ACC, UPCAST)
    k_begin = tl.load(k_start_ptr + tl.load(q_segment_ptr + first))
    k_end = tl.load(k_start_ptr + tl.load(q_segment_ptr + last) + 1)

    m = tl.full((BLOCK_Q,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_Q,), ACC)
    acc = tl.zeros((BLOCK_Q, BLOCK_DV), ACC)
    for k_first in tl.range(k_begin, k_end, BLOCK_K):
        k_slot, k_row, k_segment = _slots(k_first, k_end, k_rows_ptr, k_segment_ptr, NO_KEY, BLOCK_K)
        k = _rows(k_ptr + h * k_stride_h, k_row, k_segment >= 0, k_stride, D, BLOCK_D, ACC, UPCAST)
        v = _rows(v_ptr + h * v_stride_h, k_row, k_segment >= 0, v_stride, DV, BLOCK_DV, ACC, UPCAST)
        logit = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * (SCALE * LOG2E)
        if rel_h_ptr is not None or bias_ptr is not None:
            logit += LOG2E * _added(
                rel_h_ptr, rel_w_ptr, bias_ptr, q_start_ptr, k_start_ptr, k_segment_ptr, q_slot, q_row, q_segment,
                k_slot, k_segment, k_first, h, heads, KH, KW, LQ, LK, BLOCK_Q, BLOCK_K, WIDTH, ACC
            )  # fmt: skip
        logit = tl.where(q_segment[:, None] == k_segment, logit, float("-inf"))
        grown = tl.maximum(m, tl.max(logit, 1))
        base = tl.where(grown == float("-inf"), 0.0, grown)  # no key seen yet: -inf minus -inf would be NaN
        p = tl.exp2(logit - base[:, None])
        shrink = tl.exp2(m - base)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype), v, acc=acc * shrink[:, None], input_precision=PRECISION, out_dtype=ACC)
        m = grown

    seen = total > 0  # false for a query whose segment holds no key: zeros and -inf
    out = tl.where(seen[:, None], acc / tl.where(seen, total, 1.0)[:, None], 0.0)
    _put_rows(out_ptr + h * DV, out, q_row, real, heads * DV, DV, BLOCK_DV)
    tl.store(lse_ptr + q_row * heads + h, m + tl.log2(tl.where(seen, total, 1.0)), mask=real)


@triton.jit
def _backward_q_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, drel_h_ptr, drel_w_ptr,
    q_rows_ptr, q_segment_ptr, q_start_ptr, k_rows_ptr, k_segment_ptr, k_start_ptr, rel_h_ptr, rel_w_ptr, bias_ptr,
    q_stride, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, q_slots, k_slots, KH, KW, LQ, LK,
    D: tl.constexpr, DV: tl.constexpr, SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    UPCAST: tl.constexpr
):  # fmt: skip
    """dq, drel_h and drel_w of BLOCK_Q query slots of one head."""
    h, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first = tl.program_id(0) * BLOCK_Q
    last = tl.minimum(first + BLOCK_Q, q_slots) - 1
    q_slot, q_row, q_segment = _slots(first, q_slots, q_rows_ptr, q_segment_ptr, NO_QUERY, BLOCK_Q)
    real = q_segment >= 0
    q = _rows(q_ptr + h * q_stride_h, q_row, real, q_stride, D, BLOCK_D, ACC, UPCAST)
    grad = _rows(grad_ptr + h * DV, q_row, real, heads * DV, DV, BLOCK_DV, ACC, UPCAST)
    lse = tl.load(lse_ptr + q_row * heads + h, mask=real, other=0.0)
    delta = tl.load(delta_ptr + q_row * heads + h, mask=real, other=0.0)
    k_begin = tl.load(k_start_ptr + tl.load(q_segment_ptr + first))
    k_end = tl.load(k_start_ptr + tl.load(q_segment_ptr + last) + 1)

    dq = tl.zeros((BLOCK_Q, BLOCK_D), ACC)
    across = tl.zeros((BLOCK_Q, WIDTH), ACC)
    at = (q_row * heads + h)[:, None]
    for k_first in tl.range(k_begin, k_end, BLOCK_K):
        k_slot, k_row, k_segment = _slots(k_first, k_end, k_rows_ptr, k_segment_ptr, NO_KEY, BLOCK_K)
        k = _rows(k_ptr + h * k_stride_h, k_row, k_segment >= 0, k_stride, D, BLOCK_D, ACC, UPCAST)
        v = _rows(v_ptr + h * v_stride_h, k_row, k_segment >= 0, v_stride, DV, BLOCK_DV, ACC, UPCAST)
        added = 0.0
        if rel_h_ptr is not None or bias_ptr is not None:
            added = _added(
                rel_h_ptr, rel_w_ptr, bias_ptr, q_start_ptr, k_start_ptr, k_segment_ptr, q_slot, q_row, q_segment,
                k_slot, k_segment, k_first, h, heads, KH, KW, LQ, LK, BLOCK_Q, BLOCK_K, WIDTH, ACC
            )  # fmt: skip
        _, ds = _weights(q, k, v, grad, lse, delta, added, q_segment, k_segment, SCALE, PRECISION, ACC)
        dq = tl.dot(ds.to(k.dtype), k, acc=dq, input_precision=PRECISION, out_dtype=ACC)
        if rel_h_ptr is not None:
            segment = tl.load(k_segment_ptr + k_first)
            y = (k_first - tl.load(k_start_ptr + segment)) // WIDTH + tl.arange(0, BLOCK_K // WIDTH)
            by_cell = tl.reshape(ds, (BLOCK_Q, BLOCK_K // WIDTH, WIDTH))
            mine = (q_segment == segment)[:, None] & (y < KH)
            tl.store(drel_h_ptr + at * KH + y, tl.sum(by_cell, 2), mask=mine)
            across += tl.sum(by_cell, 1)

    _put_rows(dq_ptr + h * D, dq * SCALE, q_row, real, heads * D, D, BLOCK_D)
    if rel_h_ptr is not None:
        x = tl.arange(0, WIDTH)
        tl.store(drel_w_ptr + at * KW + x, across, mask=real[:, None] & (x < KW))


@triton.jit
def _backward_kv_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr,
    q_rows_ptr, q_segment_ptr, q_start_ptr, k_rows_ptr, k_segment_ptr, k_start_ptr, rel_h_ptr, rel_w_ptr, bias_ptr,
    q_stride, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, q_slots, k_slots, KH, KW, LQ, LK,
    D: tl.constexpr, DV: tl.constexpr, SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    UPCAST: tl.constexpr
):  # fmt: skip
    """dk and dv of BLOCK_K key slots of one head."""
    h, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first = tl.program_id(0) * BLOCK_K
    last = tl.minimum(first + BLOCK_K, k_slots) - 1
    k_slot, k_row, k_segment = _slots(first, k_slots, k_rows_ptr, k_segment_ptr, NO_KEY, BLOCK_K)
    real = k_segment >= 0
    k = _rows(k_ptr + h * k_stride_h, k_row, real, k_stride, D, BLOCK_D, ACC, UPCAST)
    v = _rows(v_ptr + h * v_stride_h, k_row, real, v_stride, DV, BLOCK_DV, ACC, UPCAST)
    q_begin = tl.load(q_start_ptr + tl.load(k_segment_ptr + first))
    q_end = tl.load(q_start_ptr + tl.load(k_segment_ptr + last) + 1)

    dk = tl.zeros((BLOCK_K, BLOCK_D), ACC)
    dv = tl.zeros((BLOCK_K, BLOCK_DV), ACC)
    for q_first in tl.range(q_begin, q_end, BLOCK_Q):
        q_slot, q_row, q_segment = _slots(q_first, q_end, q_rows_ptr, q_segment_ptr, NO_QUERY, BLOCK_Q)
        q = _rows(q_ptr + h * q_stride_h, q_row, q_segment >= 0, q_stride, D, BLOCK_D, ACC, UPCAST)
        grad = _rows(grad_ptr + h * DV, q_row, q_segment >= 0, heads * DV, DV, BLOCK_DV, ACC, UPCAST)
        lse = tl.load(lse_ptr + q_row * heads + h, mask=q_segment >= 0, other=0.0)
        delta = tl.load(delta_ptr + q_row * heads + h, mask=q_segment >= 0, other=0.0)
        added = 0.0
        if rel_h_ptr is not None or bias_ptr is not None:
            added = _added(
                rel_h_ptr, rel_w_ptr, bias_ptr, q_start_ptr, k_start_ptr, k_segment_ptr, q_slot, q_row, q_segment,
                k_slot, k_segment, first, h, heads, KH, KW, LQ, LK, BLOCK_Q, BLOCK_K, WIDTH, ACC
            )  # fmt: skip
        p, ds = _weights(q, k, v, grad, lse, delta, added, q_segment, k_segment, SCALE, PRECISION, ACC)
        dv = tl.dot(tl.trans(p).to(grad.dtype), grad, acc=dv, input_precision=PRECISION, out_dtype=ACC)
        dk = tl.dot(tl.trans(ds).to(q.dtype), q, acc=dk, input_precision=PRECISION, out_dtype=ACC)

    _put_rows(dk_ptr + h * D, dk * SCALE, k_row, real, heads * D, D, BLOCK_D)
    _put_rows(dv_ptr + h * DV, dv, k_row, real, heads * DV, DV, BLOCK_DV)


@triton.jit
def _backward_bias_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, lse_ptr, delta_ptr, partial_ptr,
    q_rows_ptr, q_segment_ptr, q_start_ptr, k_rows_ptr, k_segment_ptr, k_start_ptr, bias_ptr,
    q_stride, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, heads, LQ, LK, segments, share,
    D: tl.constexpr, DV: tl.constexpr, SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Sum of ds over `share` segments for one block of the (h, LQ, LK) table; the caller adds the parts in order."""
    h, part = (tl.program_id(1) % heads).to(tl.int64), tl.program_id(1) // heads
    columns = tl.cdiv(LK, BLOCK_K)
    q_place = tl.program_id(0) // columns * BLOCK_Q
    k_place = tl.program_id(0) % columns * BLOCK_K
    x, y = k_place + tl.arange(0, BLOCK_K), q_place + tl.arange(0, BLOCK_Q)
    inside = (y < LQ)[:, None] & (x < LK)
    added = tl.load(bias_ptr + (h * LQ + y)[:, None] * LK + x, mask=inside, other=0.0).to(ACC)

    total = tl.zeros((BLOCK_Q, BLOCK_K), ACC)
    for segment in tl.range(part * share, tl.minimum(part * share + share, segments)):
        q_begin, q_end = tl.load(q_start_ptr + segment) + q_place, tl.load(q_start_ptr + segment + 1)
        k_begin, k_end = tl.load(k_start_ptr + segment) + k_place, tl.load(k_start_ptr + segment + 1)
        _, q_row, q_segment = _slots(q_begin, q_end, q_rows_ptr, q_segment_ptr, NO_QUERY, BLOCK_Q)
        _, k_row, k_segment = _slots(k_begin, k_end, k_rows_ptr, k_segment_ptr, NO_KEY, BLOCK_K)
        q_real, k_real = q_segment >= 0, k_segment >= 0
        q = _rows(q_ptr + h * q_stride_h, q_row, q_real, q_stride, D, BLOCK_D, ACC, UPCAST)
        grad = _rows(grad_ptr + h * DV, q_row, q_real, heads * DV, DV, BLOCK_DV, ACC, UPCAST)
        k = _rows(k_ptr + h * k_stride_h, k_row, k_real, k_stride, D, BLOCK_D, ACC, UPCAST)
        v = _rows(v_ptr + h * v_stride_h, k_row, k_real, v_stride, DV, BLOCK_DV, ACC, UPCAST)
        lse = tl.load(lse_ptr + q_row * heads + h, mask=q_real, other=0.0)
        delta = tl.load(delta_ptr + q_row * heads + h, mask=q_real, other=0.0)
        _, ds = _weights(q, k, v, grad, lse, delta, added, q_segment, k_segment, SCALE, PRECISION, ACC)
        total += ds

    at = partial_ptr + ((part * heads + h) * LQ + y)[:, None] * LK + x
    tl.store(at, total, mask=inside)


def launch_forward(
    q: Tensor, k: Tensor, v: Tensor, layout: SegmentLayout, added: tuple[Tensor | None, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """Output (Nq, h, Dv) and base-2 log-sum (Nq, h) of `segment_attention`; `added` is rel_h, rel_w, bias."""
    out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
    lse = torch.empty(q.shape[:2], dtype=_sum_dtype(q), device=q.device)
    constants = _constants(q, v, layout, scale, backward=False, table=added[2] is not None)
    slots = len(layout.q_segment)
    if slots:
        grid = (triton.cdiv(slots, constants["BLOCK_Q"]), q.shape[1])
        pointers = (q, k, v, out, lse, *_tables(layout), *added)
        _forward_kernel[grid](*pointers, *_sizes(q, k, v, layout, added), **constants)
    return out, lse


def launch_backward(
    saved: tuple[Tensor, ...], grad: Tensor, layout: SegmentLayout, added: tuple[Tensor | None, ...], scale: float
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, rel_h, rel_w and bias; `saved` is q, k, v and what `launch_forward` returned."""
    q, k, v, out, lse = saved
    grad = grad.contiguous()
    delta = (grad.to(lse.dtype) * out).sum(-1)
    lse = lse.masked_fill(lse.isneginf(), float("inf"))  # then a query without keys recomputes weights of zero
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    rel_h, rel_w, bias = added
    drel_h, drel_w = (None if x is None else torch.empty_like(x) for x in (rel_h, rel_w))
    constants = _constants(q, v, layout, scale, backward=True, table=bias is not None)
    inputs, sizes = (q, k, v, grad, lse, delta), _sizes(q, k, v, layout, added)
    tables = (*_tables(layout), *added)
    slots = len(layout.q_segment), len(layout.k_segment)
    if slots[0]:
        grid = (triton.cdiv(slots[0], constants["BLOCK_Q"]), q.shape[1])
        _backward_q_kernel[grid](*inputs, dq, drel_h, drel_w, *tables, *sizes, **constants)
    if slots[1]:
        grid = (triton.cdiv(slots[1], constants["BLOCK_K"]), q.shape[1])
        _backward_kv_kernel[grid](*inputs, dk, dv, *tables, *sizes, **constants)
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


def padded_head(width: int) -> int:
    """Columns of a block that holds a head: a tensor core takes no fewer than 16."""
    return max(16, triton.next_power_of_2(width))


def _sum_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
