"""How a grid is cut into windows, and two grids alike; plain functions that TorchScript can compile.

B batch, d axes of a grid, h heads, c width of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Windows(NamedTuple):
    """How one grid is cut, a number per axis each.

    Args:
        grid: Cells.
        side: Cells of a window.
        low: Empty cells in front of the grid.
        number: Windows; together they hold `low` and the grid, and end in empty cells.
    """

    grid: list[int]
    side: list[int]
    low: list[int]
    number: list[int]


def pair_windows(
    fine: list[int], coarse: list[int], window: list[int], shift: bool = False, stride: list[int] | None = None
) -> tuple[Windows, Windows]:
    """Windows of the query grid and of the key grid that cover the same places.

    Args:
        fine: Query grid.
        coarse: Key grid.
        window: Key cells of a window per axis.
        shift: Whether windows begin half a window before the grid.
        stride: Key cells per query and axis where queries were pooled, else None.

    Raises:
        ValueError: The grids are no whole multiples of one another, or the stride does not divide the window.
    """
    low = [side - side // 2 if shift and side > 1 else 0 for side in window]
    number = [(coarse[axis] + low[axis] + side - 1) // side for axis, side in enumerate(window)]
    keys = Windows(coarse, window, low, number)
    if stride is not None:
        if shift:
            raise ValueError("windows of pooled queries cannot be shifted: give stride or shift, not both")
        pooled = [coarse[axis] // step for axis, step in enumerate(stride)]
        if fine != pooled or max([window[axis] % step for axis, step in enumerate(stride)]) > 0:
            raise ValueError(f"queries pooled by {stride} must have the grid {pooled}, got {fine}")
        return Windows(fine, [window[axis] // step for axis, step in enumerate(stride)], low, number), keys
    if len(fine) != len(coarse) or max([size % coarse[axis] for axis, size in enumerate(fine)]) > 0:
        raise ValueError(
            f"the query grid must be a whole multiple of the key grid on every axis, got {fine} over {coarse}"
        )
    side = [size // coarse[axis] * window[axis] for axis, size in enumerate(fine)]
    front = [size // coarse[axis] * low[axis] for axis, size in enumerate(fine)]
    return Windows(fine, side, front, number), keys


def square_windows(grid: list[int], window: int | None) -> Windows:
    """Square windows from the upper left corner; the whole grid as one where `window` is None."""
    side = grid if window is None else [window, window]
    return Windows(grid, side, [0, 0], [(size + side[axis] - 1) // side[axis] for axis, size in enumerate(grid)])


def is_full(windows: Windows) -> bool:
    """Whether there are no empty cells."""
    return [side * windows.number[axis] for axis, side in enumerate(windows.side)] == windows.grid


def cut_windows(x: Tensor, windows: Windows, pad: Tensor | None = None) -> Tensor:
    """(B, *grid, h, c) to (B * windows, h, tokens, c), with `pad`, (h, c), or zeros in the empty cells."""
    out = _cut(x, windows)
    if pad is None or is_full(windows):
        return out
    empty = window_rows(windows, x.shape[0], x.device) < 0
    return torch.where(empty[:, None, :, None], pad.to(x.dtype)[:, None, :], out)


def _cut(x: Tensor, windows: Windows) -> Tensor:
    d = len(windows.side)
    if not is_full(windows):
        around = [0, 0, 0, 0]  # as `pad` counts: from the last axis on, empty cells in front and behind
        for axis in range(d - 1, -1, -1):
            front = windows.low[axis]
            around += [front, windows.number[axis] * windows.side[axis] - front - windows.grid[axis]]
        x = F.pad(x, around)
    order, places = [0], [2 * d + 1]
    for axis, side in enumerate(windows.side):
        x = x.unflatten(1 + 2 * axis, [-1, side])  # (B, n_1, side_1, n_2, side_2, ..., h, c)
        order += [1 + 2 * axis]
        places += [2 + 2 * axis]
    return x.permute(order + places + [2 * d + 2]).flatten(d + 2, 2 * d + 1).flatten(0, d)


def join_windows(x: Tensor, windows: Windows, batch: int) -> Tensor:
    """Undo `cut_windows`: (B * windows, h, tokens, c) to (B, *grid, h, c), the empty cells dropped."""
    d = len(windows.side)
    x = x.unflatten(2, windows.side).unflatten(0, [batch] + windows.number)  # noqa: RUF005 - TorchScript knows no starred lists
    order = [0]  # of (B, n_1, ..., n_d, h, side_1, ..., side_d, c)
    for axis in range(d):
        order += [1 + axis, d + 2 + axis]
    order += [d + 1, 2 * d + 2]
    x = x.permute(order)
    for axis, size in enumerate(windows.grid):
        x = x.flatten(1 + axis, 2 + axis)
        if x.shape[1 + axis] != size:
            x = x.narrow(1 + axis, windows.low[axis], size)
    return x


def window_rows(windows: Windows, batch: int, device: torch.device) -> Tensor:
    """Row of (B * cells) per window and place, (B * windows, tokens); -1 in the empty cells."""
    cells = batch
    for size in windows.grid:
        cells = cells * size  # no `*=`: a tracer's batch is a tensor
    shape = [batch] + windows.grid + [1, 1]  # noqa: RUF005 - TorchScript knows no starred lists
    return _cut(torch.arange(1, 1 + cells, device=device).view(shape), windows)[:, 0, :, 0] - 1


def with_pad_rows(rows: Tensor, k: Tensor, v: Tensor, pad_k: Tensor, pad_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give every empty place a row of its own behind the real ones: segment attention wants each row once.

    Costs a copy of k and v where the windows do not divide the grid, nothing where they do.
    """
    cells = rows.numel() - len(k)  # real cells fill exactly len(k) places
    if not cells:
        return rows, k, v
    empty = rows.flatten() < 0
    rows = torch.where(empty, len(k) - 1 + empty.cumsum(0), rows.flatten()).view_as(rows)
    k, v = (torch.cat((x, pad.to(x.dtype).expand(cells, -1, -1))) for x, pad in ((k, pad_k), (v, pad_v)))
    return rows, k, v
