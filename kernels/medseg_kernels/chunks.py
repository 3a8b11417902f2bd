"""Attention on a CPU, a few queries of one head at a time: for an additive bias, or values narrower than keys.

Each chunk's logits stay in the cache while the bias is added in place and the softmax runs, so memory holds one chunk
and not N x N numbers. Each number is computed by the same operations in the same order as in the whole matrix: the
result has the published formula's bits. B batch, h heads, Nq and Nk tokens, D and Dv widths, KH x KW key grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medseg_kernels.dispatch import outside_autocast

LOGITS = 1 << 20  # per chunk: 4 MB in float32 and as much for the weights


@torch.library.custom_op("medseg::chunked_attention", mutates_args=(), device_types="cpu")
def chunked_attention(
    q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor | None, rel_w: Tensor | None, scale: float
) -> Tensor:
    """Attend on a CPU.

    Args:
        q: Queries, (B, h, Nq, D), any strides.
        k: Keys, (B, h, Nk, D).
        v: Values, (B, h, Nk, Dv); Dv may differ from D, which PyTorch's fused CPU attention would pad.
        rel_h: Bias per query and key grid row, (B, h, Nq, KH) with KH * KW = Nk, or None.
        rel_w: Bias per query and key grid column, (B, h, Nq, KW); comes with `rel_h`.
        scale: Factor on q k^T.

    Returns:
        (B, h, Nq, Dv) in the dtype of q; summed in float32, or float64 for float64.
    """
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    with outside_autocast(q.device):
        for b, h, rows, weights in _weights(q, k, rel_h, rel_w, scale):
            out[b, h, rows] = (weights @ v[b, h].to(weights.dtype)).to(out.dtype)
    return out


@torch.library.custom_op("medseg::chunked_attention_backward", mutates_args=(), device_types="cpu")
def chunked_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor | None, rel_w: Tensor | None, scale: float
) -> list[Tensor]:
    """Gradients of q, k, v and, where given, of rel_h and rel_w; the weights are computed again, chunk by chunk."""
    exact = _exact(q)  # dk and dv are summed over the chunks
    given = [x for x in (q, k, v, rel_h, rel_w) if x is not None]
    dq, dk, dv, *drel = (torch.zeros(x.shape, dtype=exact) for x in given)
    with outside_autocast(q.device):
        for b, h, rows, weights in _weights(q, k, rel_h, rel_w, scale):
            toward = grad[b, h, rows].to(exact)
            dv[b, h].addmm_(weights.mT, toward)
            slope = toward @ v[b, h].to(exact).mT
            slope = slope.sub_((slope * weights).sum(1, keepdim=True)).mul_(weights)  # d loss / d logit
            dq[b, h, rows] = slope @ k[b, h].to(exact) * scale
            dk[b, h].addmm_(slope.mT, q[b, h, rows].to(exact), alpha=scale)
            if rel_h is not None and rel_w is not None:
                by_cell = slope.unflatten(1, (rel_h.shape[3], rel_w.shape[3]))
                drel[0][b, h, rows], drel[1][b, h, rows] = by_cell.sum(2), by_cell.sum(1)
    return [x.to(q.dtype) for x in (dq, dk, dv, *drel)]


def _weights(
    q: Tensor, k: Tensor, rel_h: Tensor | None, rel_w: Tensor | None, scale: float
) -> Iterator[tuple[int, int, slice, Tensor]]:
    """Softmax weights of each chunk of queries, in float32 or float64: image, head, rows, (rows, N) in one buffer."""
    exact = _exact(q)
    batch, heads, count = q.shape[:3]
    chunk = min(count, max(16, LOGITS // max(1, k.shape[2])))
    logits, weights = (torch.empty(chunk, k.shape[2], dtype=exact) for _ in range(2))
    for b in range(batch):
        for h in range(heads):
            keys = k[b, h].to(exact).mT
            for first in range(0, count, chunk):
                rows = slice(first, min(first + chunk, count))
                size = rows.stop - first
                torch.mm(q[b, h, rows].to(exact) * scale, keys, out=logits[:size])
                if rel_h is not None and rel_w is not None:
                    cells = logits[:size].unflatten(1, (rel_h.shape[3], rel_w.shape[3]))
                    cells.add_(rel_h[b, h, rows, :, None]).add_(rel_w[b, h, rows, None, :])
                torch.softmax(logits[:size], 1, out=weights[:size])
                yield b, h, rows, weights[:size]


def _exact(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@chunked_attention.register_fake
def _(q, k, v, rel_h, rel_w, scale):
    return q.new_empty((*q.shape[:3], v.shape[3]))


@chunked_attention_backward.register_fake
def _(grad, q, k, v, rel_h, rel_w, scale):
    given = [x for x in (q, k, v, rel_h, rel_w) if x is not None]
    return [torch.empty(x.shape, dtype=q.dtype, device=q.device) for x in given]


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    found = chunked_attention_backward(grad, *ctx.saved_tensors, ctx.scale)
    return *found, *[None] * (6 - len(found))


chunked_attention.register_autograd(_differentiate, setup_context=_save)
