"""Attention with axial rotary position, also against a bank of memories (SAM 2, 2408.00714; RoFormer, 2104.09864).

Neighbouring channel pairs of q and k turn by an angle that depends on the token's place, (a, b) to
(a cos - b sin, a sin + b cos), so that q_i k_j depends on the difference of places. A memory bank is several frames of
the same grid: the table is repeated per frame, and trailing keys without a place (object pointers) do not turn.

If v is a projection m W^T + b of something narrower, then P v = (P m) W^T + b, since each row of weights P sums to 1:
the projection can wait until after the attention. With 64 of 256 channels that saves 37 % of the products.
B images, Nq and Nk tokens, N places, h heads, D and Dv widths, C memory channels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.chunks import chunked_attention
from medseg_kernels.dispatch import autocast_together, is_recorded, scripted_as, uses_triton
from medseg_kernels.layout import layout_dense
from medseg_kernels.softmax_attention import default_scale, segment_attention


def rotate(x: Tensor, cos: Tensor, sin: Tensor, unrotated: int = 0) -> Tensor:
    """Turn each channel pair (0, 1), (2, 3), ... by the angle of its token's place.

    Args:
        x: Tokens, (B, n, h, D), D even; n - unrotated must be a whole number of frames of N tokens.
        cos: Cosines by place and pair, (N, D / 2).
        sin: Sines, alike.
        unrotated: Trailing tokens that have no place and stay as they are.

    Returns:
        (B, n, h, D) in the dtype of `x`; turned in float32 at least.

    Raises:
        ValueError: The tokens are no whole number of frames.
    """
    placed = x.shape[1] - unrotated
    if placed % len(cos):
        raise ValueError(f"{placed} tokens with a place must be whole frames of {len(cos)}")
    exact = torch.promote_types(x.dtype, torch.float32)
    pairs = x[:, :placed].to(exact).unflatten(1, [-1, len(cos)]).unflatten(4, [-1, 2])  # (B, frames, N, h, D / 2, 2)
    a, b = pairs.unbind(5)
    c, s = cos.to(exact)[:, None], sin.to(exact)[:, None]
    turned = torch.stack((a * c - b * s, a * s + b * c), 5).flatten(4).flatten(1, 2).to(x.dtype)
    return torch.cat((turned, x[:, placed:]), 1) if unrotated else turned


def rope_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    unrotated: int = 0,
    v_weight: Tensor | None = None,
    v_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """What the op must equal: turn, project the values, dense softmax; any device, any dtype."""
    if v_weight is not None:
        v = _projected(v[:, :, None].expand(-1, -1, q.shape[2], -1), v_weight, v_bias)
    q, k = rotate(q, cos, sin).transpose(1, 2), rotate(k, cos, sin, unrotated).transpose(1, 2)
    logits = q @ k.mT * default_scale(q, scale)
    return (logits.softmax(-1).to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)


@scripted_as(rope_attention_reference)
def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    unrotated: int = 0,
    v_weight: Tensor | None = None,
    v_bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Let every query attend to all keys of its image, both turned by their places.

    Args:
        q: Queries before the rotation, (B, Nq, h, D), Nq a whole number of frames of N tokens.
        k: Keys before the rotation, (B, Nk, h, D), whole frames and then `unrotated` more.
        v: Values, (B, Nk, h, Dv); with `v_weight` the memory they are projected from, (B, Nk, C).
        cos: Cosines by place and channel pair, (N, D / 2).
        sin: Sines, alike.
        unrotated: Trailing keys without a place.
        v_weight: Value projection to be applied after the attention, (h, Dv, C). Exact unless weights are dropped out.
        v_bias: Its bias, (h, Dv).
        scale: Factor on q k^T; D**-0.5 if not given.

    Returns:
        (B, Nq, h, Dv) in the dtype of `q`.

    Raises:
        ValueError: Tokens with a place are no whole number of frames.
    """
    if is_recorded():
        return rope_attention_reference(q, k, v, cos, sin, unrotated, v_weight, v_bias, scale)
    q, k, v = autocast_together(q, k, v)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin, unrotated)
    values = v if v_weight is None else v[:, :, None].expand(-1, -1, q.shape[2], -1)
    out = _attend(q, k, values, default_scale(q, scale))
    return out if v_weight is None else _projected(out, v_weight, v_bias)


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, n, h, C) to (B, n, h, Dv), each head by its own (Dv, C)."""
    x = torch.einsum("bnhc,hdc->bnhd", x, weight.to(x.dtype))
    return x if bias is None else x + bias.to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """(B, n, h, ·) dense attention by what is fastest: the core or chunks for narrow values, else PyTorch's own."""
    narrow = q.shape[3] != v.shape[3]
    if narrow and uses_triton(q, k, v):
        layout = layout_dense(len(q), q.shape[1], k.shape[1], device=q.device)
        flat = segment_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), layout, scale=scale)
        return flat.unflatten(0, q.shape[:2])
    queries, keys, values = (x.transpose(1, 2) for x in (q, k, v))
    if narrow and q.device.type == "cpu":
        return chunked_attention(queries, keys, values, None, None, scale).transpose(1, 2)
    return F.scaled_dot_product_attention(queries, keys, values, scale=scale).transpose(1, 2)
