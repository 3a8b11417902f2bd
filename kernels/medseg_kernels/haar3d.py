"""3D Haar wavelet transform, its inverse, and the transform with two projections behind it (DISGAN, 2308.12084).

Along one axis low_i = (x_2i + x_2i+1) / sqrt 2 and high_i = (x_2i - x_2i+1) / sqrt 2; the transform does so along D, H
and W. It is orthonormal, so its inverse is its adjoint, and each op is the other's backward.

B batch, C channels, D H W voxels, d h w = half of them. Band = 4 * detail(D) + 2 * detail(H) + detail(W), band 0 is the
approximation. Channels of a transformed volume are band major: first all channels of band 0, then all of band 1, ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import is_recorded, kernel_types, launch_options, scripted_as, tl, triton, uses_triton

_CHUNK = 2**20  # voxels that the CPU path takes at a time: 4 MB, and as much for what lies between the axes
_FEW = 4  # channels up to which the library is slow to take a strided convolution backwards on a CPU
_SCALE = 8**-0.5  # of the three axes together
_BLOCK = 512  # cells of the half-size grid per program: 8 loads and 8 stores each, enough to keep the memory busy


def haar3d_reference(x: Tensor) -> Tensor:
    """What `haar3d` must equal: one axis after the other, plain PyTorch, any device, any dtype."""
    bands = x.unsqueeze(1)  # (B, bands so far, C, D, H, W)
    for axis in (-3, -2, -1):
        pairs = bands.unflatten(axis, (bands.shape[axis] // 2, 2))
        even, odd = pairs.select(axis, 0), pairs.select(axis, 1)
        bands = torch.stack((even + odd, even - odd), dim=2).flatten(1, 2) * 0.5**0.5
    return bands.flatten(1, 2)


def ihaar3d_reference(y: Tensor) -> Tensor:
    """What `ihaar3d` must equal: the three axes undone in reverse order."""
    bands = y.unflatten(1, (8, y.shape[1] // 8))
    for axis in (-1, -2, -3):
        pairs = bands.unflatten(1, (bands.shape[1] // 2, 2))
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        # The new axis of two lies right behind the one it doubles; positive, since `stack` counts the result's axes.
        behind = low.ndim + axis + 1
        bands = torch.stack((low + high, low - high), dim=behind).flatten(behind - 1, behind) * 0.5**0.5
    return bands.squeeze(1)


@triton.jit
def _cells(at, channels, depth, height, width):
    """Where half-size cell `at` lies: offset of its 2x2x2 block in the volume, and of band 0 in the transform."""
    w = at % width
    h = at // width % height
    d = at // (width * height) % depth
    c = at // (width * height * depth) % channels
    b = at // (width * height * depth * channels)
    block = (((b * channels + c) * 2 * depth + 2 * d) * 2 * height + 2 * h) * 2 * width + 2 * w
    band = (((b * 8 * channels + c) * depth + d) * height + h) * width + w
    return block, band


@triton.jit
def _load_row(x_ptr, block, inside, ACC: tl.constexpr):
    """Sum and difference of two neighbours along W; one load of both, since single ones would waste half of the bus."""
    pair = block[:, None] + tl.arange(0, 2)[None, :]
    even, odd = tl.split(tl.load(x_ptr + pair, mask=inside[:, None], other=0.0).to(ACC))
    return even + odd, even - odd


@triton.jit
def _store_row(out_ptr, block, low, high, inside):
    """Undo `_load_row`: two neighbours along W from their sum and difference, in one store."""
    pair = block[:, None] + tl.arange(0, 2)[None, :]
    tl.store(out_ptr + pair, tl.join(low + high, low - high), mask=inside[:, None])


@triton.jit
def _store_bands(band_ptr, stride, x00, x01, x10, x11, inside):
    """Write the four bands that differ in the details of D and H, from the four (d, h) corners of a block."""
    scale = 0.35355339059327373  # 8**-0.5
    tl.store(band_ptr, (x00 + x01 + x10 + x11) * scale, mask=inside)
    tl.store(band_ptr + 2 * stride, (x00 - x01 + x10 - x11) * scale, mask=inside)
    tl.store(band_ptr + 4 * stride, (x00 + x01 - x10 - x11) * scale, mask=inside)
    tl.store(band_ptr + 6 * stride, (x00 - x01 - x10 + x11) * scale, mask=inside)


@triton.jit
def _haar3d_kernel(x_ptr, out_ptr, cells, channels, depth, height, width, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """Read each 2x2x2 block once, write its eight bands; a program takes BLOCK blocks."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # int64: a batch of volumes passes 2**31 voxels
    inside = at < cells
    block, band = _cells(at, channels, depth, height, width)
    row, plane = 2 * width, 4 * height * width
    l00, h00 = _load_row(x_ptr, block, inside, ACC)
    l01, h01 = _load_row(x_ptr, block + row, inside, ACC)
    l10, h10 = _load_row(x_ptr, block + plane, inside, ACC)
    l11, h11 = _load_row(x_ptr, block + plane + row, inside, ACC)
    stride = channels.to(tl.int64) * depth * height * width  # from one band to the next
    _store_bands(out_ptr + band, stride, l00, l01, l10, l11, inside)
    _store_bands(out_ptr + band + stride, stride, h00, h01, h10, h11, inside)


