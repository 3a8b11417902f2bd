"""Triton kernels of segment attention; `softmax_attention.py` says what they compute, `softmax_launch.py` runs them.

A forward program owns BLOCK_Q query slots of one head. It walks over the key slots of the segments those queries
belong to, BLOCK_K at a time, and keeps three things per query: the largest logit so far (m), the sum of
2**(logit - m) so far (total), and the sum of those weights times v (acc). When m grows, total and acc shrink by the
same factor. At the end acc / total is the output. No logit outlives its step: no attention matrix is ever in memory.

The backward pass recomputes the weights from the saved m and total, once per query block for dq and once per key block
for dk and dv; their log-sum in one number would lose digits where logits are large. With p the weight, g the output
gradient and delta = sum_d g out of each query,
    dv = p^T g,   ds = p (g v^T - delta),   dq = scale ds k,   dk = scale ds^T q,   dbias = ds.
Each gradient is summed by one program in a fixed order: no atomics, the same bits on every run.

Exponents are in base 2 because the hardware's are; the largest logit is taken off before the change of base, since
log2(e) rounded would cost a logit of 500 three digits. Offsets are int64: a batch of volumes passes 2**31 elements.
Whether a query sees a key is one comparison of segment ids; empty slots bear ids that match nothing. Where a block
spans several segments, a weight of zero would still carry a foreign NaN or infinity into a sum, as 0 * NaN is NaN. Each
kernel is therefore compiled and launched twice, plainly for blocks of one segment, and with SPANS and `_cleaned` for
the others; a program whose block is of the other kind ends at once.
"""

from __future__ import annotations

