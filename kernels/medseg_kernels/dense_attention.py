"""Attention of all queries to all keys of an image, with values as wide as the keys or narrower.

A network whose values are a projection of something narrow can read that instead and project the sum: the weights of a
query add up to one. B images, Nq and Nk tokens, h heads, D and Dv widths.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dense import dense, uses_onednn
from medseg_kernels.dispatch import autocast_together, is_recorded, scripted_as, uses_triton
from medseg_kernels.layout import layout_dense
from medseg_kernels.softmax_attention import segment_attention

LOGITS = 1 << 22  # of one head at a time on a CPU: 16 MB, about what the last cache holds
ROWS = 512  # queries at a time, at most


def dense_attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What the op must equal: softmax over all keys, written out; any device, any dtype."""
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    weights = (queries @ keys.mT * q.shape[3] ** -0.5).softmax(-1)
    return (weights.to(v.dtype) @ values).transpose(1, 2)


@scripted_as(dense_attention_reference)
def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Let every query attend to all keys of its image.

    Args:
        q: Queries, (B, Nq, h, D).
        k: Keys, (B, Nk, h, D).
        v: Values, (B, Nk, h, Dv).

    Returns:
        (B, Nq, h, Dv) in the dtype of `q`.
    """
    if is_recorded():
        return dense_attention_reference(q, k, v)
    q, k, v = autocast_together(q, k, v)
    if q.shape[3] != v.shape[3] and uses_triton(q, k, v):
        layout = layout_dense(len(q), q.shape[1], k.shape[1], device=q.device)
        flat = segment_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), layout)
        return flat.unflatten(0, q.shape[:2])
    if uses_onednn(q, k, v):
        return _by_rows(q, k, v)
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)


def _by_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """On a CPU: whole rows of one head's logits, as many as the cache holds."""
    out = q.new_empty((*q.shape[:3], v.shape[3]))
    rows = min(ROWS, max(16, LOGITS // k.shape[1]))
    for b in range(len(q)):
        for h in range(q.shape[2]):
            keys, values = k[b, :, h].contiguous() * q.shape[3] ** -0.5, v[b, :, h].mT.contiguous()
            for first in range(0, q.shape[1], rows):
                weights = dense(q[b, first : first + rows, h], keys).softmax(1)
                out[b, first : first + rows, h] = dense(weights, values)
    return out
