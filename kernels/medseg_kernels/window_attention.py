"""Attention inside paired windows of two grids: each query looks at the keys of its place (WAU, 2106.10637).

Queries may lie on a finer grid than the keys (WAU), on the same one (RAT, SAM2), or on a coarser one where a network
pools its queries (Hiera, 2306.00989). B batch, d spatial rank, S query grid, s key grid, r = S / s per axis, h heads,
c and c_v head widths, M window side on the key grid; a query window has r*M tokens per axis, so that a pair of windows
covers one physical area.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from medseg_kernels.dispatch import autocast_together, is_recorded, scripted_as, uses_triton, wants_gradients
from medseg_kernels.layout import layout_windows
from medseg_kernels.softmax_attention import default_scale, segment_attention
from medseg_kernels.window_chunks import chunked_windows
from medseg_kernels.windows import Windows, cut_windows, is_full, join_windows, pair_windows, window_rows, with_pad_rows

SMALL = 1024  # pairs of a window up to which training keeps the weights: there they are cheaper to keep than to redo


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: list[int],
    bias: Tensor | None = None,
    shift: bool = False,
    scale: float | None = None,
    stride: list[int] | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
) -> Tensor:
    """What the op must equal: softmax over the whole window, written out; any device, any dtype."""
    at_q, at_k = pair_windows(list(q.shape[1:-2]), list(k.shape[1:-2]), window, shift, stride)
    logits = cut_windows(q, at_q) @ cut_windows(k, at_k, pad_k).mT * default_scale(q, scale)
    if bias is not None:
        logits = logits + bias
    if pad_k is None and not is_full(at_k):
        empty = window_rows(at_k, len(q), q.device) < 0
        logits = logits.masked_fill(empty[:, None, None, :], float("-inf"))
    return join_windows(logits.softmax(-1).to(v.dtype) @ cut_windows(v, at_k, pad_v), at_q, len(q))


@scripted_as(window_attention_reference)
def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Sequence[int],
    *,
    bias: Tensor | None = None,
    shift: bool = False,
    scale: float | None = None,
    stride: Sequence[int] | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
) -> Tensor:
    """Let every query attend to the keys of its own window.

    Args:
        q: Queries, (B, *S, h, c), two or three grid axes, floating point.
        k: Keys, (B, *s, h, c); without `stride`, S must be a whole multiple of s on each axis.
        v: Values, (B, *s, h, c_v).
        window: M per axis on the key grid; grids that M does not divide are filled up, filled keys masked out.
        bias: Added to the logits of every window, (h, tokens of a query window, tokens of a key window).
        shift: Move both window grids by half a window; windows cut by the border hold only what lies inside it.
        scale: Factor on q k^T; c**-0.5 if not given.
        stride: Key cells per query and axis where queries were pooled; S must be s // stride.
        pad_k: Key of filled places, (h, c): they then take part, as in networks that pad before they project.
        pad_v: Value of filled places, (h, c_v); comes with `pad_k`.

    Returns:
        (B, *S, h, c_v) in the dtype of `q`.

    Raises:
        ValueError: The grids do not fit together, `bias` has another shape, or one of `pad_k`, `pad_v` is missing.
    """
    q, k, v = autocast_together(q, k, v)
    sides = list(window), None if stride is None else list(stride)
    at_q, at_k = pair_windows(list(q.shape[1:-2]), list(k.shape[1:-2]), sides[0], shift, sides[1])
    table = (q.shape[-2], prod(at_q.side), prod(at_k.side))
    if bias is not None and tuple(bias.shape) != table:
        raise ValueError(f"bias must be {table} (heads, query, key), got {tuple(bias.shape)}")
    if (pad_k is None) != (pad_v is None):
        raise ValueError("pad_k and pad_v come together")
    if uses_triton(q, k, v):
        return _through_the_core(q, k, v, at_q, at_k, bias=bias, scale=scale, pad=(pad_k, pad_v))
    trained = wants_gradients(q, k, v, bias, pad_k, pad_v)
    kept = trained and table[1] * table[2] <= SMALL and q.dtype != torch.bfloat16 and q.dtype != torch.float16
    if is_recorded() or q.device.type != "cpu" or kept:
        return window_attention_reference(q, k, v, sides[0], bias, shift, scale, sides[1], pad_k, pad_v)
    return chunked_windows(q, k, v, bias, None, None, pad_k, pad_v, sides[0], shift, sides[1], default_scale(q, scale))


def _through_the_core(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at_q: Windows,
    at_k: Windows,
    *,
    bias: Tensor | None,
    scale: float | None,
    pad: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """The Triton path: windows are read where they lie, by a table of rows."""
    rows = window_rows(at_k, len(q), q.device)
    flat_q, flat_k, flat_v = (x.flatten(0, -3) for x in (q, k, v))
    if pad[0] is not None and pad[1] is not None:
        rows, flat_k, flat_v = with_pad_rows(rows, flat_k, flat_v, pad[0], pad[1])
    layout = layout_windows(window_rows(at_q, len(q), q.device), rows)
    return segment_attention(flat_q, flat_k, flat_v, layout, scale=scale, bias=bias).unflatten(0, q.shape[:-2])
