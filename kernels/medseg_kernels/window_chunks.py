"""Training windows with a learned bias on a CPU: PyTorch's fused attention forward, a few windows at a time backward.

PyTorch's fused CPU attention gives no gradient for its mask and falls back to logits of all windows in memory. Here the
backward pass computes the weights of a few windows again, while they fit the cache, and sums the bias' gradient as it
goes. W windows of all images, h heads, n queries and m keys per window, c and c_v widths.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import outside_autocast

LOGITS = 1 << 19  # per chunk: 2 MB in float32 and as much for each of two more


@torch.library.custom_op("medseg::biased_windows", mutates_args=(), device_types="cpu")
def biased_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, hidden: Tensor | None, scale: float) -> Tensor:
    """Attend within windows on a CPU, differentiable in everything but `hidden`.

    Args:
        q: Queries, (W, h, n, c).
        k: Keys, (W, h, m, c).
        v: Values, (W, h, m, c_v).
        bias: Added to the logits of every window, (h, n, m).
        hidden: True where a key is masked out, (W, m), never a whole window; None if all take part.
        scale: Factor on q k^T.

    Returns:
        (W, h, n, c_v) in the dtype of q.
    """
    out = q.new_empty(*q.shape[:3], v.shape[3])
    with outside_autocast(q.device):
        for part in _parts(q, k):
            mask = _masked(bias.to(q.dtype)[None], hidden, part).expand(len(q[part]), -1, -1, -1)
            out[part] = F.scaled_dot_product_attention(q[part], k[part], v[part], attn_mask=mask, scale=scale)
    return out


@torch.library.custom_op("medseg::biased_windows_backward", mutates_args=(), device_types="cpu")
def biased_windows_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, hidden: Tensor | None, scale: float
) -> list[Tensor]:
    """Gradients of q, k, v and bias."""
    exact = torch.promote_types(q.dtype, torch.float32)
    dq, dk, dv = (torch.empty(x.shape, dtype=q.dtype) for x in (q, k, v))
    dbias = torch.zeros(bias.shape, dtype=exact)
    with outside_autocast(q.device):
        for part in _parts(q, k):
            queries, keys, values, toward = (x[part].to(exact) for x in (q, k, v, grad))
            logits = (queries @ keys.mT).mul_(scale).add_(_masked(bias.to(exact)[None], hidden, part))
            weights = logits.softmax(-1)
            dv[part] = weights.mT @ toward
            slope = toward @ values.mT  # becomes d loss / d logit
            slope.sub_(torch.mul(slope, weights, out=logits).sum(-1, keepdim=True)).mul_(weights)
            dbias += slope.sum(0)
            dq[part], dk[part] = (slope @ keys).mul_(scale), (slope.mT @ queries).mul_(scale)
    return [dq, dk, dv, dbias.to(bias.dtype)]


def _parts(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Runs of windows whose logits fit the cache."""
    step = max(1, LOGITS // max(1, q.shape[1] * q.shape[2] * k.shape[2]))
    return (slice(first, first + step) for first in range(0, len(q), step))


def _masked(bias: Tensor, hidden: Tensor | None, part: slice) -> Tensor:
    """(1 or windows, h, n, m) to add to the logits."""
    return bias if hidden is None else bias.masked_fill(hidden[part][:, None, None, :], float("-inf"))


@biased_windows.register_fake
def _(q, k, v, bias, hidden, scale):
    return q.new_empty(*q.shape[:3], v.shape[3])


@biased_windows_backward.register_fake
def _(grad, q, k, v, bias, hidden, scale):
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v, bias)]


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *biased_windows_backward(grad, *ctx.saved_tensors, ctx.scale), None, None


biased_windows.register_autograd(_differentiate, setup_context=_save)
