"""Triton kernels of `guided_filter`: window sums, the line of each window, and the backward of both.

One program takes BLOCK pixels of one plane. The backward collects at the receiving pixel, so there are no atomics. The
formulas stand on top of `guided_filter.py`.

B batch, C channels, h w coarse side.
"""

from __future__ import annotations

from medseg_kernels.dispatch import tl, triton


@triton.jit
def _count(row, column, height, width, RADIUS: tl.constexpr):
    """Pixels of the window around (row, column) that lie inside the map."""
    rows = tl.minimum(row + RADIUS, height - 1) - tl.maximum(row - RADIUS, 0) + 1
    columns = tl.minimum(column + RADIUS, width - 1) - tl.maximum(column - RADIUS, 0) + 1
    return rows * columns


@triton.jit
def box_kernel(
    x_ptr, out_ptr, height, width, RADIUS: tl.constexpr, MEAN: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """Window sums of one plane. MEAN 0 leaves them, 1 divides by the count, 2 is the adjoint of 1."""
    plane = tl.program_id(1).to(tl.int64) * height * width  # int64: maps of a batch pass 2**31 elements
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, column = at // width, at % width
    SIDE: tl.constexpr = 2 * RADIUS + 1
    total = tl.zeros((BLOCK,), ACC)
    for tap in range(SIDE * SIDE):
        y, x = row + tap // SIDE - RADIUS, column + tap % SIDE - RADIUS
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        value = tl.load(x_ptr + plane + y * width + x, mask=inside, other=0.0).to(ACC)
        total += value / tl.maximum(_count(y, x, height, width, RADIUS), 1) if MEAN == 2 else value
    if MEAN == 1:
        total /= tl.maximum(_count(row, column, height, width, RADIUS), 1)
    tl.store(out_ptr + plane + at, total, mask=at < height * width)


@triton.jit
def _window_sums(
    x_ptr, y_ptr, a_ptr, row, column, height, width, RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr
):
    """S of a, a x, a y, a^2 x, a^2 x^2 and a^2 x y, all from one reading of the three maps."""
    SIDE: tl.constexpr = 2 * RADIUS + 1
    s_a, s_ax, s_ay = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    s_aax, s_aaxx, s_aaxy = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for tap in range(SIDE * SIDE):
        v, u = row + tap // SIDE - RADIUS, column + tap % SIDE - RADIUS
        inside = (v >= 0) & (v < height) & (u >= 0) & (u < width)
        at = v * width + u
        a = tl.load(a_ptr + at, mask=inside, other=0.0).to(ACC)
        ax = a * tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC)
        ay = a * tl.load(y_ptr + at, mask=inside, other=0.0).to(ACC)
        s_a += a
        s_ax += ax
        s_ay += ay
        s_aax += a * ax
        s_aaxx += ax * ax
        s_aaxy += ax * ay
    return s_a, s_ax, s_ay, s_aax, s_aaxx, s_aaxy


@triton.jit
def _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area):
    """Move the pointers to the planes of this program's sample and channel; a one-channel guide serves them all."""
    plane = tl.program_id(1).to(tl.int64)
    sample, channel = plane // channels, plane % channels
    guide = sample * guide_channels + channel % guide_channels
    return x_ptr + guide * area, y_ptr + plane * area, a_ptr + sample * area, plane * area, sample


