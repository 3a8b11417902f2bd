"""Triton kernels of `linear_attention`: state, output, and their two backward passes.

They work on groups of about 32 channels whatever the head width d is: they form the full product of a group and keep
its block diagonal, which feeds the matrix units where products per head would be too small for them. Even and odd
channels of a pair are loaded apart, so that rotating needs no exchange between threads; with d = 1 a pair spans two
heads, hence a mask of its own for each. Names end in 0 for even channels and in 1 for odd ones.

N tokens, WIDTH channels per group, HALF pairs per group padded to a power of two.
"""

from __future__ import annotations

from medseg_kernels.dispatch import tl, triton


@triton.jit
def _load(ptr, token, channel, tokens, channels, inside, other, ACC: tl.constexpr):
    """Tile (token, channel) of one sample of a (B, N, C) tensor; `inside` says which channels are the group's."""
    mask = (token < tokens)[:, None] & inside[None, :]
    return tl.load(ptr + token.to(tl.int64)[:, None] * channels + channel[None, :], mask=mask, other=other).to(ACC)


@triton.jit
def _store(ptr, x, token, channel, tokens, channels, inside):
    mask = (token < tokens)[:, None] & inside[None, :]
    tl.store(ptr + token.to(tl.int64)[:, None] * channels + channel[None, :], x, mask=mask)


@triton.jit
def _feature(x):
    """elu(x) + 1; a padded entry comes as -inf and becomes 0."""
    return tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0)))


@triton.jit
def _feature_slope(x):
    return tl.where(x > 0, 1.0, tl.exp(tl.minimum(x, 0.0)))


@triton.jit
def _angles(rope_ptr, token, pair, tokens, channels, inside, ACC: tl.constexpr):
    """Cosine and sine of each token and pair; those of 0 where the op has no positions."""
    if rope_ptr is None:
        cos = tl.full((token.shape[0], pair.shape[0]), 1.0, ACC)
        sin = tl.zeros((token.shape[0], pair.shape[0]), ACC)
    else:
        cos = _load(rope_ptr, token, 2 * pair, tokens, channels, inside, 1.0, ACC)
        sin = _load(rope_ptr, token, 2 * pair + 1, tokens, channels, inside, 0.0, ACC)
    return cos, sin


