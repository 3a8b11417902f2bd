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
def _load(ptr, row, channel, rows, channels, inside, other, ACC: tl.constexpr):
    """Tile (row, channel) from `ptr` on; `rows` are left in the sample, `inside` says which channels the group has."""
    mask = (row < rows)[:, None] & inside[None, :]
    return tl.load(ptr + (row[:, None] * channels + channel[None, :]), mask=mask, other=other).to(ACC)


@triton.jit
def _store(ptr, x, row, channel, rows, channels, inside):
    mask = (row < rows)[:, None] & inside[None, :]
    tl.store(ptr + (row[:, None] * channels + channel[None, :]), x, mask=mask)


@triton.jit
def _tile(sample, start, tokens, channels):
    """Where a tile of tokens begins, in a (B, N, C) tensor and in the rotation, and how many tokens are left there.

    Only this is 64 bits wide; offsets within a tile are 32, or a dozen pointers per element would fill the registers.
    """
    row = start.to(tl.int64) * channels  # int64: a batch of token maps passes 2**31 elements
    return sample.to(tl.int64) * tokens * channels + row, row, tokens - start


@triton.jit
def _feature(x):
    """elu(x) + 1; a padded entry comes as -inf and becomes 0."""
    return tl.where(x > 0, x + 1, tl.exp(tl.minimum(x, 0.0)))


@triton.jit
def _angles(rope_ptr, turn, row, pair, rows, channels, inside, ACC: tl.constexpr):
    """Cosine and sine of each token and pair; those of 0 where the op has no positions."""
    if rope_ptr is None:
        cos = tl.full((row.shape[0], pair.shape[0]), 1.0, ACC)
        sin = tl.zeros((row.shape[0], pair.shape[0]), ACC)
    else:
        cos = _load(rope_ptr + turn, row, 2 * pair, rows, channels, inside, 1.0, ACC)
        sin = _load(rope_ptr + turn, row, 2 * pair + 1, rows, channels, inside, 0.0, ACC)
    return cos, sin


