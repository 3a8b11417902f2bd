"""Attention inside paired windows of two grids: each query looks at the keys of its place (WAU, 2106.10637).

Queries may lie on a finer grid than the keys (WAU), on the same one (RAT, SAM2), or on a coarser one where a network
pools its queries (Hiera, 2306.00989). B batch, d spatial rank, S query grid, s key grid, r = S / s per axis, h heads,
c and c_v head widths, M window side on the key grid; a query window has r*M tokens per axis, so that a pair of windows
covers one physical area.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import autocast_together, is_recorded, uses_triton
from medseg_kernels.layout import layout_windows
from medseg_kernels.softmax_attention import segment_attention
from medseg_kernels.window_chunks import biased_windows

SMALL = 1024  # pairs of a window up to which plain batched products beat the fused CPU attention's fixed cost


@dataclass(frozen=True)
class Windows:
    """How one grid is cut.

    Args:
        grid: Cells per axis.
        side: Cells of a window per axis.
        low: Empty cells in front of the grid, per axis.
        count: Windows per axis; together they hold `low` and the grid, and end in empty cells.
    """

    grid: Sequence[int]
    side: Sequence[int]
    low: Sequence[int]
    count: Sequence[int]

    @property
    def full(self) -> bool:
        """Whether there are no empty cells."""
        return all(side * n == size for side, n, size in zip(self.side, self.count, self.grid, strict=True))

    def cut(self, x: Tensor) -> Tensor:
        """(B, *grid, h, c) to (B * windows, h, tokens, c), zeros in the empty cells."""
        d = len(self.side)
        parts = zip(self.grid, self.side, self.low, self.count, strict=True)
        around = [(front, count * side - front - size) for size, side, front, count in parts]
        if any(front or back for front, back in around):
            x = F.pad(x, [0, 0, 0, 0, *[n for pair in reversed(around) for n in pair]])
        return self._by_window(x).flatten(d + 2, 2 * d + 1).flatten(0, d)

    def _by_window(self, x: Tensor) -> Tensor:
        """(B, *whole grid, h, c) seen as (B, *count, h, *side, c), where nothing sticks out."""
        d = len(self.side)
        for axis, side in enumerate(self.side):
            x = x.unflatten(1 + 2 * axis, (-1, side))  # (B, n_1, side_1, n_2, side_2, ..., h, c)
        return x.permute([0, *range(1, 2 * d, 2), 2 * d + 1, *range(2, 2 * d + 1, 2), 2 * d + 2])

    def take(self, x: Tensor, pad: Tensor | None = None) -> Tensor:
        """What `cut` gives, `pad` (h, c) in the empty cells, by one gather of whole tokens: no padded copy between."""
        rows = self.rows(len(x), x.device)
        empty = (rows < 0).flatten()
        taken = x.flatten(0, -3).index_select(0, rows.clamp(min=0).flatten())
        if not self.full:
            filling = 0.0 if pad is None else pad.to(x.dtype)
            taken = torch.where(empty[:, None, None], filling, taken)
        return taken.unflatten(0, rows.shape).transpose(1, 2)

    def join(self, x: Tensor, batch: int) -> Tensor:
        """Undo `cut`: (B * windows, h, tokens, c) to (B, *grid, h, c), the empty cells dropped."""
        d = len(self.side)
        x = x.unflatten(2, list(self.side)).unflatten(0, [batch, *self.count])  # (B, n_1..n_d, h, side_1..side_d, c)
        x = x.permute([0, *[n for axis in range(d) for n in (1 + axis, d + 2 + axis)], d + 1, 2 * d + 2])
        for axis in range(d):
            x = x.flatten(1 + axis, 2 + axis)
        keep = [slice(front, front + size) for front, size in zip(self.low, self.grid, strict=True)]
        return x[(slice(None), *keep)]

    def put(self, x: Tensor, out: Tensor) -> None:
        """Write what `join` gives into `out`, (B, *grid, h, c), without a copy between where the windows are full."""
        if self.full:
            self._by_window(out).copy_(x.unflatten(2, list(self.side)).unflatten(0, [len(out), *self.count]))
        else:
            out.copy_(self.join(x, len(out)))

    def rows_of_windows(self) -> Iterator[tuple[tuple[slice, ...], Windows]]:
        """One row of windows along the last axis after the other: where its cells are, and how they are cut."""
        for place in product(*(range(n) for n in self.count[:-1])):
            first = [n * side - front for n, side, front in zip(place, self.side, self.low, strict=False)]
            cells = tuple(
                slice(max(0, begin), max(0, min(size, begin + side)))
                for begin, side, size in zip(first, self.side, self.grid, strict=False)
            )
            grid = [max(0, at.stop - at.start) for at in cells]
            low = [max(0, -begin) for begin in first]
            count = [1] * len(place)
            yield cells, Windows([*grid, self.grid[-1]], self.side, [*low, self.low[-1]], [*count, self.count[-1]])

    def rows(self, batch: int, device: torch.device) -> Tensor:
        """Row of (B * cells) per window and place, (B * windows, tokens); -1 in the empty cells."""
        numbers = torch.arange(1, 1 + batch * prod(self.grid), device=device).view(batch, *self.grid, 1, 1)
        return self.cut(numbers)[:, 0, :, 0] - 1

    def real(self, batch: int, device: torch.device) -> Tensor | None:
        """(B * windows, tokens) boolean, False in the empty cells; None if there are none."""
        return None if self.full else self.rows(batch, device) >= 0


def pair_windows(
    q: Tensor, k: Tensor, window: Sequence[int], shift: bool, stride: Sequence[int] | None
) -> tuple[Windows, Windows]:
    """Windows of the query grid and of the key grid that cover the same places.

    Raises:
        ValueError: The grids are no whole multiples of one another, or the stride does not divide the window.
    """
    fine, coarse = q.shape[1:-2], k.shape[1:-2]
    low = [side - side // 2 if shift and side > 1 else 0 for side in window]
    count = [-(-(size + front) // side) for size, front, side in zip(coarse, low, window, strict=True)]
    keys = Windows(coarse, list(window), low, count)
    if stride is not None:
        if shift:
            raise ValueError("windows of pooled queries cannot be shifted: give stride or shift, not both")
        pooled = [size // step for size, step in zip(coarse, stride, strict=True)]
        if list(fine) != pooled or any(side % step for side, step in zip(window, stride, strict=True)):
            raise ValueError(f"queries pooled by {tuple(stride)} must have the grid {pooled}, got {tuple(fine)}")
        return Windows(fine, [a // b for a, b in zip(window, stride, strict=True)], [0] * len(low), count), keys
    if len(fine) != len(coarse) or any(big % small for big, small in zip(fine, coarse, strict=False)):
        raise ValueError(
            f"the query grid must be a whole multiple of the key grid on every axis, "
            f"got {tuple(fine)} over {tuple(coarse)}"
        )
    ratio = [big // small for big, small in zip(fine, coarse, strict=True)]
    sides, fronts = ([r * n for r, n in zip(ratio, numbers, strict=True)] for numbers in (window, low))
    return Windows(fine, sides, fronts, count), keys


def window_attention_reference(
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
    """What the op must equal: softmax over the whole window, written out; any device, any dtype."""
    at_q, at_k = pair_windows(q, k, window, shift, stride)
    real = at_k.real(len(q), q.device)
    keys, values = _filled(at_k.cut(k), real, pad_k), _filled(at_k.cut(v), real, pad_v)
    logits = at_q.cut(q) @ keys.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias
    if real is not None and pad_k is None:
        logits = logits.masked_fill(~real[:, None, None, :], float("-inf"))
    return at_q.join(logits.softmax(-1).to(v.dtype) @ values, len(q))


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
    at_q, at_k = pair_windows(q, k, window, shift, stride)
    table = (q.shape[-2], prod(at_q.side), prod(at_k.side))
    if bias is not None and tuple(bias.shape) != table:
        raise ValueError(f"bias must be {table} (heads, query, key), got {tuple(bias.shape)}")
    if (pad_k is None) != (pad_v is None):
        raise ValueError("pad_k and pad_v come together")
    if uses_triton(q, k, v):
        return _through_the_core(q, k, v, at_q, at_k, bias=bias, scale=scale, pad=(pad_k, pad_v))
    if table[1] * table[2] <= SMALL and q.dtype in (torch.float32, torch.float64):
        options = {"bias": bias, "shift": shift, "scale": scale, "stride": stride, "pad_k": pad_k, "pad_v": pad_v}
        return window_attention_reference(q, k, v, window, **options)
    given = [x for x in (q, k, v, bias, pad_k, pad_v) if x is not None]
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if trained or is_recorded() or torch.compiler.is_compiling():
        return at_q.join(_fused(q, k, v, at_q, at_k, bias=bias, scale=scale, pad=(pad_k, pad_v)), len(q))
    out = q.new_empty((*q.shape[:-1], v.shape[-1]))
    for (fine, part_q), (coarse, part_k) in zip(at_q.rows_of_windows(), at_k.rows_of_windows(), strict=True):
        if 0 in part_q.grid:
            continue  # pooling left no query in the last keys
        at, seen = (slice(None), *fine), (slice(None), *coarse)
        parts = q[at], k[seen], v[seen], part_q, part_k  # small enough to stay in the cache
        part_q.put(_fused(*parts, bias=bias, scale=scale, pad=(pad_k, pad_v)), out[at])
    return out


def _fused(
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
    """The CPU path, (B * windows, h, tokens, c_v): PyTorch's fused attention with windows as its batch.

    In inference no logits are in memory.
    """
    real = at_k.real(len(q), q.device)
    queries, keys, values = at_q.cut(q), _filled(at_k.cut(k), real, pad[0]), _filled(at_k.cut(v), real, pad[1])
    hidden = None if real is None or pad[0] is not None else ~real
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if bias is not None and learned and q.device.type == "cpu" and not is_recorded():
        factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
        return biased_windows(queries, keys, values, bias, hidden, factor)
    mask = None if bias is None else bias.to(q.dtype).contiguous()[None]  # strided, it would be read slowly per window
    if hidden is not None:
        empty = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill(hidden, float("-inf"))
        mask = empty[:, None, None, :] if mask is None else empty[:, None, None, :] + mask
    if mask is not None:
        mask = mask.expand(*queries.shape[:3], -1)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)


def _filled(x: Tensor, real: Tensor | None, pad: Tensor | None) -> Tensor:
    """(B * windows, h, tokens, c) with `pad`, (h, c), in the empty places."""
    return x if real is None or pad is None else torch.where(real[:, None, :, None], x, pad.to(x.dtype)[:, None, :])


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
    rows = at_k.rows(len(q), q.device)
    flat_q, flat_k, flat_v = (x.flatten(0, -3) for x in (q, k, v))
    if pad[0] is not None and pad[1] is not None:
        rows, flat_k, flat_v = with_pad_rows(rows, flat_k, flat_v, pad[0], pad[1])
    layout = layout_windows(at_q.rows(len(q), q.device), rows)
    return segment_attention(flat_q, flat_k, flat_v, layout, scale=scale, bias=bias).unflatten(0, q.shape[:-2])


def with_pad_rows(rows: Tensor, k: Tensor, v: Tensor, pad_k: Tensor, pad_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give every empty place a row of its own behind the real ones: the core wants each row once.

    Costs a copy of k and v where the windows do not divide the grid, nothing where they do.
    """
    cells = rows.numel() - len(k)  # real cells fill exactly len(k) places
    if not cells:
        return rows, k, v
    empty = rows.flatten() < 0
    rows = torch.where(empty, len(k) - 1 + empty.cumsum(0), rows.flatten()).view_as(rows)
    k, v = (torch.cat((x, pad.to(x.dtype).expand(cells, -1, -1))) for x, pad in ((k, pad_k), (v, pad_v)))
    return rows, k, v
