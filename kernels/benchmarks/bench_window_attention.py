"""Window attention (WAU, RAT, Hiera) against the plain formulation and PyTorch's own alternative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from _table import Table, no_grad, start, step
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.window_attention import window_attention, window_attention_reference


@dataclass(frozen=True)
class Case:
    """One row: grids, the window on the key grid, and what the network adds."""

    name: str
    fine: tuple[int, ...]
    coarse: tuple[int, ...]
    window: tuple[int, ...]
    biased: bool = False
    shift: bool = False
    stride: tuple[int, ...] | None = None

    def sides(self) -> tuple[list[int], list[int]]:
        """Cells of a query window and of a key window per axis."""
        grids = zip(self.fine, self.coarse, self.window, strict=True)
        return [fine * side // coarse for fine, coarse, side in grids], list(self.window)


ROWS = [
    Case("WAU 2D, 256x256 over 128x128, M 8", (256,) * 2, (128,) * 2, (8,) * 2, biased=True),
    Case("WAU 2D shifted", (256,) * 2, (128,) * 2, (8,) * 2, biased=True, shift=True),
    Case("WAU 3D, 48^3 over 24^3, M 4", (48,) * 3, (24,) * 3, (4,) * 3, biased=True),
    Case("WAU 3D shifted", (48,) * 3, (24,) * 3, (4,) * 3, biased=True, shift=True),
    Case("RAT 4x4 windows, 128x128", (128,) * 2, (128,) * 2, (4,) * 2),
    Case("Hiera pooled queries, 32x32 over 64x64, M 8", (32,) * 2, (64,) * 2, (8,) * 2, stride=(2, 2)),
]


def partitioned(x: Tensor, side: Sequence[int]) -> Tensor:
    """(B, *grid, h, c) to (B * windows, h, tokens, c)."""
    d = len(side)
    for axis, length in enumerate(side):
        x = x.unflatten(1 + 2 * axis, (-1, length))
    x = x.permute(0, *range(1, 2 * d, 2), 2 * d + 1, *range(2, 2 * d + 1, 2), 2 * d + 2)
    return x.flatten(d + 2, 2 * d + 1).flatten(0, d)


def joined(x: Tensor, side: Sequence[int], grid: Sequence[int]) -> Tensor:
    """Undo `partitioned` for one image."""
    d = len(side)
    x = x.unflatten(2, side).unflatten(0, [1, *(size // length for size, length in zip(grid, side, strict=True))])
    x = x.permute(0, *[n for axis in range(d) for n in (1 + axis, d + 2 + axis)], d + 1, 2 * d + 2)
    return x.reshape(1, *grid, *x.shape[-2:])


def pieces(grid: Sequence[int], side: Sequence[int], device: torch.device) -> Tensor:
    """(windows, tokens): which piece of the rolled grid a place belongs to; only the last windows hold several."""
    whole = torch.zeros((), dtype=torch.int64, device=device)
    for size, length in zip(grid, side, strict=True):
        whole = 2 * whole[..., None] + (torch.arange(size, device=device) >= size - length // 2)
    return partitioned(whole[None, ..., None, None], side)[:, 0, :, 0]


class Plain:
    """Window attention as one writes it from the paper: roll, partition, look the bias up, mask, attend, join."""

    def __init__(self, case: Case, device: torch.device, *, fused: bool) -> None:
        self.case, self.fused = case, fused
        self.sides = case.sides()
        self.hidden = None
        if case.shift:
            fine, coarse = (
                pieces(grid, side, device) for grid, side in zip((case.fine, case.coarse), self.sides, strict=True)
            )
            self.hidden = (fine[:, :, None] != coarse[:, None])[:, None]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, table: Tensor | None, places: Tensor | None) -> Tensor:
        q, k, v = (
            partitioned(self._rolled(x, side, 1), side)
            for x, side in zip((q, k, v), (self.sides[0], self.sides[1], self.sides[1]), strict=True)
        )
        added = look_up(table, places)
        if self.hidden is not None and added is not None:
            added = added.masked_fill(self.hidden, float("-inf"))
        if self.fused:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=None if added is None else added.expand(len(q), *added.shape[-3:])
            )
        else:
            logits = q @ k.mT * q.shape[-1] ** -0.5
            out = (logits if added is None else logits + added).softmax(-1) @ v
        return self._rolled(joined(out, self.sides[0], self.case.fine), self.sides[0], -1)

    def _rolled(self, x: Tensor, side: Sequence[int], sign: int) -> Tensor:
        if not self.case.shift:
            return x
        steps = [-sign * (length // 2) for length in side]
        return x.roll(steps, list(range(1, 1 + len(steps))))


def look_up(table: Tensor | None, places: Tensor | None) -> Tensor | None:
    """(entries, h) read at (query places, key places): (h, query places, key places)."""
    return None if table is None or places is None else table[places.flatten()].view(*places.shape, -1).permute(2, 0, 1)


def offsets(case: Case, device: torch.device) -> Tensor:
    """Entry of the bias table by the offset between a query place and a key place."""
    whole = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for fine, side in zip(*case.sides(), strict=True):
        ratio = fine // side
        cell = torch.arange(fine, device=device)[:, None] - ratio * torch.arange(side, device=device)
        cell = cell - cell.min()
        whole = whole[:, None, :, None] * (int(cell.max()) + 1) + cell[:, None, :]
        whole = whole.flatten(2).flatten(0, 1)
    return whole


def row(table: Table, case: Case, dtype: torch.dtype) -> None:
    """One case with 4 heads of 32, forward, then forward and backward with the bias table's gradient."""
    device = table.device
    q = torch.randn(1, *case.fine, 4, 32, device=device, dtype=dtype)
    k, v = torch.randn(2, 1, *case.coarse, 4, 32, device=device, dtype=dtype).unbind(0)
    places = offsets(case, device) if case.biased else None
    entries = None if places is None else torch.randn(int(places.max()) + 1, 4, device=device, dtype=dtype)

    def ours(q: Tensor, k: Tensor, v: Tensor, entries: Tensor | None, places: Tensor | None) -> Tensor:
        bias = look_up(entries, places)
        return window_attention(q, k, v, case.window, bias=bias, shift=case.shift, stride=case.stride)

    contenders = {
        "ours": ours,
        "published": Plain(case, device, fused=False),
        "SDPA on windows": Plain(case, device, fused=True),
    }
    inputs = (q, k, v, entries, places)
    forward = {name: no_grad(run, *inputs) for name, run in contenders.items()}
    for name in ("published", "SDPA on windows"):
        table.agree(name, forward["ours"](), forward[name](), 1e-5 if dtype == torch.float32 else 1e-2)
    table.add(f"{case.name}, forward", str(dtype)[6:], forward)
    leaves = inputs[:3] if entries is None else (q, k, v, entries)
    rest = (entries, places)[len(leaves) - 3 :]
    trained = {name: step(run, leaves, *rest) for name, run in contenders.items()}
    table.add(f"{case.name}, forward + backward", str(dtype)[6:], trained)