@triton.jit
def _channels(group, channels, WIDTH: tl.constexpr, HALF: tl.constexpr):
    """Pairs and channels of a group, each with the mask of those that exist."""
    pair, channel = tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    real_pair = (pair < WIDTH // 2) & (group * (WIDTH // 2) + pair < channels // 2)
    real_channel = (channel < WIDTH) & (group * WIDTH + channel < channels)
    return group * (WIDTH // 2) + pair, real_pair, group * WIDTH + channel, real_channel


@triton.jit
def _same_head(parity: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr):
    """1 where a column of a state shares its head with an even or odd row, else 0."""
    row, column = 2 * tl.arange(0, HALF) + parity, tl.arange(0, 2 * HALF)
    return tl.where((row // HEAD)[:, None] == (column // HEAD)[None, :], 1.0, 0.0).to(ACC)


@triton.jit
def _sum_heads(x0, x1, HEAD: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """Sum even and odd channels over each head; every column of the head gets its sum."""
    same0 = _same_head(0, HEAD, HALF, ACC)
    if HEAD % 2 == 0:  # a pair never spans two heads
        return tl.dot(x0 + x1, same0, input_precision=PRECISION, out_dtype=ACC)
    total = tl.dot(x0, same0, input_precision=PRECISION, out_dtype=ACC)
    return tl.dot(x1, _same_head(1, HEAD, HALF, ACC), total, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _sum_columns(x, HEAD: tl.constexpr, HALF: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """The adjoint of `_sum_heads`: sum columns over each head, for its even and its odd channels."""
    sum0 = tl.dot(x, tl.trans(_same_head(0, HEAD, HALF, ACC)), input_precision=PRECISION, out_dtype=ACC)
    if HEAD % 2 == 0:
        return sum0, sum0
    return sum0, tl.dot(x, tl.trans(_same_head(1, HEAD, HALF, ACC)), input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def _load_state(state_ptr, parity: tl.constexpr, HEAD: tl.constexpr, HALF: tl.constexpr, ACC: tl.constexpr):
    """Block diagonal of the state, and key sums, for even or odd channels."""
    row, column = tl.arange(0, HALF), tl.arange(0, 2 * HALF)
    at = (parity * HALF + row) * (2 * HALF + 1)
    state = tl.load(state_ptr + at[:, None] + column[None, :]).to(ACC)
    same = _same_head(parity, HEAD, HALF, ACC)
    return tl.where(same > 0, state, 0.0), tl.load(state_ptr + at + 2 * HALF).to(ACC)


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
    row = tl.arange(0, BLOCK)
    even, odd = tl.zeros((HALF, 2 * HALF), ACC), tl.zeros((HALF, 2 * HALF), ACC)
    even_keys, odd_keys = tl.zeros((HALF,), ACC), tl.zeros((HALF,), ACC)
    for start in range(0, SPLIT, BLOCK):
        first, turn, rows = _tile(sample, split * SPLIT + start, tokens, channels)
        k0 = _feature(_load(k_ptr + first, row, 2 * pair, rows, channels, real_pair, float("-inf"), ACC))
        k1 = _feature(_load(k_ptr + first, row, 2 * pair + 1, rows, channels, real_pair, float("-inf"), ACC))
        v = _load(v_ptr + first, row, channel, rows, channels, real_channel, 0.0, ACC)
        cos, sin = _angles(rope_ptr, turn, row, pair, rows, channels, real_pair, ACC)
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
    pair, real_pair, channel, real_channel = _channels(group, channels, WIDTH, HALF)
    row = tl.arange(0, BLOCK)
    first, turn, rows = _tile(sample, tl.program_id(0) * BLOCK, tokens, channels)
    state_ptr += (sample * tl.num_programs(1) + group).to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    state0, keys0 = _load_state(state_ptr, 0, HEAD, HALF, ACC)
    state1, keys1 = _load_state(state_ptr, 1, HEAD, HALF, ACC)
    q0 = _feature(_load(q_ptr + first, row, 2 * pair, rows, channels, real_pair, float("-inf"), ACC))
    q1 = _feature(_load(q_ptr + first, row, 2 * pair + 1, rows, channels, real_pair, float("-inf"), ACC))
    cos, sin = _angles(rope_ptr, turn, row, pair, rows, channels, real_pair, ACC)
    normaliser = _sum_heads(q0 * keys0[None, :], q1 * keys1[None, :], HEAD, HALF, PRECISION, ACC) + eps
    out = tl.dot(q0 * cos - q1 * sin, state0, input_precision=PRECISION, out_dtype=ACC)
    out = tl.dot(q0 * sin + q1 * cos, state1, out, input_precision=PRECISION, out_dtype=ACC) / normaliser
    if add_ptr is not None:
        out += _load(add_ptr + first, row, channel, rows, channels, real_channel, 0.0, ACC)
    if gate_ptr is not None:
        gate = _load(gate_ptr + first, row, channel, rows, channels, real_channel, 0.0, ACC)
        out *= gate * (1 / (1 + tl.exp(-gate)))
    _store(out_ptr + first, out, row, channel, rows, channels, real_channel)


@triton.jit
def query_grad_kernel(
    grad_ptr, q_ptr, state_ptr, rope_ptr, add_ptr, gate_ptr,
    g_q_ptr, g_add_ptr, g_gate_ptr, g_state_ptr, tokens, channels, eps,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Backward, first pass: everything a tile's own output tells, and its share of the gradient of the state.

    One tile per program: sums kept over a loop of them would not fit the registers beside a tile's ten products.
    """
    tile, group, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    pair, real_pair, channel, real_channel = _channels(group, channels, WIDTH, HALF)
    row = tl.arange(0, BLOCK)
    first, turn, rows = _tile(sample, tile * BLOCK, tokens, channels)
    at = sample * tl.num_programs(1) + group
    state_ptr += at.to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    state0, keys0 = _load_state(state_ptr, 0, HEAD, HALF, ACC)
    state1, keys1 = _load_state(state_ptr, 1, HEAD, HALF, ACC)
    q0 = _feature(_load(q_ptr + first, row, 2 * pair, rows, channels, real_pair, float("-inf"), ACC))
    q1 = _feature(_load(q_ptr + first, row, 2 * pair + 1, rows, channels, real_pair, float("-inf"), ACC))
    cos, sin = _angles(rope_ptr, turn, row, pair, rows, channels, real_pair, ACC)
    turned0, turned1 = q0 * cos - q1 * sin, q0 * sin + q1 * cos
    normaliser = _sum_heads(q0 * keys0[None, :], q1 * keys1[None, :], HEAD, HALF, PRECISION, ACC) + eps
    out = tl.dot(turned0, state0, input_precision=PRECISION, out_dtype=ACC)
    out = tl.dot(turned1, state1, out, input_precision=PRECISION, out_dtype=ACC) / normaliser

    grad = _load(grad_ptr + first, row, channel, rows, channels, real_channel, 0.0, ACC)
    if gate_ptr is not None:
        gate = _load(gate_ptr + first, row, channel, rows, channels, real_channel, 0.0, ACC)
        ungated = out
        if add_ptr is not None:
            ungated += _load(add_ptr + first, row, channel, rows, channels, real_channel, 0.0, ACC)
        open_share = 1 / (1 + tl.exp(-gate))
        g_gate = grad * ungated * open_share * (1 + gate * (1 - open_share))
        _store(g_gate_ptr + first, g_gate, row, channel, rows, channels, real_channel)
        grad *= gate * open_share
    if add_ptr is not None:
        _store(g_add_ptr + first, grad, row, channel, rows, channels, real_channel)

    g_product = grad / normaliser
    # Gradient of the normaliser, summed over the columns of its head.
    g_sum0, g_sum1 = _sum_columns(-g_product * out, HEAD, HALF, PRECISION, ACC)
    g_turned0 = tl.dot(g_product, tl.trans(state0), input_precision=PRECISION, out_dtype=ACC)
    g_turned1 = tl.dot(g_product, tl.trans(state1), input_precision=PRECISION, out_dtype=ACC)
    g_q0 = (g_turned0 * cos + g_turned1 * sin + g_sum0 * keys0[None, :]) * tl.minimum(q0, 1.0)  # phi's slope
    g_q1 = (g_turned1 * cos - g_turned0 * sin + g_sum1 * keys1[None, :]) * tl.minimum(q1, 1.0)
    _store(g_q_ptr + first, g_q0, row, 2 * pair, rows, channels, real_pair)
    _store(g_q_ptr + first, g_q1, row, 2 * pair + 1, rows, channels, real_pair)
    # Nothing may move across: the two halves of the gradient, interleaved, would not fit the registers.
    tl.debug_barrier()
    g_state0 = tl.dot(tl.trans(turned0), g_product, input_precision=PRECISION, out_dtype=ACC)
    g_state1 = tl.dot(tl.trans(turned1), g_product, input_precision=PRECISION, out_dtype=ACC)
    g_state_ptr += (at * tl.num_programs(0) + tile).to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    _store_state(g_state_ptr, g_state0, tl.sum(q0 * g_sum0, axis=0), 0, HALF)
    _store_state(g_state_ptr, g_state1, tl.sum(q1 * g_sum1, axis=0), 1, HALF)


@triton.jit
def key_grad_kernel(
    k_ptr, v_ptr, g_state_ptr, rope_ptr, g_k_ptr, g_v_ptr, tokens, channels,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Backward, second pass: keys and values from the finished gradient of the state."""
    group, sample = tl.program_id(1), tl.program_id(2)
    pair, real_pair, channel, real_channel = _channels(group, channels, WIDTH, HALF)
    row = tl.arange(0, BLOCK)
    first, turn, rows = _tile(sample, tl.program_id(0) * BLOCK, tokens, channels)
    g_state_ptr += (sample * tl.num_programs(1) + group).to(tl.int64) * (2 * HALF * (2 * HALF + 1))
    g_state0, g_keys0 = _load_state(g_state_ptr, 0, HEAD, HALF, ACC)
    g_state1, g_keys1 = _load_state(g_state_ptr, 1, HEAD, HALF, ACC)

    k0 = _feature(_load(k_ptr + first, row, 2 * pair, rows, channels, real_pair, float("-inf"), ACC))
    k1 = _feature(_load(k_ptr + first, row, 2 * pair + 1, rows, channels, real_pair, float("-inf"), ACC))
    v = _load(v_ptr + first, row, channel, rows, channels, real_channel, 0.0, ACC)
    cos, sin = _angles(rope_ptr, turn, row, pair, rows, channels, real_pair, ACC)
    g_turned0 = tl.dot(v, tl.trans(g_state0), input_precision=PRECISION, out_dtype=ACC)
    g_turned1 = tl.dot(v, tl.trans(g_state1), input_precision=PRECISION, out_dtype=ACC)
    g_k0 = (g_turned0 * cos + g_turned1 * sin + g_keys0[None, :]) * tl.minimum(k0, 1.0)  # phi's slope
    g_k1 = (g_turned1 * cos - g_turned0 * sin + g_keys1[None, :]) * tl.minimum(k1, 1.0)
    _store(g_k_ptr + first, g_k0, row, 2 * pair, rows, channels, real_pair)
    _store(g_k_ptr + first, g_k1, row, 2 * pair + 1, rows, channels, real_pair)
    g_v = tl.dot(k0 * cos - k1 * sin, g_state0, input_precision=PRECISION, out_dtype=ACC)
    g_v = tl.dot(k0 * sin + k1 * cos, g_state1, g_v, input_precision=PRECISION, out_dtype=ACC)
    _store(g_v_ptr + first, g_v, row, channel, rows, channels, real_channel)
