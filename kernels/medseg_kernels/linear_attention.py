"""Attention in linear time with rotary positions, a local term and an output gate, in two passes over the tokens.

Source: HER-Seg, 2504.06205, dual-gated linear attention. With phi(x) = elu(x) + 1 and R the rotation of channel pairs
(2i, 2i + 1) by the angles of a token, heads being runs of d channels:

    state   = mean over tokens of R(phi(k))^T v          d x d per head
    out     = (R(phi(q)) state / (phi(q) . mean(phi(k)) + eps) + add) * silu(gate)

The normaliser is not rotated. R spans all C channels before they are split into heads, so with d = 1 a pair belongs to
two heads.

B batch, N tokens, C channels, h heads, d = C / h head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import (
    dot_precision,
    is_recorded,
    kernel_types,
    launch_options,
    outside_autocast,
    scripted_as,
    triton,
    uses_triton,
)
from medseg_kernels.linear_attention_cpu import LinearAttention, linear_attention_plain, rotate
from medseg_kernels.linear_attention_kernels import key_grad_kernel, output_kernel, query_grad_kernel, state_kernel

_BLOCK = 64  # tokens per tile where a program takes one tile
_LOOP_BLOCK = 32  # where it walks over many and keeps sums in registers
_GRAD_BLOCK = 16  # in the first backward pass, whose eight products of a tile would spill beyond
_SPLIT = 256  # tokens whose share of the state one program adds up; fixed, so that results do not depend on the device
_GROUP = 32  # channels per group, if whole heads allow
_WIDEST = 64  # head width above which a group would not fit the registers


def linear_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    rope: Tensor | None = None,
    add: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """What `linear_attention` must equal: plain PyTorch, head by head, any device, any dtype."""
    heads = [num_heads, q.shape[2] // num_heads]
    q, k = F.elu(q) + 1, F.elu(k) + 1
    normaliser = q.unflatten(2, heads).transpose(1, 2) @ k.unflatten(2, heads).mean(1)[..., None] + eps  # (B, h, N, 1)
    turned_k = rotate(k, rope).unflatten(2, heads).transpose(1, 2) / q.shape[1]
    state = turned_k.mT @ v.unflatten(2, heads).transpose(1, 2)
    out = rotate(q, rope).unflatten(2, heads).transpose(1, 2) @ state / normaliser
    out = out.transpose(1, 2).flatten(2)
    if add is not None:
        out = out + add
    return out if gate is None else out * F.silu(gate)


def _group_width(head: int) -> int:
    """Channels per group: whole heads, about `_GROUP` channels, and no rotated pair cut in two."""
    heads = max(_GROUP // head, 1)
    if heads * head % 2:
        heads += 1 if heads == 1 else -1
    return heads * head


def _setting(q: Tensor, num_heads: int) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """Groups, programs along N for a pass by tiles and by splits, and the constants that all kernels share."""
    width = _group_width(q.shape[2] // num_heads)
    constants = {"WIDTH": width, "HALF": max(triton.next_power_of_2(width) // 2, 16)}
    # Features are float32 whatever q is, so their products always take float32's precision.
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    constants |= {"PRECISION": dot_precision(wide), "ACC": kernel_types(q.dtype)["ACC"]}
    tiles, splits = triton.cdiv(q.shape[1], _BLOCK), triton.cdiv(q.shape[1], _SPLIT)
    return (triton.cdiv(q.shape[2], width), tiles, splits), {**constants, **launch_options(warps=4, stages=1)}


def _mean(parts: Tensor, tokens: int) -> Tensor:
    """Add the splits' shares up, always in the same order, and divide by N; the axis of splits goes."""
    return parts.sum(2) / tokens


