"""Window attention on a CPU, a few windows at a time, so that nothing leaves the cache between two steps.

The published way rolls the grid, cuts out all windows, masks what the roll brought together, and holds logits and
weights of all windows in memory; touching that memory takes longer than the products. Here a window at a border is
just a smaller window. Windows of equal size go together, as many as the cache holds; they are read from where the
model holds them and written to where they belong. The backward pass computes the weights again.

B batch, d axes of a grid, h heads, c and c_v widths; a chunk of W windows with n queries and m keys each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import outside_autocast
from medseg_kernels.memory import Buffers, empty_large
from medseg_kernels.windows import Windows, pair_windows

LOGITS = 1 << 18  # of a chunk: 1 MB in float32, and as much again for the second matrix of the backward pass


class _Run(NamedTuple):
    """Neighbouring windows along one axis that hold equal parts of their windows.

    Args:
        first: First cell of the first window.
        size: Cells that each window holds.
        place: Place within the window where these begin.
        number: Windows.
    """

    first: int
    size: int
    place: int
    number: int


class _Tile(NamedTuple):
    """A chunk of windows on one grid.

    Args:
        cells: Where they lie in (B, *grid), a slice per axis.
        sizes: Cells that each window holds, per axis; 1 for the batch.
        places: Which places of the window these are, a slice per axis of the grid.
    """

    cells: tuple[slice, ...]
    sizes: tuple[int, ...]
    places: tuple[slice, ...]

    def of(self, x: Tensor) -> Tensor:
        """(B, *grid, h, c) seen as (images, windows per axis ..., 1, cells per axis ..., h, c)."""
        x = x[self.cells]
        for axis, size in enumerate(self.sizes):
            x = x.unflatten(2 * axis, (-1, size))
        axes = 2 * len(self.sizes)
        return x.permute(*range(0, axes, 2), *range(1, axes, 2), axes, axes + 1)

    def take(self, x: Tensor, into: Buffers, name: str) -> Tensor:
        """(B, *grid, h, c) to (W, h, tokens, c), copied token by token: longer runs than head by head."""
        axes, seen = len(self.sizes), self.of(x)
        tokens = into(name, *seen.shape).copy_(seen)
        return tokens.flatten(axes, 2 * axes - 1).flatten(0, axes - 1).transpose(1, 2)

    def put(self, x: Tensor, out: Tensor) -> None:
        """Write (W, h, tokens, c) where it was taken from."""
        target = self.of(out)
        target.copy_(x.transpose(1, 2).reshape(target.shape))

    def take_filled(self, x: Tensor, pad: Tensor | None, side: Sequence[int], into: Buffers, name: str) -> Tensor:
        """What `take` gives; where `pad`, (h, c), is given, it stands in the places of a window that hold no cell."""
        taken = self.take(x, into, name)
        if pad is None or taken.shape[2] == prod(side):
            return taken
        filled = pad.to(taken.dtype)[:, None].repeat(len(taken), 1, prod(side), 1)
        self._inside(filled, side).copy_(taken.unflatten(2, self.sizes[1:]))
        return filled

    def put_filled(self, x: Tensor, out: Tensor, dpad: Tensor | None, side: Sequence[int]) -> None:
        """Undo `take_filled`; what stands in places without a cell is added to `dpad`."""
        if dpad is not None:
            inside = self._inside(x, side).flatten(2, -2)
            dpad += x.sum((0, 2)) - inside.sum((0, 2))
            x = inside
        self.put(x, out)

    def _inside(self, x: Tensor, side: Sequence[int]) -> Tensor:
        """(W, h, places, c) seen as (W, h, cells per axis ..., c)."""
        return x.unflatten(2, tuple(side))[(slice(None), slice(None), *self.places)]


class _Bias:
    """What is added to the logits of a chunk, and where its gradient goes.

    Args:
        parts: A table by place that all windows share, (h, places of queries, places of keys); terms per query and row
            of its key window, (B, *S, h, KH); terms per column, (B, *S, h, KW). Each or None.
        cut: The query grid and the key grid.
        pad: Key of filled places: with it, every place of a key window takes part.
        dtype: Of sums.
    """

    def __init__(
        self, parts: Sequence[Tensor | None], cut: tuple[Windows, Windows], pad: Tensor | None, dtype: torch.dtype
    ) -> None:
        table, self._rel_h, self._rel_w = parts
        self._all = pad is not None
        self._table = None
        if table is not None:  # strided, each chunk would pay
            by_query = table.to(dtype).contiguous().unflatten(1, tuple(cut[0].side))
            self._table = by_query.unflatten(-1, tuple(cut[1].side))

    def of(self, at_q: _Tile, at_k: _Tile, room: Buffers) -> Tensor | None:
        """(W, h, n, m) of a chunk, (1, h, n, m) if it is the same for all windows, None without a bias."""
        if self._table is not None:
            part = self._table[self._seen(at_q, at_k)]
            return part.reshape(1, len(part), prod(at_q.sizes), -1)
        if self._rel_h is None or self._rel_w is None:
            return None
        down, across = at_q.take(self._rel_h, room, "rows"), at_q.take(self._rel_w, room, "columns")
        added = room("added", *down.shape, across.shape[-1])
        return torch.add(down[..., None], across[..., None, :], out=added).flatten(-2)

    def add(self, slope: Tensor, at_q: _Tile, at_k: _Tile) -> None:
        """Add the gradient of a chunk's logits, (W, h, n, m)."""
        if self._table is not None:
            part = self._table[self._seen(at_q, at_k)]
            part += slope.sum(0).view(part.shape)
        if self._rel_h is not None and self._rel_w is not None:
            by_cell = slope.unflatten(-1, (-1, self._rel_w.shape[-1]))
            at_q.put(by_cell.sum(-1), self._rel_h)
            at_q.put(by_cell.sum(-2), self._rel_w)

    def _seen(self, at_q: _Tile, at_k: _Tile) -> tuple[slice, ...]:
        """Part of the table by axes that a chunk needs."""
        places = (slice(None),) * len(at_k.places) if self._all else at_k.places
        return slice(None), *at_q.places, *places