@triton.jit
def coefficients_kernel(
    x_ptr, y_ptr, a_ptr, total_ptr, out_ptr, channels, guide_channels, height, width, eps,
    RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A and b of every window of one plane; out is (2, B, C, h, w)."""
    area = height * width
    x_ptr, y_ptr, a_ptr, plane, sample = _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < area
    row, column = at // width, at % width
    s_a, s_ax, s_ay, s_aax, s_aaxx, s_aaxy = _window_sums(
        x_ptr, y_ptr, a_ptr, row, column, height, width, RADIUS, ACC, BLOCK
    )
    n = tl.maximum(_count(row, column, height, width, RADIUS), 1)
    q = s_aax / tl.load(total_ptr + sample).to(ACC)
    slope = (s_aaxy - q * s_ay) / n / (tl.abs(s_aaxx - q * s_ax) / n + eps)
    offset = (s_ay - slope * s_ax) / tl.where(inside, s_a, 1.0)
    tl.store(out_ptr + plane + at, slope, mask=inside)
    planes = tl.num_programs(1).to(tl.int64)
    tl.store(out_ptr + planes * area + plane + at, offset, mask=inside)


@triton.jit
def coefficients_to_sums_kernel(
    grad_ptr, x_ptr, y_ptr, a_ptr, total_ptr, out_ptr, channels, guide_channels, height, width, eps,
    RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """First half of the backward: gradient of the six sums of each window, (6, B, C, h, w), the sums made anew."""
    area = height * width
    x_ptr, y_ptr, a_ptr, plane, sample = _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < area
    row, column = at // width, at % width
    s_a, s_ax, s_ay, s_aax, s_aaxx, s_aaxy = _window_sums(
        x_ptr, y_ptr, a_ptr, row, column, height, width, RADIUS, ACC, BLOCK
    )
    s_a = tl.where(inside, s_a, 1.0)
    n = tl.maximum(_count(row, column, height, width, RADIUS), 1)
    total = tl.load(total_ptr + sample).to(ACC)
    step = tl.num_programs(1).to(tl.int64) * area  # from one map to the next
    g_slope = tl.load(grad_ptr + plane + at, mask=inside, other=0.0).to(ACC)
    g_offset = tl.load(grad_ptr + step + plane + at, mask=inside, other=0.0).to(ACC)

    q = s_aax / total
    spread = s_aaxx - q * s_ax  # N times what the absolute value is taken of
    divisor = tl.abs(spread) + n * eps
    slope = (s_aaxy - q * s_ay) / divisor
    offset = (s_ay - slope * s_ax) / s_a
    g_slope -= g_offset * s_ax / s_a
    g_top = g_slope / divisor  # of s_aaxy - q * s_ay
    g_spread = -g_top * slope * tl.where(spread > 0, 1.0, tl.where(spread < 0, -1.0, 0.0))
    g_q = -g_top * s_ay - g_spread * s_ax
    out_ptr += plane + at
    tl.store(out_ptr, -g_offset * offset / s_a, mask=inside)
    tl.store(out_ptr + step, -g_offset * slope / s_a - g_spread * q, mask=inside)
    tl.store(out_ptr + 2 * step, g_offset / s_a - g_top * q, mask=inside)
    tl.store(out_ptr + 3 * step, g_q / total, mask=inside)
    tl.store(out_ptr + 4 * step, g_spread, mask=inside)
    tl.store(out_ptr + 5 * step, g_top, mask=inside)


@triton.jit
def sums_to_inputs_kernel(
    sums_ptr, x_ptr, y_ptr, a_ptr, total_ptr, out_ptr, channels, guide_channels, height, width,
    RADIUS: tl.constexpr, ACC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Second half: a pixel collects from all windows it is in; out holds gradients of x, y, a, total, per channel."""
    area = height * width
    x_ptr, y_ptr, a_ptr, plane, sample = _planes(x_ptr, y_ptr, a_ptr, channels, guide_channels, area)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < area
    row, column = at // width, at % width
    step = tl.num_programs(1).to(tl.int64) * area
    SIDE: tl.constexpr = 2 * RADIUS + 1
    g_a, g_ax, g_ay = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    g_aax, g_aaxx, g_aaxy = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for tap in range(SIDE * SIDE):
        v, u = row + tap // SIDE - RADIUS, column + tap % SIDE - RADIUS
        real = (v >= 0) & (v < height) & (u >= 0) & (u < width)
        window = sums_ptr + plane + v * width + u
        g_a += tl.load(window, mask=real, other=0.0).to(ACC)
        g_ax += tl.load(window + step, mask=real, other=0.0).to(ACC)
        g_ay += tl.load(window + 2 * step, mask=real, other=0.0).to(ACC)
        g_aax += tl.load(window + 3 * step, mask=real, other=0.0).to(ACC)
        g_aaxx += tl.load(window + 4 * step, mask=real, other=0.0).to(ACC)
        g_aaxy += tl.load(window + 5 * step, mask=real, other=0.0).to(ACC)
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(ACC)
    y = tl.load(y_ptr + at, mask=inside, other=0.0).to(ACC)
    a = tl.load(a_ptr + at, mask=inside, other=0.0).to(ACC)
    out_ptr += plane + at
    tl.store(out_ptr, a * (g_ax + a * (g_aax + 2 * x * g_aaxx + y * g_aaxy)), mask=inside)
    tl.store(out_ptr + step, a * (g_ay + a * x * g_aaxy), mask=inside)
    from_squares = 2 * a * x * (g_aax + x * g_aaxx + y * g_aaxy)
    tl.store(out_ptr + 2 * step, g_a + x * g_ax + y * g_ay + from_squares, mask=inside)
    tl.store(out_ptr + 3 * step, -a * a * x * g_aax / tl.load(total_ptr + sample).to(ACC), mask=inside)
