"""`linear_attention` on a CPU: some thousand tokens at a time through the same few buffers, and a backward by hand.

Touching fresh memory costs more than computing on it, so no step allocates a map of all tokens but for the results,
and the backward computes again what a step of autograd would have kept. Heads narrower than `_GROUP` channels share a
product whose block diagonal is kept: its zeros cost less than many tiny products. The formulas stand on top of
`linear_attention.py`.

B batch, N tokens, C channels, d head width, G groups of w channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_CHUNK = 2**18  # numbers per buffer and thread: 1 MB
_GROUP = 16  # channels that a product should have at least


class LinearAttention(torch.autograd.Function):
    """`linear_attention` of float32 or float64 tensors of one dtype; arguments and result are the same."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        num_heads: int,
        rope: Tensor | None,
        add: Tensor | None,
        gate: Tensor | None,
        eps: float,
    ) -> Tensor:
        """Sum up the keys, then read the sums out, sample by sample; keeps the inputs and the sums."""
        turns, same = _turns(rope, q), _same_head(q, num_heads)
        out, groups = q.new_empty(q.shape), q.shape[2] // same.shape[0]
        states, means = q.new_zeros(q.shape[0], groups, *same.shape), q.new_zeros(q.shape[0], q.shape[2])
        for b in range(q.shape[0]):
            _sum_keys(k[b], v[b], turns, states[b], means[b])
        states *= same / q.shape[1]
        means /= q.shape[1]
        for b in range(q.shape[0]):
            spread = means[b].view(groups, -1, 1) * same
            _read_out(q[b], _at(add, b), _at(gate, b), turns, states[b], spread, out[b], eps)
        ctx.save_for_backward(q, k, v, rope, add, gate, states, means)
        ctx.num_heads, ctx.eps = num_heads, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] torch's decorator
        """The two passes backwards: all that a token's own output tells, then keys and values from the sums."""
        q, k, v, rope, add, gate, states, means = ctx.saved_tensors
        turns, same = _turns(rope, q), _same_head(q, ctx.num_heads)
        back = None if turns is None else turns.conj_physical()
        found = [None if x is None else x.new_empty(x.shape) for x in (q, k, v, add, gate)]
        for b in range(q.shape[0]):
            g_q, g_k, g_v, g_add, g_gate = (_at(x, b) for x in found)
            given = grads[0][b], q[b], _at(add, b), _at(gate, b)
            sums = _query_grad(given, (g_q, g_add, g_gate), (turns, back), states[b], means[b], same, ctx.eps)
            _key_grad(k[b], v[b], g_k, g_v, turns, back, *(x / q.shape[1] for x in sums))
        g_q, g_k, g_v, g_add, g_gate = found
        return g_q, g_k, g_v, None, None, g_add, g_gate, None


def rotate(x: Tensor, rope: Tensor | None) -> Tensor:
    """Turn the pairs (2i, 2i + 1) of (B, N, C) by the angles whose cosine and sine `rope` holds, (N, C / 2, 2)."""
    if rope is None:
        return x
    cos, sin = rope.detach().to(x.dtype).unbind(-1)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def linear_attention_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    rope: Tensor | None,
    add: Tensor | None,
    gate: Tensor | None,
    eps: float,
) -> Tensor:
    """The op in plain steps, for a compiler to fuse: the products below, and an exponential that it vectorises."""
    same = _same_head(q, num_heads)
    width = same.shape[0]

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, width)).transpose(1, 2)  # (B, G, N, w)

    q, k = (torch.exp(x.clamp(max=0)) + F.relu(x) for x in (q, k))
    state = split(rotate(k, rope)).mT @ split(v) * (same / q.shape[1])
    normaliser = split(q) @ (k.mean(1).unflatten(1, (-1, width))[..., None] * same) + eps
    out = (split(rotate(q, rope)) @ state / normaliser).transpose(1, 2).flatten(2)
    if add is not None:
        out = out + add
    return out if gate is None else out * F.silu(gate)


def _turns(rope: Tensor | None, like: Tensor) -> Tensor | None:
    """Rotation of each token and pair as a complex number, (N, C / 2)."""
    return None if rope is None else torch.view_as_complex(rope.detach().to(like.dtype).contiguous())


def _same_head(q: Tensor, num_heads: int) -> Tensor:
    """1 where two channels of a group belong to one head, (w, w); a group is whole heads, `_GROUP` channels or more."""
    head = q.shape[2] // num_heads
    together = next((n for n in range(1, num_heads) if num_heads % n == 0 and n * head >= _GROUP), num_heads)
    return torch.block_diag(*[q.new_ones(head, head)] * together)


def _at(x: Tensor | None, b: int) -> Tensor | None:
    return None if x is None else x[b]