@triton.jit
def _channels(group, channels, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """Pairs and channels of a group, each with the mask of those that exist."""
    pair, channel = tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    real_pair = (pair < WIDTH // 2) & (group * (WIDTH // 2) + pair < channels // 2)
    real_channel = (channel < WIDTH) & (group * WIDTH + channel < channels)
    return group * (WIDTH // 2) + pair, real_pair, group * WIDTH + channel, real_channel


@triton.jit
def _same_head(parity: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr):
    """Which column of a state shares its head with which even or odd row."""
    row, column = 2 * tl.arange(0, HALF) + parity, tl.arange(0, 2 * HALF)
    return (row // HEAD)[:, None] == (column // HEAD)[None, :]


@triton.jit
def _load_state(state_ptr, parity: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr):
    """Block diagonal of the state, and of the key sums spread over their head's columns, for even or odd channels."""
    row, column = tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    same_head = _same_head(parity, HEAD, HALF)
    at = (parity * HALF + row) * (2 * HALF + 1)
    state = tl.load(state_ptr + at[:, None] + column[None, :]).to(ACC)
    keys = tl.load(state_ptr + at + 2 * HALF).to(ACC)
    return tl.where(same_head, state, 0.0), tl.where(same_head, keys[:, None], 0.0)


@triton.jit
def _store_state(state_ptr, state, keys, parity: tl.constexpr, HALF: tl.constexpr):
    """A state is (2, HALF, 2 HALF + 1): even and odd rows, a column per value channel, and one of key sums."""
    row, column = tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    at = (parity * HALF + row) * (2 * HALF + 1)
    tl.store(state_ptr + at[:, None] + column[None, :], state)
    tl.store(state_ptr + at + 2 * HALF, keys)


@triton.jit
def state_kernel(
    k_ptr, v_ptr, rope_ptr, out_ptr, tokens, channels,
    WIDTH: tl.constexpr, HALF: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """First pass: R(phi(k))^T v and the sum of phi(k) over SPLIT tokens of one group."""
    split, group, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair, real_pair, channel, real_channel = _channels(group, channels, WIDTH, HALF)
    first = sample.to(tl.int64) * tokens * channels  # int64: a batch of token maps passes 2**31 elements
    even, odd = tl.zeros((HALF, 2 * HALF), ACC), tl.zeros((HALF, 2 * HALF), ACC)
    even_keys, odd_keys = tl.zeros((HALF,), ACC), tl.zeros((HALF,), ACC)
    for start in range(0, SPLIT, BLOCK):
        token = split * SPLIT + start + tl.arange(0, BLOCK)
        k0 = _feature(_load(k_ptr + first, token, 2 * pair, tokens, channels, real_pair, float("-inf"), ACC))
        k1 = _feature(_load(k_ptr + first, token, 2 * pair + 1, tokens, channels, real_pair, float("-inf"), ACC))
        v = _load(v_ptr + first, token, channel, tokens, channels, real_channel, 0.0, ACC)
        cos, sin = _angles(rope_ptr, token, pair, tokens, channels, real_pair, ACC)
        even = tl.dot(tl.trans(k0 * cos - k1 * sin), v, even, input_precision=PRECISION, out_dtype=ACC)
        odd = tl.dot(tl.trans(k0 * sin + k1 * cos), v, odd, input_precision=PRECISION, out_dtype=ACC)
        even_keys += tl.sum(k0, axis=0)
        odd_keys += tl.sum(k1, axis=0)
    at = (sample * tl.num_programs(1) + group) * tl.num_programs(0) + split
    out_ptr += at.to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    _store_state(out_ptr, even, even_keys, 0, HALF)
    _store_state(out_ptr, odd, odd_keys, 1, HALF)


@triton.jit
def output_kernel(
    q_ptr, state_ptr, rope_ptr, add_ptr, gate_ptr, out_ptr, tokens, channels, eps,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Second pass: a tile of tokens against the finished state of its group."""
    group, sample = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair, real_pair, channel, real_channel = _channels(group, channels, WIDTH, HALF)
    first = sample.to(tl.int64) * tokens * channels
    state_ptr += (sample * tl.num_programs(1) + group).to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    state0, keys0 = _load_state(state_ptr, 0, HEAD, HALF, ACC)
    state1, keys1 = _load_state(state_ptr, 1, HEAD, HALF, ACC)
    q0 = _feature(_load(q_ptr + first, token, 2 * pair, tokens, channels, real_pair, float("-inf"), ACC))
    q1 = _feature(_load(q_ptr + first, token, 2 * pair + 1, tokens, channels, real_pair, float("-inf"), ACC))
    cos, sin = _angles(rope_ptr, token, pair, tokens, channels, real_pair, ACC)
    normaliser = tl.dot(q0, keys0, input_precision=PRECISION, out_dtype=ACC)
    normaliser = tl.dot(q1, keys1, normaliser, input_precision=PRECISION, out_dtype=ACC) + eps
    out = tl.dot(q0 * cos - q1 * sin, state0, input_precision=PRECISION, out_dtype=ACC)
    out = tl.dot(q0 * sin + q1 * cos, state1, out, input_precision=PRECISION, out_dtype=ACC) / normaliser
    if add_ptr is not None:
        out += _load(add_ptr + first, token, channel, tokens, channels, real_channel, 0.0, ACC)
    if gate_ptr is not None:
        gate = _load(gate_ptr + first, token, channel, tokens, channels, real_channel, 0.0, ACC)
        out *= gate * (1 / (1 + tl.exp(-gate)))
    _store(out_ptr + first, out, token, channel, tokens, channels, real_channel)


@triton.jit
def query_grad_kernel(
    grad_ptr, q_ptr, state_ptr, rope_ptr, add_ptr, gate_ptr,
    g_q_ptr, g_add_ptr, g_gate_ptr, g_state_ptr, tokens, channels, eps,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Backward, first pass: everything a token's own output tells, and its share of the gradient of the state."""
    split, group, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair, real_pair, channel, real_channel = _channels(group, channels, WIDTH, HALF)
    first = sample.to(tl.int64) * tokens * channels
    at = sample * tl.num_programs(1) + group
    state_ptr += at.to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    g_state0, g_state1 = tl.zeros((HALF, 2 * HALF), ACC), tl.zeros((HALF, 2 * HALF), ACC)
    g_keys0, g_keys1 = tl.zeros((HALF, 2 * HALF), ACC), tl.zeros((HALF, 2 * HALF), ACC)
    for start in range(0, SPLIT, BLOCK):
        token = split * SPLIT + start + tl.arange(0, BLOCK)
        # Read anew for each tile: held over the loop, four forms of the state would push everything else out.
        state0, keys0 = _load_state(state_ptr, 0, HEAD, HALF, ACC)
        state1, keys1 = _load_state(state_ptr, 1, HEAD, HALF, ACC)
        raw0 = _load(q_ptr + first, token, 2 * pair, tokens, channels, real_pair, float("-inf"), ACC)
        raw1 = _load(q_ptr + first, token, 2 * pair + 1, tokens, channels, real_pair, float("-inf"), ACC)
        q0, q1 = _feature(raw0), _feature(raw1)
        cos, sin = _angles(rope_ptr, token, pair, tokens, channels, real_pair, ACC)
        turned0, turned1 = q0 * cos - q1 * sin, q0 * sin + q1 * cos
        normaliser = tl.dot(q0, keys0, input_precision=PRECISION, out_dtype=ACC)
        normaliser = tl.dot(q1, keys1, normaliser, input_precision=PRECISION, out_dtype=ACC) + eps
        out = tl.dot(turned0, state0, input_precision=PRECISION, out_dtype=ACC)
        out = tl.dot(turned1, state1, out, input_precision=PRECISION, out_dtype=ACC) / normaliser

        grad = _load(grad_ptr + first, token, channel, tokens, channels, real_channel, 0.0, ACC)
        if gate_ptr is not None:
            gate = _load(gate_ptr + first, token, channel, tokens, channels, real_channel, 0.0, ACC)
            ungated = out
            if add_ptr is not None:
                ungated += _load(add_ptr + first, token, channel, tokens, channels, real_channel, 0.0, ACC)
            open_share = 1 / (1 + tl.exp(-gate))
            g_gate = grad * ungated * open_share * (1 + gate * (1 - open_share))
            _store(g_gate_ptr + first, g_gate, token, channel, tokens, channels, real_channel)
            grad *= gate * open_share
        if add_ptr is not None:
            _store(g_add_ptr + first, grad, token, channel, tokens, channels, real_channel)
        g_product = grad / normaliser
        g_normaliser = -g_product * out
        g_state0 = tl.dot(tl.trans(turned0), g_product, g_state0, input_precision=PRECISION, out_dtype=ACC)
        g_state1 = tl.dot(tl.trans(turned1), g_product, g_state1, input_precision=PRECISION, out_dtype=ACC)
        g_keys0 = tl.dot(tl.trans(q0), g_normaliser, g_keys0, input_precision=PRECISION, out_dtype=ACC)
        g_keys1 = tl.dot(tl.trans(q1), g_normaliser, g_keys1, input_precision=PRECISION, out_dtype=ACC)
        g_turned0 = tl.dot(g_product, tl.trans(state0), input_precision=PRECISION, out_dtype=ACC)
        g_turned1 = tl.dot(g_product, tl.trans(state1), input_precision=PRECISION, out_dtype=ACC)
        g_q0 = g_turned0 * cos + g_turned1 * sin
        g_q1 = g_turned1 * cos - g_turned0 * sin
        g_q0 = tl.dot(g_normaliser, tl.trans(keys0), g_q0, input_precision=PRECISION, out_dtype=ACC)
        g_q1 = tl.dot(g_normaliser, tl.trans(keys1), g_q1, input_precision=PRECISION, out_dtype=ACC)
        _store(g_q_ptr + first, g_q0 * _feature_slope(raw0), token, 2 * pair, tokens, channels, real_pair)
        _store(g_q_ptr + first, g_q1 * _feature_slope(raw1), token, 2 * pair + 1, tokens, channels, real_pair)
    g_state_ptr += (at * tl.num_programs(0) + split).to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    _store_state(g_state_ptr, g_state0, tl.sum(tl.where(_same_head(0, HEAD, HALF), g_keys0, 0.0), axis=1), 0, HALF)
    _store_state(g_state_ptr, g_state1, tl.sum(tl.where(_same_head(1, HEAD, HALF), g_keys1, 0.0), axis=1), 1, HALF)


@triton.jit
def key_grad_kernel(
    k_ptr, v_ptr, g_state_ptr, rope_ptr, g_k_ptr, g_v_ptr, tokens, channels,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Backward, second pass: keys and values from the finished gradient of the state."""
    group, sample = tl.program_id(1), tl.program_id(2)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pair, real_pair, channel, real_channel = _channels(group, channels, WIDTH, HALF)
    first = sample.to(tl.int64) * tokens * channels
    g_state_ptr += (sample * tl.num_programs(1) + group).to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    g_state0, _ = _load_state(g_state_ptr, 0, HEAD, HALF, ACC)
    g_state1, _ = _load_state(g_state_ptr, 1, HEAD, HALF, ACC)
    row = tl.arange(0, HALF) * (2 * HALF + 1) + 2 * HALF
    g_mean0 = tl.load(g_state_ptr + row).to(ACC)
    g_mean1 = tl.load(g_state_ptr + HALF * (2 * HALF + 1) + row).to(ACC)

    raw0 = _load(k_ptr + first, token, 2 * pair, tokens, channels, real_pair, float("-inf"), ACC)
    raw1 = _load(k_ptr + first, token, 2 * pair + 1, tokens, channels, real_pair, float("-inf"), ACC)
    k0, k1 = _feature(raw0), _feature(raw1)
    v = _load(v_ptr + first, token, channel, tokens, channels, real_channel, 0.0, ACC)
    cos, sin = _angles(rope_ptr, token, pair, tokens, channels, real_pair, ACC)
    g_turned0 = tl.dot(v, tl.trans(g_state0), input_precision=PRECISION, out_dtype=ACC)
    g_turned1 = tl.dot(v, tl.trans(g_state1), input_precision=PRECISION, out_dtype=ACC)
    g_k0 = (g_turned0 * cos + g_turned1 * sin + g_mean0[None, :]) * _feature_slope(raw0)
    g_k1 = (g_turned1 * cos - g_turned0 * sin + g_mean1[None, :]) * _feature_slope(raw1)
    _store(g_k_ptr + first, g_k0, token, 2 * pair, tokens, channels, real_pair)
    _store(g_k_ptr + first, g_k1, token, 2 * pair + 1, tokens, channels, real_pair)
    g_v = tl.dot(k0 * cos - k1 * sin, g_state0, input_precision=PRECISION, out_dtype=ACC)
    g_v = tl.dot(k0 * sin + k1 * cos, g_state1, g_v, input_precision=PRECISION, out_dtype=ACC)
    _store(g_v_ptr + first, g_v, token, channel, tokens, channels, real_channel)
