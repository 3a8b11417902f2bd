"""Attention inside paired windows of two grids: fine queries look at the coarse keys of their place (WAU, 2106.10637).

B batch, d spatial rank, S fine size and s coarse size per axis, r = S / s, h heads, c head width,
M window side on the coarse grid; a query window has r*M tokens per axis, so a pair covers one physical area.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F


def _windows(x: Tensor, window: Sequence[int], low: Sequence[int]) -> Tensor:
    """(B, *grid, h, c) to (B * windows, h, tokens, c); zero cells fill up to whole windows, `low` of them in front."""
    grid, d = x.shape[1:-2], len(window)
    high = [-(size + front) % side for size, front, side in zip(grid, low, window, strict=True)]
    pad = [n for front, back in zip(reversed(low), reversed(high), strict=True) for n in (front, back)]
    x = F.pad(x, [0, 0, 0, 0, *pad])
    for axis, side in enumerate(window):
        x = x.unflatten(1 + 2 * axis, (-1, side))  # (B, n_1, side_1, n_2, side_2, ..., h, c)
    order = [0, *range(1, 2 * d, 2), 2 * d + 1, *range(2, 2 * d + 1, 2), 2 * d + 2]
    x = x.permute(order)  # (B, n_1, ..., n_d, h, side_1, ..., side_d, c)
    return x.flatten(d + 2, 2 * d + 1).flatten(0, d)


def _grid(x: Tensor, batch: int, grid: Sequence[int], window: Sequence[int], low: Sequence[int]) -> Tensor:
    """Undo `_windows`: (B * windows, h, tokens, c) to (B, *grid, h, c), the fill dropped."""
    d = len(window)
    counts = [-(-(size + front) // side) for size, front, side in zip(grid, low, window, strict=True)]
    x = x.unflatten(2, list(window)).unflatten(0, [batch, *counts])  # (B, n_1..n_d, h, side_1..side_d, c)
    x = x.permute([0, *[n for axis in range(d) for n in (1 + axis, d + 2 + axis)], d + 1, 2 * d + 2])
    for axis in range(d):
        x = x.flatten(1 + axis, 2 + axis)
    keep = [slice(front, front + size) for front, size in zip(low, grid, strict=True)]
    return x[(slice(None), *keep)]


def _key_mask(k: Tensor, window: Sequence[int], low: Sequence[int]) -> Tensor | None:
    """(windows, 1, 1, tokens) boolean, False where a cell only fills a window; None if every cell is real."""
    grid = k.shape[1:-2]
    if not any(low) and all(size % side == 0 for size, side in zip(grid, window, strict=True)):
        return None
    real = torch.ones((1, *grid, 1, 1), dtype=torch.bool, device=k.device)
    return _windows(real, window, low).squeeze(-1).unsqueeze(2)


def _ratio(q: Tensor, k: Tensor) -> list[int]:
    """Fine cells per coarse cell and axis."""
    fine, coarse = q.shape[1:-2], k.shape[1:-2]
    if len(fine) != len(coarse) or any(big % small for big, small in zip(fine, coarse, strict=False)):
        raise ValueError(
            f"the query grid must be a whole multiple of the key grid on every axis, "
            f"got {tuple(fine)} over {tuple(coarse)}"
        )
    return [big // small for big, small in zip(fine, coarse, strict=True)]


def window_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Sequence[int],
    *,
    bias: Tensor | None = None,
    shift: bool = False,
    scale: float | None = None,
) -> Tensor:
    """What the op must equal: softmax over the whole window, written out; any device, any dtype."""
    ratio = _ratio(q, k)
    low = [side - side // 2 if shift and side > 1 else 0 for side in window]
    fine_window = [r * side for r, side in zip(ratio, window, strict=True)]
    fine_low = [r * front for r, front in zip(ratio, low, strict=True)]
    queries, keys, values = _windows(q, fine_window, fine_low), _windows(k, window, low), _windows(v, window, low)
    logits = queries @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    real = _key_mask(k, window, low)
    if real is not None:
        hidden = ~real.repeat(q.shape[0], 1, 1, 1)
        logits = logits.masked_fill(hidden, float("-inf"))
    return _grid(logits.softmax(-1) @ values, q.shape[0], q.shape[1:-2], fine_window, fine_low)


def _window_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, window: Sequence[int], bias: Tensor | None, shift: bool, scale: float | None
) -> Tensor:
    """The same through the fused CPU attention: the window batch never holds a matrix of logits in inference."""
    ratio = _ratio(q, k)
    low = [side - side // 2 if shift and side > 1 else 0 for side in window]
    fine_window = [r * side for r, side in zip(ratio, window, strict=True)]
    fine_low = [r * front for r, front in zip(ratio, low, strict=True)]
    queries, keys, values = _windows(q, fine_window, fine_low), _windows(k, window, low), _windows(v, window, low)
    real = _key_mask(k, window, low)
    mask = None if bias is None else bias.to(q.dtype).unsqueeze(0)
    if real is not None:
        fill = torch.zeros(real.shape, dtype=q.dtype, device=q.device).masked_fill(~real, float("-inf"))
        fill = fill.repeat(q.shape[0], 1, 1, 1)
        mask = fill if mask is None else mask + fill
    if mask is not None:
        mask = mask.expand(queries.shape[0], queries.shape[1], queries.shape[2], keys.shape[2])
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    return _grid(out, q.shape[0], q.shape[1:-2], fine_window, fine_low)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: Sequence[int],
    *,
    bias: Tensor | None = None,
    shift: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Let every fine cell attend to the coarse cells of its own window.

    Args:
        q: Fine queries, (B, *S, h, c), two or three grid axes, floating point.
        k: Coarse keys, (B, *s, h, c); S must be a whole multiple of s on each axis.
        v: Coarse values, (B, *s, h, c_v).
        window: M per axis on the coarse grid; grids that M does not divide are filled up, filled keys masked out.
        bias: Added to the logits of every window, (h, tokens of a query window, tokens of a key window).
        shift: Move both window grids by half a window; windows cut by the border hold only what lies inside it.
        scale: Factor on q k^T; c**-0.5 if not given.

    Returns:
        (B, *S, h, c_v) in the dtype of `q`.

    Raises:
        ValueError: The fine grid is not a whole multiple of the coarse one, or `bias` has another shape.
    """
    tokens = prod(window)
    fine = prod(_ratio(q, k)) * tokens
    if bias is not None and tuple(bias.shape) != (q.shape[-2], fine, tokens):
        raise ValueError(f"bias must be {(q.shape[-2], fine, tokens)} (heads, query, key), got {tuple(bias.shape)}")
    return _window_attention_cpu(q, k, v, window, bias, shift, scale)
