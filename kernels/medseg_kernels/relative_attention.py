"""Attention over a grid with decomposed relative position (SAM's image encoder; MViTv2, 2112.01526, section 4.1).

logit(i, j) = s q_i k_j + q_i Rh[y_i - y_j] + q_i Rw[x_i - x_j]: one learned vector per row offset and one per column
offset, both met by the unscaled query. Written as rel_h[i, y_j] + rel_w[i, x_j] the bias costs N (H + W) numbers
instead of N^2. B images, H x W grid of N tokens, h heads, D head width, M window side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.chunks import chunked_attention
from medseg_kernels.dispatch import autocast_together, is_recorded, scripted_as, uses_triton
from medseg_kernels.layout import layout_windows
from medseg_kernels.softmax_attention import default_scale, segment_attention
from medseg_kernels.window_chunks import chunked_windows
from medseg_kernels.windows import (
    Windows,
    cut_windows,
    is_full,
    join_windows,
    square_windows,
    window_rows,
    with_pad_rows,
)


def relative_position(
    q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, window: int | None = None
) -> tuple[Tensor, Tensor]:
    """Give the bias of each query per key row and per key column.

    Args:
        q: Unscaled queries, (B, H, W, h, D).
        rel_pos_h: Table over row offsets -(KH - 1) .. KH - 1, (2 KH - 1, D); other lengths are resized linearly.
        rel_pos_w: Table over column offsets, (2 KW - 1, D), alike.
        window: Side of the windows, so that KH = KW = window; without it the keys are the whole grid.

    Returns:
        (B, H, W, h, KH) and (B, H, W, h, KW).
    """
    height, width = q.shape[1:3]
    down = _by_offset(rel_pos_h.to(q.dtype), height, height if window is None else window)
    across = _by_offset(rel_pos_w.to(q.dtype), width, width if window is None else window)
    return torch.einsum("byxhd,ykd->byxhk", q, down), torch.einsum("byxhd,xkd->byxhk", q, across)


def _by_offset(table: Tensor, size: int, keys: int) -> Tensor:
    """(offsets, D) to (size, keys, D): entry [i, j] is the vector of offset (i mod keys) - j."""
    if len(table) != 2 * keys - 1:
        table = F.interpolate(table.T[None], 2 * keys - 1, mode="linear")[0].T
    query, key = torch.arange(size, device=table.device) % keys, torch.arange(keys, device=table.device)
    return table[query[:, None] - key + keys - 1]


def relative_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    window: int | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """What the op must equal: the published formula with its N x N bias; any device, any dtype."""
    cut = square_windows(list(q.shape[1:3]), window)
    rel_h, rel_w = relative_position(q, rel_pos_h, rel_pos_w, window)
    logits = (cut_windows(q, cut) * default_scale(q, scale)) @ cut_windows(k, cut, pad_k).mT
    logits = logits.unflatten(3, [rel_h.shape[4], rel_w.shape[4]])
    logits = logits + cut_windows(rel_h, cut)[..., None] + cut_windows(rel_w, cut)[..., None, :]
    values = cut_windows(v, cut, pad_v)
    return join_windows(logits.flatten(3).softmax(-1).to(v.dtype) @ values, cut, len(q))


@scripted_as(relative_attention_reference)
def relative_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rel_pos_h: Tensor,
    rel_pos_w: Tensor,
    *,
    window: int | None = None,
    pad_k: Tensor | None = None,
    pad_v: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Let every token attend to the whole grid, or to its window, with a bias by row and column offset.

    Args:
        q: Queries, (B, H, W, h, D), floating point; views of a fused projection are read in place.
        k: Keys, like `q`.
        v: Values, like `q`.
        rel_pos_h: Table over row offsets, (2 KH - 1, D), KH key rows; other lengths are resized linearly.
        rel_pos_w: Table over column offsets, (2 KW - 1, D), alike.
        window: M, side of square windows from the upper left corner; None attends over the whole grid.
        pad_k: Key of the places that fill up the last windows, (h, D). SAM pads before it projects, so there it is the
            bias of the key projection. Needed where M does not divide the grid.
        pad_v: Value of those places, (h, D).
        scale: Factor on q k^T, not on the bias; D**-0.5 if not given.

    Returns:
        (B, H, W, h, D) in the dtype of `q`.

    Raises:
        ValueError: M does not divide the grid and `pad_k` or `pad_v` is missing.
    """
    q, k, v = autocast_together(q, k, v)
    cut = square_windows(list(q.shape[1:3]), window)
    if (pad_k is None or pad_v is None) and not is_full(cut):
        raise ValueError(f"pad_k and pad_v must be given: window {window} does not divide the grid {cut.grid}")
    if uses_triton(q, k, v, rel_pos_h, rel_pos_w):
        return _through_the_core(q, k, v, (rel_pos_h, rel_pos_w), cut, window=window, pad=(pad_k, pad_v), scale=scale)
    if is_recorded() or q.device.type != "cpu":
        return relative_attention_reference(q, k, v, rel_pos_h, rel_pos_w, window, pad_k, pad_v, scale)
    rel, scale = relative_position(q, rel_pos_h, rel_pos_w, window), default_scale(q, scale)
    if window is not None:
        return chunked_windows(q, k, v, None, *rel, pad_k, pad_v, [window, window], False, None, scale)
    parts = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v, *rel)]
    return chunked_attention(*parts, scale).transpose(1, 2).unflatten(1, q.shape[1:3])


def _through_the_core(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: tuple[Tensor, Tensor],
    cut: Windows,
    *,
    window: int | None,
    pad: tuple[Tensor | None, Tensor | None],
    scale: float | None,
) -> Tensor:
    """The Triton path: one segment per window or image, rows read where they lie."""
    rel_h, rel_w = (x.flatten(0, 2) for x in relative_position(q, *tables, window))
    q_rows = window_rows(cut, len(q), q.device)
    k_rows, flat_k, flat_v = q_rows, k.flatten(0, 2), v.flatten(0, 2)
    if pad[0] is not None and pad[1] is not None:
        k_rows, flat_k, flat_v = with_pad_rows(q_rows, flat_k, flat_v, pad[0], pad[1])
    layout = layout_windows(q_rows, k_rows, grid=(cut.side[0], cut.side[1]))
    out = segment_attention(q.flatten(0, 2), flat_k, flat_v, layout, scale=scale, rel_h=rel_h, rel_w=rel_w)
    return out.unflatten(0, q.shape[:3])