from medseg_kernels.dispatch import constant, tl, triton

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
def _cleaned(x):
    """x without NaN and infinities; and what to add to the weights of its segment per row, NaN where it held one."""
    finite = tl.abs(x) < float("inf")
    broken = tl.max(tl.where(finite, 0, 1), 1) > 0
    return tl.where(finite, x, 0.0).to(x.dtype), tl.where(broken, float("nan"), 0.0)


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
    q, k, v, grad, m, total, delta, added, q_segment, k_segment,
    SCALE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Weights p and logit gradients ds of one block, both (BLOCK_Q, BLOCK_K), recomputed from the saved m and total."""
    logit = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * SCALE + added
    seen = q_segment[:, None] == k_segment
    p = tl.where(seen, tl.exp2((logit - m[:, None]) * LOG2E) / total[:, None], 0.0)
    toward = tl.dot(grad, tl.trans(v), input_precision=PRECISION, out_dtype=ACC)
    return p, tl.where(seen, p * (toward - delta[:, None]), 0.0)


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, m_ptr, total_ptr,
    q_rows_ptr, q_segment_ptr, q_start_ptr, k_rows_ptr, k_segment_ptr, k_start_ptr, rel_h_ptr, rel_w_ptr, bias_ptr,
    q_stride, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, q_slots, k_slots, KH, KW, LQ, LK,
    D: tl.constexpr, DV: tl.constexpr, SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    UPCAST: tl.constexpr, SPANS: tl.constexpr
):  # fmt: skip
    """Output, m and total of BLOCK_Q query slots of one head."""
    h, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first = tl.program_id(0) * BLOCK_Q
    last = tl.minimum(first + BLOCK_Q, q_slots) - 1
    q_slot, q_row, q_segment = _slots(first, q_slots, q_rows_ptr, q_segment_ptr, NO_QUERY, BLOCK_Q)
    real = q_segment >= 0
    q = _rows(q_ptr + h * q_stride_h, q_row, real, q_stride, D, BLOCK_D, ACC, UPCAST)
    low, high = tl.load(q_segment_ptr + first), tl.load(q_segment_ptr + last)
    if (low != high) != SPANS:
        return
    k_begin, k_end = tl.load(k_start_ptr + low), tl.load(k_start_ptr + high + 1)

    m = tl.full((BLOCK_Q,), float("-inf"), ACC)
    total = tl.zeros((BLOCK_Q,), ACC)
    acc = tl.zeros((BLOCK_Q, BLOCK_DV), ACC)
    for k_first in tl.range(k_begin, k_end, BLOCK_K):
        k_slot, k_row, k_segment = _slots(k_first, k_end, k_rows_ptr, k_segment_ptr, NO_KEY, BLOCK_K)
        k = _rows(k_ptr + h * k_stride_h, k_row, k_segment >= 0, k_stride, D, BLOCK_D, ACC, UPCAST)
        v = _rows(v_ptr + h * v_stride_h, k_row, k_segment >= 0, v_stride, DV, BLOCK_DV, ACC, UPCAST)
        logit = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC) * SCALE
        if rel_h_ptr is not None or bias_ptr is not None:
            logit += _added(
                rel_h_ptr, rel_w_ptr, bias_ptr, q_start_ptr, k_start_ptr, k_segment_ptr, q_slot, q_row, q_segment,
                k_slot, k_segment, k_first, h, heads, KH, KW, LQ, LK, BLOCK_Q, BLOCK_K, WIDTH, ACC
            )  # fmt: skip
        logit = tl.where(q_segment[:, None] == k_segment, logit, float("-inf"))
        grown = tl.maximum(m, tl.max(logit, 1))
        base = tl.where(grown == float("-inf"), 0.0, grown)  # no key seen yet: -inf minus -inf would be NaN
        p = tl.exp2((logit - base[:, None]) * LOG2E)
        shrink = tl.exp2((m - base) * LOG2E)
        total = total * shrink + tl.sum(p, 1)
        if SPANS:
            v, taint = _cleaned(v)
            p = tl.where(q_segment[:, None] == k_segment, p + taint, 0.0)
        acc = tl.dot(p.to(v.dtype), v, acc=acc * shrink[:, None], input_precision=PRECISION, out_dtype=ACC)
        m = grown

    seen = total != 0  # true for NaN, false for a query whose segment holds no key: it gets zeros
    out = tl.where(seen[:, None], acc / tl.where(seen, total, 1.0)[:, None], 0.0)
    _put_rows(out_ptr + h * DV, out, q_row, real, heads * DV, DV, BLOCK_DV)
    tl.store(m_ptr + q_row * heads + h, m, mask=real)
    tl.store(total_ptr + q_row * heads + h, total, mask=real)


@triton.jit
def _backward_q_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, m_ptr, total_ptr, delta_ptr, out_ptr, dq_ptr, drel_h_ptr, drel_w_ptr,
    q_rows_ptr, q_segment_ptr, q_start_ptr, k_rows_ptr, k_segment_ptr, k_start_ptr, rel_h_ptr, rel_w_ptr, bias_ptr,
    q_stride, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, q_slots, k_slots, KH, KW, LQ, LK,
    D: tl.constexpr, DV: tl.constexpr, SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    UPCAST: tl.constexpr, SPANS: tl.constexpr
):  # fmt: skip
    """dq, drel_h, drel_w and, for the kernels that follow, delta of BLOCK_Q query slots of one head."""
    h, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first = tl.program_id(0) * BLOCK_Q
    last = tl.minimum(first + BLOCK_Q, q_slots) - 1
    q_slot, q_row, q_segment = _slots(first, q_slots, q_rows_ptr, q_segment_ptr, NO_QUERY, BLOCK_Q)
    real = q_segment >= 0
    q = _rows(q_ptr + h * q_stride_h, q_row, real, q_stride, D, BLOCK_D, ACC, UPCAST)
    grad = _rows(grad_ptr + h * DV, q_row, real, heads * DV, DV, BLOCK_DV, ACC, UPCAST)
    m = tl.load(m_ptr + q_row * heads + h, mask=real, other=0.0)
    total = tl.load(total_ptr + q_row * heads + h, mask=real, other=1.0)
    out = _rows(out_ptr + h * DV, q_row, real, heads * DV, DV, BLOCK_DV, ACC, UPCAST)
    # The diagonal of a product: added up like g v^T in `_weights`, it cancels exactly where one key has all the weight.
    pairs = tl.dot(grad, tl.trans(out), input_precision=PRECISION, out_dtype=ACC)
    same = tl.arange(0, BLOCK_Q)[:, None] == tl.arange(0, BLOCK_Q)
    delta = tl.sum(tl.where(same, pairs, 0.0), 1)
    tl.store(delta_ptr + q_row * heads + h, delta, mask=real)
    low, high = tl.load(q_segment_ptr + first), tl.load(q_segment_ptr + last)
    if (low != high) != SPANS:
        return
    k_begin, k_end = tl.load(k_start_ptr + low), tl.load(k_start_ptr + high + 1)

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
        _, ds = _weights(q, k, v, grad, m, total, delta, added, q_segment, k_segment, SCALE, PRECISION, ACC)
        if SPANS:
            k, taint = _cleaned(k)
            ds = tl.where(q_segment[:, None] == k_segment, ds + taint, 0.0)
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
    q_ptr, k_ptr, v_ptr, grad_ptr, m_ptr, total_ptr, delta_ptr, dk_ptr, dv_ptr,
    q_rows_ptr, q_segment_ptr, q_start_ptr, k_rows_ptr, k_segment_ptr, k_start_ptr, rel_h_ptr, rel_w_ptr, bias_ptr,
    q_stride, q_stride_h, k_stride, k_stride_h, v_stride, v_stride_h, q_slots, k_slots, KH, KW, LQ, LK,
    D: tl.constexpr, DV: tl.constexpr, SCALE: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    UPCAST: tl.constexpr, SPANS: tl.constexpr
):  # fmt: skip
    """dk and dv of BLOCK_K key slots of one head."""
    h, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first = tl.program_id(0) * BLOCK_K
    last = tl.minimum(first + BLOCK_K, k_slots) - 1
    k_slot, k_row, k_segment = _slots(first, k_slots, k_rows_ptr, k_segment_ptr, NO_KEY, BLOCK_K)
    real = k_segment >= 0
    k = _rows(k_ptr + h * k_stride_h, k_row, real, k_stride, D, BLOCK_D, ACC, UPCAST)
    v = _rows(v_ptr + h * v_stride_h, k_row, real, v_stride, DV, BLOCK_DV, ACC, UPCAST)
    low, high = tl.load(k_segment_ptr + first), tl.load(k_segment_ptr + last)
    if (low != high) != SPANS:
        return
    q_begin, q_end = tl.load(q_start_ptr + low), tl.load(q_start_ptr + high + 1)

    dk = tl.zeros((BLOCK_K, BLOCK_D), ACC)
    dv = tl.zeros((BLOCK_K, BLOCK_DV), ACC)
    for q_first in tl.range(q_begin, q_end, BLOCK_Q):
        q_slot, q_row, q_segment = _slots(q_first, q_end, q_rows_ptr, q_segment_ptr, NO_QUERY, BLOCK_Q)
        q = _rows(q_ptr + h * q_stride_h, q_row, q_segment >= 0, q_stride, D, BLOCK_D, ACC, UPCAST)
        grad = _rows(grad_ptr + h * DV, q_row, q_segment >= 0, heads * DV, DV, BLOCK_DV, ACC, UPCAST)
        m = tl.load(m_ptr + q_row * heads + h, mask=q_segment >= 0, other=0.0)
        total = tl.load(total_ptr + q_row * heads + h, mask=q_segment >= 0, other=1.0)
        delta = tl.load(delta_ptr + q_row * heads + h, mask=q_segment >= 0, other=0.0)
        added = 0.0
        if rel_h_ptr is not None or bias_ptr is not None:
            added = _added(
                rel_h_ptr, rel_w_ptr, bias_ptr, q_start_ptr, k_start_ptr, k_segment_ptr, q_slot, q_row, q_segment,
                k_slot, k_segment, first, h, heads, KH, KW, LQ, LK, BLOCK_Q, BLOCK_K, WIDTH, ACC
            )  # fmt: skip
        p, ds = _weights(q, k, v, grad, m, total, delta, added, q_segment, k_segment, SCALE, PRECISION, ACC)
        if SPANS:
            grad, taint = _cleaned(grad)
            p = tl.where(q_segment[:, None] == k_segment, p + taint[:, None], 0.0)
            q, taint = _cleaned(q)
            ds = tl.where(q_segment[:, None] == k_segment, ds + taint[:, None], 0.0)
        dv = tl.dot(tl.trans(p).to(grad.dtype), grad, acc=dv, input_precision=PRECISION, out_dtype=ACC)
        dk = tl.dot(tl.trans(ds).to(q.dtype), q, acc=dk, input_precision=PRECISION, out_dtype=ACC)

    _put_rows(dk_ptr + h * D, dk * SCALE, k_row, real, heads * D, D, BLOCK_D)
    _put_rows(dv_ptr + h * DV, dv, k_row, real, heads * DV, DV, BLOCK_DV)


@triton.jit
def _backward_bias_kernel(
    q_ptr, k_ptr, v_ptr, grad_ptr, m_ptr, total_ptr, delta_ptr, partial_ptr,
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

    acc = tl.zeros((BLOCK_Q, BLOCK_K), ACC)
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
        m = tl.load(m_ptr + q_row * heads + h, mask=q_real, other=0.0)
        total = tl.load(total_ptr + q_row * heads + h, mask=q_real, other=1.0)
        delta = tl.load(delta_ptr + q_row * heads + h, mask=q_real, other=0.0)
        _, ds = _weights(q, k, v, grad, m, total, delta, added, q_segment, k_segment, SCALE, PRECISION, ACC)
        acc += ds

    at = partial_ptr + ((part * heads + h) * LQ + y)[:, None] * LK + x
    tl.store(at, acc, mask=inside)