@triton.jit
def _ihaar3d_kernel(y_ptr, out_ptr, cells, channels, depth, height, width, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """Read eight bands of a cell, write its 2x2x2 block."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < cells
    block, band = _cells(at, channels, depth, height, width)
    row, plane = 2 * width, 4 * height * width
    stride = channels.to(tl.int64) * depth * height * width
    scale = 0.35355339059327373
    aaa = tl.load(y_ptr + band, mask=inside, other=0.0).to(ACC) * scale
    aad = tl.load(y_ptr + band + stride, mask=inside, other=0.0).to(ACC) * scale
    ada = tl.load(y_ptr + band + 2 * stride, mask=inside, other=0.0).to(ACC) * scale
    add = tl.load(y_ptr + band + 3 * stride, mask=inside, other=0.0).to(ACC) * scale
    daa = tl.load(y_ptr + band + 4 * stride, mask=inside, other=0.0).to(ACC) * scale
    dad = tl.load(y_ptr + band + 5 * stride, mask=inside, other=0.0).to(ACC) * scale
    dda = tl.load(y_ptr + band + 6 * stride, mask=inside, other=0.0).to(ACC) * scale
    ddd = tl.load(y_ptr + band + 7 * stride, mask=inside, other=0.0).to(ACC) * scale
    _store_row(out_ptr, block, aaa + ada + daa + dda, aad + add + dad + ddd, inside)
    _store_row(out_ptr, block + row, aaa - ada + daa - dda, aad - add + dad - ddd, inside)
    _store_row(out_ptr, block + plane, aaa + ada - daa - dda, aad + add - dad - ddd, inside)
    _store_row(out_ptr, block + plane + row, aaa - ada - daa + dda, aad - add - dad + ddd, inside)


def _launch(kernel, source: Tensor, out: Tensor, volume: Tensor) -> Tensor:
    """Run either kernel; `volume` is the one of the two tensors that holds voxels, (B, C, D, H, W)."""
    channels, depth, height, width = volume.shape[1], *(side // 2 for side in volume.shape[2:])
    cells = volume.shape[0] * channels * depth * height * width
    if cells:
        types = {"ACC": kernel_types(source.dtype)["ACC"], "BLOCK": _BLOCK}
        grid = (triton.cdiv(cells, _BLOCK),)
        options = launch_options(warps=4, stages=1)
        kernel[grid](source, out, cells, channels, depth, height, width, **types, **options)
    return out


def _haar3d_plain(x: Tensor) -> Tensor:
    """The CPU path: D and H on whole rows, W last and right into the result; a slab at a time in the same buffers."""
    out = _haar3d_like(x)
    for blocks, bands, planes, rows in _slabs(x, out):
        for d, combine in enumerate((torch.add, torch.sub)):
            combine(blocks[:, :, :, 0], blocks[:, :, :, 1], out=planes)
            for h, combine_rows in enumerate((torch.add, torch.sub)):
                combine_rows(planes[:, :, :, :, 0], planes[:, :, :, :, 1], out=rows)
                _part_neighbours(rows, bands[d, h, 0], bands[d, h, 1])
    return out


def _ihaar3d_plain(y: Tensor) -> Tensor:
    """The CPU path of the inverse, the same steps backwards."""
    out = _ihaar3d_like(y)
    for blocks, bands, planes, rows in _slabs(out, y):
        difference = torch.empty_like(planes)
        for d, target in enumerate((planes, difference)):  # sum and difference of the two neighbours along D
            for h in range(2):
                _join_neighbours(bands[d, h, 0], bands[d, h, 1], rows)
                if h == 0:
                    target[:, :, :, :, 0] = rows
                else:
                    torch.sub(target[:, :, :, :, 0], rows, out=target[:, :, :, :, 1])
                    target[:, :, :, :, 0] += rows
        torch.add(planes, difference, out=blocks[:, :, :, 0])
        torch.sub(planes, difference, out=blocks[:, :, :, 1])
    return out


# PyTorch vectorises neither loads nor stores of every second number. But two neighbours a and b are a complex number
# a + ib, and (1 + i)(a + ib) = (a - b) + i(a + b); and they are one integer of 64 bits, whose halves truncation parts.


def _part_neighbours(rows: Tensor, low: Tensor, high: Tensor) -> None:
    """Write sum and difference of neighbours along W, over root 8: (..., W) to (..., w) twice; `rows` is used up."""
    rows *= _SCALE  # not within the factor below: then the bits would depend on where a slab ends
    if rows.dtype == torch.float32 and sys.byteorder == "little":
        rows.view(torch.complex64).mul_(1 + 1j)
        halves = rows.view(torch.int64)
        high.view(torch.int32).copy_(halves)
        low.view(torch.int32).copy_(halves.bitwise_right_shift_(32))
        return
    torch.add(rows[..., ::2], rows[..., 1::2], out=low)
    torch.sub(rows[..., ::2], rows[..., 1::2], out=high)


def _join_neighbours(low: Tensor, high: Tensor, rows: Tensor) -> None:
    """Undo `_part_neighbours` but for the scale, which is over root 8 again: (..., w) twice to (..., W)."""
    if rows.dtype == torch.float32:
        torch.complex(high, low, out=rows.view(torch.complex64)).mul_(1 - 1j)
    else:
        torch.add(low, high, out=rows[..., ::2])
        torch.sub(low, high, out=rows[..., 1::2])
    rows *= _SCALE


def _slabs(volume: Tensor, bands: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Cut (B, C, D, H, W) and (B, 8 C, d, h, w) into matching parts that fit a cache, each with two buffers.

    Yields the volume's part as (B, C, d, 2, h, 2, W), its bands as (2, 2, 2, B, C, d, h, w), and room for one
    (B, C, d, h, 2, W) and one (B, C, d, h, W).
    """
    if not volume.numel():
        return
    blocks = volume.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    parted = bands.unflatten(1, (2, 2, 2, -1)).movedim(0, 3)
    # As many whole samples as fit, else whole channels of one sample, else planes of one channel.
    sizes = [min(n, max(1, _CHUNK // part.numel())) for n, part in zip(blocks.shape, _firsts(blocks), strict=False)]
    space = volume.new_empty(*sizes, *blocks.shape[4:])
    rows = torch.empty_like(space[..., 0, :], memory_format=torch.contiguous_format)
    for b, c, d in product(*(range(0, n, size) for n, size in zip(blocks.shape, sizes, strict=False))):
        part = blocks[b : b + sizes[0], c : c + sizes[1], d : d + sizes[2]]
        taken = tuple(slice(n) for n in part.shape[:3])
        yield part, parted[:, :, :, b : b + sizes[0], c : c + sizes[1], d : d + sizes[2]], space[taken], rows[taken]


def _firsts(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first sample, the first channel and the first two planes of (B, C, d, 2, h, 2, W)."""
    return blocks[0], blocks[0, 0], blocks[0, 0, 0]


@torch.library.custom_op("medseg::haar3d", mutates_args=())
def _haar3d_op(x: Tensor) -> Tensor:
    if not uses_triton(x):
        return _haar3d_plain(x)
    return _launch(_haar3d_kernel, x.contiguous(), _haar3d_like(x), x)


@torch.library.custom_op("medseg::ihaar3d", mutates_args=())
def _ihaar3d_op(y: Tensor) -> Tensor:
    if not uses_triton(y):
        return _ihaar3d_plain(y)
    out = _ihaar3d_like(y)
    return _launch(_ihaar3d_kernel, y.contiguous(), out, out)


@_haar3d_op.register_fake
def _haar3d_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], 8 * x.shape[1], x.shape[2] // 2, x.shape[3] // 2, x.shape[4] // 2)


@_ihaar3d_op.register_fake
def _ihaar3d_like(y: Tensor) -> Tensor:
    return y.new_empty(y.shape[0], y.shape[1] // 8, 2 * y.shape[2], 2 * y.shape[3], 2 * y.shape[4])


_haar3d_op.register_autograd(lambda ctx, grad: _ihaar3d_op(grad))
_ihaar3d_op.register_autograd(lambda ctx, grad: _haar3d_op(grad))


@scripted_as(haar3d_reference)
def haar3d(x: Tensor) -> Tensor:
    """Transform a volume to its eight Haar bands at half the size.

    Args:
        x: Volume, (B, C, D, H, W), every side even, floating point.

    Returns:
        (B, 8 C, D/2, H/2, W/2), band major, in the dtype of `x`; the energy of `x` is kept.

    Raises:
        ValueError: `x` is not five-dimensional, or a side is odd.
    """
    if x.ndim != 5 or x.shape[2] % 2 or x.shape[3] % 2 or x.shape[4] % 2:
        raise ValueError(f"x must be (B, C, D, H, W) with even D, H and W, got {list(x.shape)}; pad it first")
    if is_recorded():
        return haar3d_reference(x)
    return _haar3d_op(x)


@scripted_as(ihaar3d_reference)
def ihaar3d(y: Tensor) -> Tensor:
    """Rebuild a volume from its eight Haar bands; the exact inverse and the adjoint of `haar3d`.

    Args:
        y: Bands, (B, 8 C, d, h, w), band major, floating point.

    Returns:
        (B, C, 2 d, 2 h, 2 w) in the dtype of `y`.

    Raises:
        ValueError: `y` is not five-dimensional, or its channels are no multiple of 8.
    """
    if y.ndim != 5 or y.shape[1] % 8:
        raise ValueError(f"y must be (B, 8 C, d, h, w), got {list(y.shape)}")
    if is_recorded():
        return ihaar3d_reference(y)
    return _ihaar3d_op(y)


def haar3d_project_reference(
    x: Tensor, low_weight: Tensor, low_bias: Tensor | None, high_weight: Tensor, high_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What `haar3d_project` must equal: the transform, then one pointwise convolution per group of bands."""
    bands = haar3d_reference(x)
    low, high = bands[:, : x.shape[1]], bands[:, x.shape[1] :]
    return F.conv3d(low, low_weight, low_bias), F.conv3d(high, high_weight, high_bias)


def haar3d_project(
    x: Tensor, low_weight: Tensor, low_bias: Tensor | None, high_weight: Tensor, high_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Project the approximation and the seven detail bands of a volume to new channels, without forming the bands.

    The transform is linear, so both pointwise convolutions and the transform are one convolution with a 2x2x2 kernel
    at stride 2. That is a library product on any device: there is no kernel of ours to beat it with. (But for the
    training of few channels on a CPU, where the transform goes first.)

    Args:
        x: Volume, (B, C, D, H, W), every side even.
        low_weight: For band 0, (o, C, 1, 1, 1).
        low_bias: (o,), or None.
        high_weight: For bands 1 to 7, band major, (p, 7 C, 1, 1, 1).
        high_bias: (p,), or None.

    Returns:
        (B, o, D/2, H/2, W/2) and (B, p, D/2, H/2, W/2).

    Raises:
        ValueError: A side of `x` is odd.
    """
    if x.ndim != 5 or x.shape[2] % 2 or x.shape[3] % 2 or x.shape[4] % 2:
        raise ValueError(f"x must be (B, C, D, H, W) with even D, H and W, got {list(x.shape)}; pad it first")
    if _transforms_first(x):
        bands = haar3d(x)
        low, high = bands[:, : x.shape[1]], bands[:, x.shape[1] :]
        return F.conv3d(low, low_weight, low_bias), F.conv3d(high, high_weight, high_bias)
    # A weight over bands, seen as coefficients, is the inverse transform away from a weight over voxels.
    low = F.pad(low_weight, [0, 0, 0, 0, 0, 0, 0, 7 * x.shape[1]])
    high = F.pad(high_weight, [0, 0, 0, 0, 0, 0, x.shape[1], 0])
    weight = ihaar3d_reference(torch.cat((low, high)))
    out = F.conv3d(x, weight, _joined(low_weight, low_bias, high_weight, high_bias), stride=2)
    return out[:, : low.shape[0]], out[:, low.shape[0] :]


def _transforms_first(x: Tensor, few: int = _FEW) -> bool:  # a default, since scripts know no names of a module
    """Whether few channels are trained on a CPU; never where calls are recorded."""
    return x.device.type == "cpu" and x.shape[1] <= few and torch.is_grad_enabled() and not is_recorded()


def _joined(low_weight: Tensor, low_bias: Tensor | None, high_weight: Tensor, high_bias: Tensor | None) -> Tensor:
    """Both biases in a row; zeros for one that is not given."""
    low = low_weight.new_zeros(low_weight.shape[0]) if low_bias is None else low_bias
    high = high_weight.new_zeros(high_weight.shape[0]) if high_bias is None else high_bias
    return torch.cat((low, high))