@torch.library.custom_op("medseg::window_attention", mutates_args=(), device_types="cpu")
def chunked_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    window: list[int],
    shift: bool,
    stride: list[int] | None,
    scale: float,
) -> Tensor:
    """`window_attention` on a CPU, and `relative_attention` within windows; summed in float32, or float64 for float64.

    Args:
        q: As for `window_attention`; so are k, v, bias, pad_k, pad_v, window, shift and stride.
        rel_h: Bias per query and row of its key window, (B, *S, h, KH), in 2D and in the place of `bias`.
        rel_w: Bias per query and column, (B, *S, h, KW); comes with `rel_h`.
        scale: Factor on q k^T.
    """
    out = empty_large((*q.shape[:-1], v.shape[-1]), q)
    cut, exact = _cut(q, k, window, shift, stride), torch.promote_types(q.dtype, torch.float32)
    added, room = _Bias((bias, rel_h, rel_w), cut, pad_k, exact), Buffers(exact)
    with outside_autocast(q.device):
        for at_q, at_k in _tiles(cut, len(q), q.shape[-2]):
            queries = at_q.take(q, room, "q")
            keys = at_k.take_filled(k, pad_k, cut[1].side, room, "k")
            values = at_k.take_filled(v, pad_v, cut[1].side, room, "v")
            mask = added.of(at_q, at_k, room)
            mask = None if mask is None else mask.expand(len(queries), -1, -1, -1)
            at_q.put(F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale), out)
    return out


@torch.library.custom_op("medseg::window_attention_backward", mutates_args=(), device_types="cpu")
def chunked_windows_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    pad_k: Tensor | None,
    pad_v: Tensor | None,
    window: list[int],
    shift: bool,
    stride: list[int] | None,
    scale: float,
) -> list[Tensor]:
    """Gradients of q, k and v, then of bias, rel_h, rel_w, pad_k and pad_v where given."""
    cut, exact = _cut(q, k, window, shift, stride), torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = empty_large(q.shape, q), k.new_zeros(k.shape), v.new_zeros(v.shape)  # a key may lack a query
    others, side, heads = (bias, rel_h, rel_w, pad_k, pad_v), cut[1].side, (-1, q.shape[-2])
    *dbiases, dpad_k, dpad_v = (None if x is None else torch.zeros(x.shape, dtype=exact) for x in others)
    added, slopes = _Bias(others[:3], cut, pad_k, exact), _Bias(dbiases, cut, pad_k, exact)
    room = Buffers(exact)
    with outside_autocast(q.device):
        for at_q, at_k in _tiles(cut, len(q), q.shape[-2]):
            taken = {"q": at_q.take(q, room, "tokens of q"), "grad": at_q.take(grad, room, "tokens of grad")}
            taken["k"] = at_k.take_filled(k, pad_k, side, room, "tokens of k")
            taken["v"] = at_k.take_filled(v, pad_v, side, room, "tokens of v")
            queries, toward, keys, values = (room(name, *x.shape).copy_(x).flatten(0, 1) for name, x in taken.items())
            weights = _weights(queries, keys.mul_(scale), added.of(at_q, at_k, room), room)
            at_k.put_filled(_product(weights.mT, toward, room).unflatten(0, heads), dv, dpad_v, side)
            slope = torch.bmm(toward, values.mT, out=room("slope", *weights.shape)).mul_(weights)
            slope.addcmul_(weights, slope.sum(-1, keepdim=True), value=-1)  # d loss / d logit
            slopes.add(slope.unflatten(0, heads), at_q, at_k)
            at_q.put(_product(slope, keys, room).unflatten(0, heads), dq)
            at_k.put_filled(_product(slope.mT, queries, room).mul_(scale).unflatten(0, heads), dk, dpad_k, side)
    pairs = zip((*dbiases, dpad_k, dpad_v), others, strict=True)
    return [dq, dk, dv, *(x.to(like.dtype) for x, like in pairs if x is not None and like is not None)]


