"""Segment attention on a CPU: segments of similar length go through PyTorch's fused attention as one padded batch.

Measured against a loop over segments, sorted chunks of plain products, FlexAttention and a dense mask
(BENCHMARKS.md), buckets are the fastest or tie at every number of regions. The fused call keeps only the logarithm of
each softmax sum, so forward and backward need memory in proportion to the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ALONE = 1 << 17  # logits of all heads from which a segment is worth a call of its own
SLACK = 1.1  # longest over shortest segment of one batch: bounds the padding of queries and of keys at a tenth
TINY = 16  # tokens up to which all segments share one batch: the call costs more than the padding

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Bucket:
    """Segments that share one call.

    Args:
        q_rows: Rows of q, (segments, longest), -1 where a segment is shorter.
        k_rows: Rows of k, alike.
        full: Whether every place has its row.
    """

    q_rows: Tensor
    k_rows: Tensor
    full: bool

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """What to add to the logits: -inf at places without a key, (segments, 1, 1, longest); None if all are real."""
        if self.full:
            return None
        empty = self.k_rows < 0
        return torch.zeros(empty.shape, dtype=dtype).masked_fill_(empty, float("-inf"))[:, None, None, :]


def buckets(q_rows: Tensor, q_start: Tensor, k_rows: Tensor, k_start: Tensor, heads: int) -> Iterator[Bucket]:
    """Group segments of similar length, in their own order; segments without queries or keys are left out."""
    lengths = torch.stack((q_start.diff(), k_start.diff()), 1)
    used = (lengths > 0).all(1).nonzero().flatten()
    sizes = lengths[used].tolist()
    alike, real, first = q_rows is k_rows and q_start is k_start, bool((q_rows >= 0).all() and (k_rows >= 0).all()), 0
    while first < len(sizes):
        (least_q, least_k), (most_q, most_k) = sizes[first], sizes[first]
        last = first + 1
        for queries, keys in sizes[last:]:
            least_q, most_q = min(least_q, queries), max(most_q, queries)
            least_k, most_k = min(least_k, keys), max(most_k, keys)
            close = most_q <= SLACK * least_q and most_k <= SLACK * least_k
            if heads * most_q * most_k > ALONE or (not close and max(most_q, most_k) > TINY):
                break
            last += 1
        group, even = used[first:last], all(size == sizes[first] for size in sizes[first:last])
        at_q = _padded(q_rows, q_start, group)
        at_k = at_q if alike else _padded(k_rows, k_start, group)
        yield Bucket(at_q, at_k, full=even and (real or bool((at_q >= 0).all() and (at_k >= 0).all())))
        first = last


def attend(q: Tensor, k: Tensor, v: Tensor, groups: list[Bucket], scale: float) -> tuple[Tensor, Tensor]:
    """Outputs (Nq, h, Dv) and log-sums (Nq, h); rows in no bucket get zeros and -inf."""
    out = q.new_zeros(q.shape[0], q.shape[1], v.shape[2])
    lse = torch.full(q.shape[:2], float("-inf"), dtype=_sum_dtype(q), device=q.device)
    width = max(q.shape[2], v.shape[2])
    for group in groups:
        queries = _take(q, group.q_rows, width, group.full)
        keys, values = (_take(x, group.k_rows, width, group.full) for x in (k, v))
        found, sums = _forward(queries, keys, values, 0.0, False, attn_mask=group.mask(q.dtype), scale=scale)
        _put(out, found, group.q_rows, group.full)
        _put(lse, sums, group.q_rows, group.full)
    return out, lse


def attend_backward(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], grad: Tensor, groups: list[Bucket], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; `saved` is q, k, v and what `attend` returned."""
    q, k, v, out, lse = saved
    grads = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    width = max(q.shape[2], v.shape[2])
    for group in groups:
        at_q, at_k = group.q_rows, group.k_rows
        tiles = [
            _take(x, rows, width, group.full)
            for x, rows in ((grad, at_q), (q, at_q), (k, at_k), (v, at_k), (out, at_q))
        ]
        sums = lse[at_q.clamp(min=0)].masked_fill((at_q < 0)[:, :, None], 0).transpose(1, 2)  # nor a foreign NaN here
        found = _backward(*tiles, sums, 0.0, False, attn_mask=group.mask(q.dtype), scale=scale)
        for whole, part, rows in zip(grads, found, (at_q, at_k, at_k), strict=True):
            _put(whole, part, rows, group.full)
    return grads


def _padded(rows: Tensor, start: Tensor, group: Tensor) -> Tensor:
    """(segments, longest) rows of the segments in `group`."""
    if len(group) == 1:
        return rows[int(start[group]) : int(start[group + 1])].long()[None]
    length = start[group + 1] - start[group]
    place = torch.arange(int(length.max()), device=rows.device)
    at = start[group][:, None] + place
    return torch.where(place < length[:, None], rows[at.clamp(max=len(rows) - 1)].long(), -1)


def _take(x: Tensor, rows: Tensor, width: int, full: bool) -> Tensor:
    """(N, h, D) to (segments, h, longest, width); zeros at empty places, and behind D where the fused call needs it."""
    taken = x.index_select(0, (rows if full else rows.clamp(min=0)).flatten())
    if not full:  # a foreign NaN must not come in by an empty place
        taken.index_fill_(0, (rows.flatten() < 0).nonzero().flatten(), 0)
    taken = taken.unflatten(0, rows.shape)
    if width > x.shape[2]:
        taken = torch.nn.functional.pad(taken, (0, width - x.shape[2]))
    return taken.transpose(1, 2).contiguous()  # with the tokens of one head together, the fused call is faster


def _put(whole: Tensor, part: Tensor, rows: Tensor, full: bool) -> None:
    """Write (segments, h, longest, ...) back to the rows it belongs to."""
    part = part.transpose(1, 2).to(whole.dtype)
    part = part[..., : whole.shape[2]] if whole.ndim == 3 else part
    if full:
        whole[rows.flatten()] = part.flatten(0, 1)
    else:
        whole[rows[rows >= 0]] = part[rows >= 0]


def _sum_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
