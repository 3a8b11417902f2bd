"""Softmax attention within segments, out_i = sum_j softmax_j(s q_i k_j + b_ij) v_j over the keys of i's segment.

The core that region, window, relative-position and rotary attention share: ragged segments, as many keys as one likes
per query, rows gathered from anywhere, values wider or narrower than keys. It reads q, k and v where the model holds
them and never writes a matrix of logits, so memory grows with the number of tokens (Milakov and Gimelshein,
1805.02867, eq. 5-6; Dao et al., 2205.14135, algorithm 1; gradients as in 2205.14135, appendix B.2).

Nq and Nk rows, h heads, D key width, Dv value width, S segments (`layout.py`). The kernels are in `softmax_kernels.py`,
the CPU path in `buckets.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg_kernels.buckets import Bucket, attend, attend_backward, buckets
from medseg_kernels.dispatch import autocast_together, is_recorded, outside_autocast, scripted_as, uses_triton
from medseg_kernels.layout import SegmentLayout, padded_width
from medseg_kernels.softmax_launch import launch_backward, launch_forward


def segment_attention_with_lse_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SegmentLayout,
    scale: float | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What the op must equal: one segment after the other, logits written out; output and log-sum."""
    out = torch.zeros([q.shape[0], q.shape[1], v.shape[2]], dtype=q.dtype, device=q.device)
    lse = torch.full([q.shape[0], q.shape[1]], float("-inf"), dtype=q.dtype, device=q.device)
    q_rows, k_rows = _given(layout.q_rows, layout.q_segment), _given(layout.k_rows, layout.k_segment)
    grid = layout.grid
    for segment in range(layout.q_start.shape[0] - 1):
        at_q = q_rows[int(layout.q_start[segment]) : int(layout.q_start[segment + 1])].long()
        at_k = k_rows[int(layout.k_start[segment]) : int(layout.k_start[segment + 1])].long()
        place_q, place_k = (at_q >= 0).nonzero().flatten(), (at_k >= 0).nonzero().flatten()
        at_q, at_k = at_q[place_q], at_k[place_k]
        if at_q.numel() == 0 or at_k.numel() == 0:
            continue
        logits = torch.einsum("ihd,jhd->hij", q[at_q], k[at_k]) * default_scale(q, scale)
        if rel_h is not None and rel_w is not None and grid is not None:
            width = padded_width(grid)
            logits = logits + rel_h[at_q].transpose(0, 1)[:, :, place_k // width]
            logits = logits + rel_w[at_q].transpose(0, 1)[:, :, place_k % width]
        if bias is not None:
            logits = logits + bias[:, place_q[:, None], place_k]
        out = out.index_copy(0, at_q, torch.einsum("hij,jhd->ihd", logits.softmax(-1).to(v.dtype), v[at_k]))
        lse = lse.index_copy(0, at_q, logits.logsumexp(-1).T.to(lse.dtype))
    return out, lse


def segment_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SegmentLayout,
    scale: float | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The output of `segment_attention_with_lse_reference` alone."""
    return segment_attention_with_lse_reference(q, k, v, layout, scale, rel_h, rel_w, bias)[0]


@scripted_as(segment_attention_reference)
def segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SegmentLayout,
    *,
    scale: float | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Let every query attend to the keys of its own segment.

    Args:
        q: Queries, (Nq, h, D), floating point, any strides with neighbouring numbers in the last axis.
        k: Keys, (Nk, h, D), same dtype.
        v: Values, (Nk, h, Dv), same dtype.
        layout: Which rows form which segment; must name every row of q and of k once.
        scale: Factor on q k^T; D**-0.5 if not given. RAT's is h**-0.5.
        rel_h: Bias per query and key grid row, (Nq, h, KH); needs `layout.grid`, comes with `rel_w`.
        rel_w: Bias per query and key grid column, (Nq, h, KW).
        bias: Bias by place within the segment, shared by all segments, (h, places of queries, places of keys).

    Returns:
        (Nq, h, Dv) in the dtype of q. A query whose segment holds no key gets zeros and zero gradients.

    Raises:
        ValueError: Shapes do not fit together, or both kinds of bias are given.
    """
    return segment_attention_with_lse(q, k, v, layout, scale=scale, rel_h=rel_h, rel_w=rel_w, bias=bias)[0]


def segment_attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SegmentLayout,
    *,
    scale: float | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Give what `segment_attention` gives, and the log of each softmax sum to merge partial results by.

    Returns:
        (Nq, h, Dv), and (Nq, h) float32 (-inf where the segment holds no key), through which no gradient flows.
    """
    q, k, v = autocast_together(q, k, v)
    _check(q, k, v, layout, rel_h, rel_w, bias)
    biased = rel_h is not None or bias is not None
    if uses_triton(q, k, v, layout.q_segment) or (q.device.type == "cpu" and not biased and not is_recorded()):
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        added = (None if x is None else x.contiguous() for x in (rel_h, rel_w, bias))
        tables = (layout.q_rows, layout.q_segment, layout.q_start, layout.k_rows, layout.k_segment, layout.k_start)
        out, sums = _segment_attention(q, k, v, *tables, *added, default_scale(q, scale), list(layout.grid or ()))
        return out, sums[0] + sums[1].log()
    out, lse = segment_attention_with_lse_reference(q, k, v, layout, scale, rel_h, rel_w, bias)
    return out, lse.detach()


@torch.library.custom_op("medseg::segment_attention", mutates_args=())
def _segment_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_rows: Tensor | None,
    q_segment: Tensor,
    q_start: Tensor,
    k_rows: Tensor | None,
    k_segment: Tensor,
    k_start: Tensor,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    bias: Tensor | None,
    scale: float,
    grid: list[int],
) -> tuple[Tensor, Tensor]:
    """The op that compilers and exporters see: flat arguments, output and sums.

    The sums, (2, Nq, h), are the largest logit and the sum of exp(logit - largest) of each query. PyTorch's fused
    attention on a CPU knows only the logarithm of the whole, which stands there as the largest, over a sum of one.
    """
    layout = _layout(q_rows, q_segment, q_start, k_rows, k_segment, k_start, grid)
    with outside_autocast(q.device):
        if uses_triton(q, k, v):
            return launch_forward(q, k, v, layout, (rel_h, rel_w, bias), scale)
        out, lse = attend(q, k, v, _buckets(layout, q.shape[1]), scale)
        return out, torch.stack((lse, torch.ones_like(lse)))


@torch.library.custom_op("medseg::segment_attention_backward", mutates_args=())
def _segment_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    q_rows: Tensor | None,
    q_segment: Tensor,
    q_start: Tensor,
    k_rows: Tensor | None,
    k_segment: Tensor,
    k_start: Tensor,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    bias: Tensor | None,
    scale: float,
    grid: list[int],
) -> list[Tensor]:
    """Gradients of q, k and v, then of each bias that was given."""
    layout = _layout(q_rows, q_segment, q_start, k_rows, k_segment, k_start, grid)
    with outside_autocast(q.device):
        if uses_triton(q, k, v):
            grads = launch_backward((q, k, v, out, sums), grad, layout, (rel_h, rel_w, bias), scale)
            return [x for x in grads if x is not None]
        return list(attend_backward((q, k, v, out, sums[0]), grad, _buckets(layout, q.shape[1]), scale))


@_segment_attention.register_fake
def _(q, k, v, q_rows, q_segment, q_start, k_rows, k_segment, k_start, rel_h, rel_w, bias, scale, grid):
    exact = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape[0], q.shape[1], v.shape[2]), q.new_empty((2, *q.shape[:2]), dtype=exact)


@_segment_attention_backward.register_fake
def _(grad, q, k, v, out, sums, *rest):
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, *rest[6:9]) if x is not None]


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale, ctx.grid = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, *rest, out, sums = ctx.saved_tensors
    found = iter(_segment_attention_backward(grad, q, k, v, out, sums, *rest, ctx.scale, ctx.grid))
    first = [next(found) for _ in range(3)]
    added = [None if x is None else next(found) for x in rest[6:]]
    return *first, *[None] * 6, *added, None, None


_segment_attention.register_autograd(_differentiate, setup_context=_save)


def _layout(q_rows, q_segment, q_start, k_rows, k_segment, k_start, grid: list[int]) -> SegmentLayout:
    return SegmentLayout(
        q_rows=q_rows,
        q_segment=q_segment,
        q_start=q_start,
        k_rows=k_rows,
        k_segment=k_segment,
        k_start=k_start,
        grid=(grid[0], grid[1]) if grid else None,
    )


def _buckets(layout: SegmentLayout, heads: int) -> list[Bucket]:
    q_rows, k_rows = _given(layout.q_rows, layout.q_segment), _given(layout.k_rows, layout.k_segment)
    return list(buckets(q_rows, layout.q_start, k_rows, layout.k_start, heads))


def _given(rows: Tensor | None, segment: Tensor) -> Tensor:
    """Row of each slot, also where the layout leaves it to the slot's own number."""
    return torch.arange(segment.shape[0], device=segment.device) if rows is None else rows


def default_scale(q: Tensor, scale: float | None) -> float:
    """`scale`, or one over the root of the head width where it is not given."""
    return q.shape[-1] ** -0.5 if scale is None else float(scale)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: SegmentLayout,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    bias: Tensor | None,
) -> None:
    if q.ndim != 3 or k.shape[1:] != q.shape[1:] or v.shape[:2] != k.shape[:2]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v must be (Nq, h, D), (Nk, h, D), (Nk, h, Dv), got {shapes}")
    if (rel_h is None) != (rel_w is None) or (rel_h is not None and bias is not None):
        raise ValueError("rel_h and rel_w come together, and never with bias")
    if rel_h is not None and rel_w is not None and layout.grid != (rel_h.shape[-1], rel_w.shape[-1]):
        raise ValueError(
            f"rel_h and rel_w must fit the key grid {layout.grid}, got {rel_h.shape[-1]}, {rel_w.shape[-1]}"
        )