def _weights(queries: Tensor, keys: Tensor, added: Tensor | None, room: Buffers) -> Tensor:
    """Softmax weights, (W * h, n, m), of queries (W * h, n, c), scaled keys (W * h, m, c) and what `_Bias.of` gave."""
    shape = len(queries), queries.shape[1], keys.shape[1]
    logits = room("logits", *shape)
    if added is None:
        torch.bmm(queries, keys.mT, out=logits)
    else:
        logits.unflatten(0, (-1, added.shape[1])).copy_(added)
        logits.baddbmm_(queries, keys.mT)
    return torch.softmax(logits, -1, out=room("weights", *shape))


def _product(a: Tensor, b: Tensor, room: Buffers) -> Tensor:
    return torch.bmm(a, b, out=room("product", len(a), a.shape[1], b.shape[2]))


def _cut(q: Tensor, k: Tensor, window: list[int], shift: bool, stride: list[int] | None) -> tuple[Windows, Windows]:
    return pair_windows(list(q.shape[1:-2]), list(k.shape[1:-2]), window, shift, stride)


def _tiles(cut: tuple[Windows, Windows], batch: int, heads: int) -> Iterator[tuple[_Tile, _Tile]]:
    """Chunks of equal windows on the query grid and on the key grid; windows without a query are left out."""
    images = [(_Run(0, 1, 0, batch), _Run(0, 1, 0, batch))]
    for runs in product(images, *(_runs(*cut, axis) for axis in range(len(cut[0].side)))):
        pairs = heads * prod(queries.size * keys.size for queries, keys in runs)
        if not pairs:
            continue
        room, steps = max(1, LOGITS // pairs), []
        for queries, _ in reversed(runs):  # neighbours along the last axis lie closest in memory
            steps.append(min(queries.number, room))
            room = max(1, room // steps[-1])
        steps.reverse()
        for first in product(*(range(0, queries.number, step) for (queries, _), step in zip(runs, steps, strict=True))):
            at_q, at_k = (_tile(each, first, steps) for each in zip(*runs, strict=True))
            yield at_q, at_k


def _runs(queries: Windows, keys: Windows, axis: int) -> list[tuple[_Run, _Run]]:
    """Windows of one axis on both grids, equal neighbours together: at most a cut one, whole ones, and a cut one."""
    runs: list[tuple[_Run, _Run]] = []
    for n in range(queries.number[axis]):
        found = _run(queries, axis, n), _run(keys, axis, n)
        if runs and all(a[1:3] == b[1:3] for a, b in zip(runs[-1], found, strict=True)):
            found = runs.pop()
            found = found[0]._replace(number=found[0].number + 1), found[1]._replace(number=found[1].number + 1)
        runs.append(found)
    return runs


def _run(cut: Windows, axis: int, n: int) -> _Run:
    """Window `n` of an axis, without what sticks out of the grid."""
    begin = n * cut.side[axis] - cut.low[axis]
    first, last = (min(max(0, cell), cut.grid[axis]) for cell in (begin, begin + cut.side[axis]))
    return _Run(first, last - first, first - begin, 1)


def _tile(runs: Sequence[_Run], first: Sequence[int], steps: Sequence[int]) -> _Tile:
    """Windows `first` up to `first + steps` of each run."""
    ends = [min(n + step, run.number) for run, n, step in zip(runs, first, steps, strict=True)]
    cells = [
        slice(run.first + n * run.size, run.first + end * run.size)
        for run, n, end in zip(runs, first, ends, strict=True)
    ]
    places = [slice(run.place, run.place + run.size) for run in runs[1:]]
    return _Tile(tuple(cells), tuple(run.size for run in runs), tuple(places))


@chunked_windows.register_fake
def _(q, k, v, *rest):
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


@chunked_windows_backward.register_fake
def _(grad, *inputs):
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs[:8] if x is not None]


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.window, ctx.shift, ctx.stride, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    options = ctx.window, ctx.shift, ctx.stride, ctx.scale
    found = iter(chunked_windows_backward(grad, *ctx.saved_tensors, *options))
    return *(None if x is None else next(found) for x in ctx.saved_tensors), None, None, None, None


chunked_windows.register_autograd(_differentiate, setup_context=_save)