@torch.library.custom_op("medseg::linear_attention", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Tensor | None,
    add: Tensor | None,
    gate: Tensor | None,
    num_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Output and, for the backward, the state: (B, groups, 2, HALF, 2 HALF + 1)."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    rope, add, gate = (None if x is None else x.contiguous() for x in (rope, add, gate))
    (groups, tiles, splits), constants = _setting(q, num_heads)
    batch, tokens, channels = q.shape
    half = constants["HALF"]
    parts = q.new_empty(batch, groups, splits, 2, half, 2 * half + 1, dtype=_wide(q))
    state_kernel[(splits, groups, batch)](
        k, v, rope, parts, tokens, channels, SPLIT=_SPLIT, BLOCK=_LOOP_BLOCK, **constants
    )
    state, out = _mean(parts, tokens), torch.empty_like(q)
    head = channels // num_heads
    output_kernel[(tiles, groups, batch)](
        q, state, rope, add, gate, out, tokens, channels, eps, HEAD=head, BLOCK=_BLOCK, **constants
    )
    return out, state


@torch.library.custom_op("medseg::linear_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Tensor | None,
    add: Tensor | None,
    gate: Tensor | None,
    state: Tensor,
    num_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, add and gate; empty for what was not given."""
    grad, q, k, v = (x.contiguous() for x in (grad, q, k, v))
    rope, add, gate = (None if x is None else x.contiguous() for x in (rope, add, gate))
    (groups, tiles, _), constants = _setting(q, num_heads)
    batch, tokens, channels = q.shape
    head, half = channels // num_heads, constants["HALF"]
    g_q, g_k, g_v, g_add, g_gate = _attend_backward_like(grad, q, k, v, rope, add, gate, state, num_heads, eps)
    small_tiles = triton.cdiv(tokens, _GRAD_BLOCK)
    parts = state.new_empty(batch, groups, small_tiles, 2, half, 2 * half + 1)
    query_grad_kernel[(small_tiles, groups, batch)](
        grad, q, state, rope, add, gate, g_q, g_add, g_gate, parts, tokens, channels, eps,
        HEAD=head, BLOCK=_GRAD_BLOCK, **constants,
    )  # fmt: skip
    key_grad_kernel[(tiles, groups, batch)](
        k, v, _mean(parts, tokens), rope, g_k, g_v, tokens, channels, HEAD=head, BLOCK=_BLOCK, **constants
    )
    return g_q, g_k, g_v, g_add, g_gate


@_attend.register_fake
def _attend_like(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Tensor | None,
    add: Tensor | None,
    gate: Tensor | None,
    num_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    width = _group_width(int(q.shape[2]) // num_heads)
    half = max(triton.next_power_of_2(width) // 2, 16)
    state = q.new_empty(q.shape[0], -(-q.shape[2] // width), 2, half, 2 * half + 1, dtype=_wide(q))
    return torch.empty_like(q, memory_format=torch.contiguous_format), state


@_attend_backward.register_fake
def _attend_backward_like(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Tensor | None,
    add: Tensor | None,
    gate: Tensor | None,
    state: Tensor,
    num_heads: int,
    eps: float,
) -> tuple[Tensor, ...]:
    return tuple(
        q.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (q, k, v, add, gate)
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_heads, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor, of_state: Tensor) -> tuple[Tensor | None, ...]:
    add, gate = ctx.saved_tensors[4:6]
    g_q, g_k, g_v, g_add, g_gate = _attend_backward(grad, *ctx.saved_tensors, ctx.num_heads, ctx.eps)
    return g_q, g_k, g_v, None, None if add is None else g_add, None if gate is None else g_gate, None, None


_attend.register_autograd(_backward, setup_context=_save)


@scripted_as(linear_attention_reference)
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    rope: Tensor | None = None,
    add: Tensor | None = None,
    gate: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Attend from every token to all tokens at a cost that grows with N, not with its square.

    Args:
        q: Queries before the feature map, (B, N, C), floating point.
        k: Keys before the feature map, like `q`.
        v: Values, like `q`.
        num_heads: h; must divide C.
        rope: Cosine and sine by which each pair of channels turns, (N, C / 2, 2), without gradient; C must be even.
        add: Added to the attention before the gate, like `q`.
        gate: Gate before its SiLU, like `q`; the output is not gated without it.
        eps: Added to the normaliser.

    Returns:
        (B, N, C) in the dtype of `q`; sums and the state are float32.

    Raises:
        ValueError: `num_heads` does not divide C, or a shape differs.
    """
    channels = q.shape[2]
    if channels % num_heads:
        raise ValueError(f"num_heads must divide the channels, got {num_heads} heads for {channels} channels")
    for name, x in (("k", k), ("v", v), ("add", add), ("gate", gate)):
        if x is not None and x.shape != q.shape:
            raise ValueError(f"{name} must be {list(q.shape)} like q, got {list(x.shape)}")
    if rope is not None and list(rope.shape) != [q.shape[1], channels // 2, 2]:
        raise ValueError(f"rope must be {[q.shape[1], channels // 2, 2]}, got {list(rope.shape)}")
    if is_recorded():
        return linear_attention_reference(q, k, v, num_heads, rope, add, gate, eps)
    return _choose(q, k, v, num_heads, rope, add, gate, eps)


def _choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    rope: Tensor | None,
    add: Tensor | None,
    gate: Tensor | None,
    eps: float,
) -> Tensor:
    """The kernels where they can run, else the CPU path."""
    head = q.shape[2] // num_heads
    if uses_triton(q, k, v, rope, add, gate) and head <= _WIDEST and q.shape[2] % 2 == 0 and q.numel():
        return _attend(q, k, v, rope, add, gate, num_heads, eps)[0]
    dtype, wide = q.dtype, _wide(q)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    add, gate = (None if x is None else x.to(wide) for x in (add, gate))
    with outside_autocast(q.device):
        if torch.compiler.is_compiling() or q.device.type != "cpu":  # a compiler fuses what it can see into
            return linear_attention_plain(q, k, v, num_heads, rope, add, gate, eps).to(dtype)
        # torch's stubs do not know that `apply` gives what `forward` does
        out: Any = LinearAttention.apply(q, k, v, num_heads, rope, add, gate, eps)
        return out.to(dtype)
