"""Who attends to whom: segments of query slots and key slots, the one description all softmax attention here shares.

Queries and keys are cut into the same number of segments, and a query attends to the keys of its own segment. A slot
is a place in that order; `rows` says which row of the tensor lies there. Regions, windows, image batches and memory
banks are all layouts, so one kernel serves them. S segments, Lq and Lk slots, Nq and Nk rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class SegmentLayout(NamedTuple):
    """Ragged segments of queries and keys.

    Segments follow one another in both orders, each possibly empty. Building one asks the device nothing, so it can be
    built inside a compiled or captured model; build it once per image and share it between layers.

    Args:
        q_rows: Row of q and of the output per query slot, int32 (Lq,), every row once; -1 leaves the slot empty.
            None if slot and row agree.
        q_segment: Segment of each query slot, int32 (Lq,), ascending.
        q_start: First query slot of each segment, then Lq; int32 (S + 1,).
        k_rows: Row of k and v per key slot, int32 (Lk,), alike.
        k_segment: Segment of each key slot, int32 (Lk,), ascending.
        k_start: First key slot of each segment, then Lk; int32 (S + 1,).
        grid: Height and width of every segment's key grid where a decomposed position bias is used, else None. Key
            slots then stand in rows of `padded_width(grid)` slots, and each segment fills whole key blocks.
    """

    q_rows: Tensor | None
    q_segment: Tensor
    q_start: Tensor
    k_rows: Tensor | None
    k_segment: Tensor
    k_start: Tensor
    grid: tuple[int, int] | None = None

    def to(self, device: torch.device | str) -> "SegmentLayout":
        """The same layout with its tables on another device."""
        return self._replace(**{name: x.to(device) for name, x in self._asdict().items() if isinstance(x, Tensor)})


def padded_width(grid: tuple[int, int]) -> int:
    """Key slots per grid row: the width, rounded up to a power of two that a tensor core can take (at least 16)."""
    width = 16
    while width < grid[1]:
        width *= 2
    return width


def key_block(grid: tuple[int, int]) -> int:
    """Key slots that a kernel takes in one step when it adds a decomposed bias: whole grid rows, at least 64 slots."""
    return max(64, padded_width(grid))


def layout_from_labels(labels: Tensor) -> SegmentLayout:
    """Segments of equal label within each image; largest first, so that long work is launched first.

    Args:
        labels: (B, H, W) or (B, N), any integer or floating ids, with gaps, in any order. Ids of different images
            have nothing to do with each other.

    Returns:
        Layout over B * N rows with as many (mostly empty) segments, because their number stays on the device.

    Raises:
        ValueError: `labels` has no batch axis.
    """
    if labels.ndim < 2:
        raise ValueError(f"labels must be (B, H, W) or (B, N), got {list(labels.shape)}")
    flat = labels.flatten(1)
    count, device = flat.numel(), flat.device
    values, order = flat.sort(dim=1, stable=True)
    order = (order + torch.arange(flat.shape[0], device=device)[:, None] * flat.shape[1]).flatten()
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[:, 1:] = values[:, 1:] != values[:, :-1]
    region = starts.flatten().cumsum(0) - 1  # numbered by image, then by label
    sizes = torch.zeros(count, dtype=torch.int64, device=device).scatter_add_(0, region, torch.ones_like(region))
    by_size = sizes.argsort(descending=True, stable=True)
    rank = torch.empty_like(by_size).scatter_(0, by_size, torch.arange(count, device=device))
    segment, within = rank[region].sort(stable=True)
    start = _starts(sizes[by_size])
    rows, segment = order[within].int(), segment.int()
    return SegmentLayout(q_rows=rows, q_segment=segment, q_start=start, k_rows=rows, k_segment=segment, k_start=start)


def layout_dense(batch: int, queries: int, keys: int, device: torch.device | None = None) -> SegmentLayout:
    """One segment per image: plain attention of `queries` rows to `keys` rows each."""
    image = torch.arange(batch, dtype=torch.int32, device=device)
    ends = torch.arange(batch + 1, dtype=torch.int32, device=device)
    return SegmentLayout(
        q_rows=None,
        q_segment=image.repeat_interleave(queries),
        q_start=ends * queries,
        k_rows=None,
        k_segment=image.repeat_interleave(keys),
        k_start=ends * keys,
    )


def layout_windows(q_rows: Tensor, k_rows: Tensor, grid: tuple[int, int] | None = None) -> SegmentLayout:
    """One segment per window, from a table of rows per window.

    Args:
        q_rows: Row of q per window and place, (windows, places); negative places hold no query.
        k_rows: Row of k per window and place, (windows, places); negative places hold no key. Empty places keep their
            slots, because an additive bias counts by place.
        grid: Height and width of the key places, to use a decomposed position bias.

    Raises:
        ValueError: The tables differ in windows, or `grid` does not fit the key places.
    """
    if len(q_rows) != len(k_rows):
        raise ValueError(f"q_rows and k_rows must name the same windows, got {len(q_rows)} and {len(k_rows)}")
    if grid is not None:
        k_rows = _in_padded_rows(k_rows, grid)
    window = torch.arange(len(q_rows), dtype=torch.int32, device=q_rows.device)
    ends = torch.arange(len(k_rows) + 1, dtype=torch.int32, device=k_rows.device)
    return SegmentLayout(
        q_rows=q_rows.flatten().int(),
        q_segment=window.repeat_interleave(q_rows.shape[1]),
        q_start=ends * q_rows.shape[1],
        k_rows=k_rows.flatten().int(),
        k_segment=window.repeat_interleave(k_rows.shape[1]),
        k_start=ends * k_rows.shape[1],
        grid=grid,
    )


def _in_padded_rows(k_rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """(windows, KH * KW) to (windows, slots): grid rows of `padded_width` slots, then up to whole key blocks."""
    if grid[0] * grid[1] != k_rows.shape[1]:
        raise ValueError(f"grid must hold {k_rows.shape[1]} keys per window, got {grid}")
    width, block = padded_width(grid), key_block(grid)
    wide = torch.nn.functional.pad(k_rows.unflatten(1, grid), (0, width - grid[1]), value=-1.0).flatten(1)
    return torch.nn.functional.pad(wide, (0, -wide.shape[1] % block), value=-1.0)


def _starts(sizes: Tensor) -> Tensor:
    """(S,) sizes to (S + 1,) first slots, int32."""
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