def _chunks(buffers: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Rows of each (N, ...) tensor, some at a time, behind as many buffers of their size; None stays None."""
    first = tensors[0]
    assert first is not None
    rows = max(_CHUNK * torch.get_num_threads() // first.shape[1], 16)
    space = first.new_empty(buffers, min(rows, first.shape[0]), first.shape[1])
    if rows >= first.shape[0]:  # a view costs what a thousand sums do
        yield *space, *tensors
        return
    for start in range(0, first.shape[0], rows):
        parts = [None if x is None else x[start : start + rows] for x in tensors]
        yield *space[:, : first.shape[0] - start], *parts


def _grouped(x: Tensor, width: int) -> Tensor:
    """(N, C) as (G, N, w), without a copy."""
    return x.view(x.shape[0], -1, width).transpose(0, 1)


def _feature(x: Tensor, into: Tensor, spare: Tensor) -> Tensor:
    """elu(x) + 1 = exp(min(x, 0)) + max(x, 0); by powers of 2, which PyTorch computes six times as fast as its elu."""
    torch.clamp(x, max=0, out=into).mul_(math.log2(math.e)).exp2_()
    return into.add_(torch.clamp(x, min=0, out=spare))


def _turn(x: Tensor, turns: Tensor | None, into: Tensor) -> Tensor:
    """Rotate pairs of channels; `x` itself where there are no positions."""
    if turns is None:
        return x
    torch.mul(x.view(turns.dtype), turns, out=into.view(turns.dtype))
    return into


def _turn_back(x: Tensor, back: Tensor | None, into: Tensor) -> None:
    """Write `x` rotated by `back`; as it is where there are no positions."""
    if back is None:
        into.copy_(x)
    else:
        _turn(x, back, into)


def _sum_keys(k: Tensor, v: Tensor, turns: Tensor | None, state: Tensor, keys: Tensor) -> None:
    """Add R(phi(k))^T v to `state`, (G, w, w), and phi(k) to `keys`, (C,)."""
    for feature, turned, k_part, v_part, turn in _chunks(2, k, v, turns):
        _feature(k_part, feature, turned)
        keys += feature.sum(0)
        state.baddbmm_(_grouped(_turn(feature, turn, turned), state.shape[1]).mT, _grouped(v_part, state.shape[1]))


def _read_out(
    q: Tensor,
    add: Tensor | None,
    gate: Tensor | None,
    turns: Tensor | None,
    state: Tensor,
    spread: Tensor,
    out: Tensor,
    eps: float,
) -> None:
    """Write one sample's output; `spread`, (G, w, w), holds the mean key of a channel in every column of its head."""
    width = state.shape[1]
    for feature, turned, normaliser, q_part, add_part, gate_part, turn, to in _chunks(3, q, add, gate, turns, out):
        _feature(q_part, feature, turned)
        torch.bmm(_grouped(feature, width), spread, out=_grouped(normaliser, width))
        torch.bmm(_grouped(_turn(feature, turn, turned), width), state, out=_grouped(to, width))
        normaliser += eps
        if add_part is None:
            to /= normaliser
        else:
            torch.addcdiv(add_part, to, normaliser, out=to)
        if gate_part is not None:
            to *= torch.ops.aten.silu.out(gate_part, out=feature)


def _query_grad(
    given: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    found: tuple[Any, Tensor | None, Tensor | None],
    turns: tuple[Tensor | None, Tensor | None],
    state: Tensor,
    mean: Tensor,
    same: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Write the gradients of q, add and gate of one sample; returns those of the state and of the mean key.

    Args:
        given: Gradient of the output, q, add and gate.
        found: Where the gradients of q, add and gate go.
        turns: Rotation, and its inverse.
        state: (G, w, w).
        mean: Mean key, (C,).
        same: As from `_same_head`.
        eps: As for the op.
    """
    width, groups = same.shape[0], state.shape[0]
    spread, g_state, g_pairs = mean.view(groups, -1, 1) * same, torch.zeros_like(state), torch.zeros_like(state)
    for feature, turned, normaliser, product, g, *parts in _chunks(5, *given, *found, *turns):
        grad, q, add, gate, g_q, g_add, g_gate, turn, back = parts
        _feature(q, feature, turned)
        torch.bmm(_grouped(feature, width), spread, out=_grouped(normaliser, width))
        at_places = _turn(feature, turn, turned)
        torch.bmm(_grouped(at_places, width), state, out=_grouped(product, width))
        product /= normaliser.add_(eps)
        if gate is not None:
            grad = _through_gate(grad, product, add, gate, g, g_gate)
        if add is not None:
            g_add.copy_(grad)
        torch.div(grad, normaliser, out=g)
        g_state.baddbmm_(_grouped(at_places, width).mT, _grouped(g, width))
        product *= g  # minus the gradient of the normaliser, before its head's columns are summed
        g_pairs.baddbmm_(_grouped(feature, width).mT, _grouped(product, width))
        torch.bmm(_grouped(g, width), state.mT, out=_grouped(normaliser, width))
        _turn_back(normaliser, back, g_q)
        _grouped(g_q, width).baddbmm_(_grouped(product, width), spread.mT, alpha=-1)
        g_q *= feature.clamp_(max=1)  # the slope of phi
    return g_state * same, -(g_pairs * same).sum(2).flatten()


def _through_gate(
    grad: Tensor, product: Tensor, add: Tensor | None, gate: Tensor, spare: Tensor, g_gate: Tensor
) -> Tensor:
    """Gradient of what the gate lets through, in a part of its own; writes that of the gate, too."""
    ungated = product if add is None else torch.add(product, add, out=spare)
    share = torch.sigmoid(gate)
    passed = gate * share
    torch.mul(grad, ungated, out=g_gate)
    g_gate *= torch.addcmul(share, passed, 1 - share)  # the slope of SiLU
    return passed.mul_(grad)


def _key_grad(
    k: Tensor,
    v: Tensor,
    g_k: Any,
    g_v: Any,
    turns: Tensor | None,
    back: Tensor | None,
    g_state: Tensor,
    g_mean: Tensor,
) -> None:
    """Write the gradients of one sample's keys and values from those of the state and the mean key, both over N."""
    width = g_state.shape[1]
    for feature, turned, k_part, v_part, to_k, to_v, turn, turn_back in _chunks(2, k, v, g_k, g_v, turns, back):
        _feature(k_part, feature, turned)
        torch.bmm(_grouped(_turn(feature, turn, turned), width), g_state, out=_grouped(to_v, width))
        torch.bmm(_grouped(v_part, width), g_state.mT, out=_grouped(turned, width))
        _turn_back(turned, turn_back, to_k)
        to_k += g_mean
        to_k *= feature.clamp_(max=1)