def check(table: Table, device: torch.device, dtype: torch.dtype) -> None:
    """Output and gradients against float64: shifted windows that do not divide the grid, and the bias of a row."""
    inputs = [torch.randn(1, *grid, 2, 24, device=device, dtype=dtype) for grid in ((10, 6), (5, 3), (5, 3))]
    table.check("window_attention", window_attention, window_attention_reference, [*inputs, (4, 2)], shift=True)
    case = Case("", (16, 16), (8, 8), (4, 4), biased=True)
    inputs = [
        torch.randn(1, *grid, 4, 32, device=device, dtype=dtype) for grid in (case.fine, case.coarse, case.coarse)
    ]
    bias = torch.randn(4, prod(case.sides()[0]), prod(case.window), device=device, dtype=dtype)

    def peer(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, ...], *, bias: Tensor) -> Tensor:
        whole = torch.arange(bias[0].numel(), device=device).view(bias.shape[1:])
        return Plain(case, device, fused=True)(q, k, v, bias.flatten(1).T, whole)

    inputs.append(case.window)
    table.check("window_attention", window_attention, window_attention_reference, inputs, peers=[peer], bias=bias)


def main() -> None:
    device, arguments = start("Window attention (WAU, RAT, SAM2)")
    table = Table("Window attention", device, rounds=7)
    for dtype in [torch.float32] if device.type == "cpu" else [torch.bfloat16, torch.float32]:
        check(table, device, dtype)
        for case in ROWS[:1] if arguments.quick else ROWS:
            row(table, case, dtype)


if __name__ == "__main__":
    main()
