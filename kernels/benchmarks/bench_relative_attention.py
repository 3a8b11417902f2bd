"""Decomposed relative position attention (SAM) against the published formulation and PyTorch's alternatives."""

from __future__ import annotations

import torch
from _table import Table, no_grad, start, step
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from medseg_kernels.relative_attention import relative_attention, relative_attention_reference, relative_position

ROWS = [  # grid, heads, width, window, serial floor on an H200 in ms
    ((64, 64), 12, 64, 14, 0.007),
    ((64, 64), 12, 64, None, 0.117),
    ((64, 64), 16, 80, None, 0.178),
]


def partitioned(x: Tensor, window: int | None, pad: Tensor) -> Tensor:
    """(B, H, W, h, D) to (B * windows, window, window, h, D), the fill equal to `pad` as after a padded projection."""
    if window is None:
        return x
    batch, height, width, heads, D = x.shape
    whole = pad.expand(batch, height + -height % window, width + -width % window, heads, D).clone()
    whole[:, :height, :width] = x
    whole = whole.unflatten(1, (-1, window)).unflatten(3, (-1, window)).transpose(2, 3)
    return whole.flatten(0, 2)


def joined(x: Tensor, like: Tensor, window: int | None) -> Tensor:
    """Undo `partitioned`."""
    if window is None:
        return x
    height, width = like.shape[1:3]
    x = x.unflatten(0, (len(like), -(-height // window), -(-width // window))).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2)[:, :height, :width]


def heads_first(x: Tensor, window: int | None, pad: Tensor) -> Tensor:
    """(B', h, N, D), the layout of the published code."""
    return partitioned(x, window, pad).flatten(1, 2).transpose(1, 2).contiguous()


def written_out(
    q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], window: int | None, pad: Tensor, *, fused: bool
):
    """The N x N bias in memory; then the published product, softmax and product, or PyTorch's fused attention."""
    cut = partitioned(q, window, pad)
    side = cut.shape[1:3]
    rel_h, rel_w = (x.movedim(3, 1).flatten(2, 3) for x in relative_position(cut, *tables))
    queries, keys, values = (heads_first(x, window, pad) for x in (q, k, v))
    if fused:
        bias = (rel_h[..., None] + rel_w[..., None, :]).flatten(3)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    else:
        logits = (queries * queries.shape[-1] ** -0.5) @ keys.mT
        logits = logits.unflatten(3, side) + rel_h[..., None] + rel_w[..., None, :]
        out = logits.flatten(3).softmax(-1) @ values
    return joined(out.transpose(1, 2).unflatten(1, side), q, window)


def flexible():
    """Compiled FlexAttention that adds rel_h and rel_w to each score: the strongest peer on a GPU."""
    compiled = torch.compile(flex_attention)

    def run(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, Tensor], window: int | None, pad: Tensor) -> Tensor:
        cut = partitioned(q, window, pad)
        side = cut.shape[1:3]
        rel_h, rel_w = (x.movedim(3, 1).flatten(2, 3) for x in relative_position(cut, *tables))
        parts = (heads_first(x, window, pad) for x in (q, k, v))

        def add(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + rel_h[b, h, i, j // side[1]] + rel_w[b, h, i, j % side[1]]

        out = compiled(*parts, score_mod=add)
        return joined(out.transpose(1, 2).unflatten(1, side), q, window)

    return run


def row(table: Table, size: tuple, dtype: torch.dtype) -> None:
    """One grid, forward, then forward and backward."""
    grid, heads, width, window, floor = size
    device = table.device
    fused = torch.randn(1, *grid, 3, heads, width, device=device, dtype=dtype)
    q, k, v = fused.unbind(3)
    keys = grid if window is None else (window, window)
    tables = tuple(torch.randn(2 * n - 1, width, device=device, dtype=dtype) * 0.3 for n in keys)
    pad = torch.randn(heads, width, device=device, dtype=dtype)
    options = {"window": window, "pad_k": pad, "pad_v": pad}
    ours = no_grad(relative_attention, q, k, v, *tables, **options)
    published = no_grad(written_out, q, k, v, tables, window, pad, fused=False)
    table.agree("published", ours(), published(), 1e-5 if dtype == torch.float32 else 1e-2)
    flex = flexible() if device.type == "cuda" else None
    contenders = {
        "ours": ours,
        "published": published,
        "SDPA + written bias": no_grad(written_out, q, k, v, tables, window, pad, fused=True),
        "FlexAttention": None if flex is None else no_grad(flex, q, k, v, tables, window, pad),
    }
    name = f"{grid[0]}x{grid[1]}, {heads}h D{width}, " + ("global" if window is None else f"windows of {window}")
    table.add(f"{name}, forward", str(dtype)[6:], contenders, floor)
    if device.type == "cpu" and window is None:
        return  # the published backward pass keeps three score tensors of 805 MB; its memory row says enough
    trained = {
        "ours": step(relative_attention, (q, k, v), *tables, **options),
        "published": step(written_out, (q, k, v), tables, window, pad, fused=False),
        "SDPA + written bias": step(written_out, (q, k, v), tables, window, pad, fused=True),
        "FlexAttention": None,
    }
    table.add(f"{name}, forward + backward", str(dtype)[6:], trained)


def main() -> None:
    device, arguments = start("Relative position attention (SAM, DB-SAM)")
    table = Table("Relative position attention", device)
    for dtype in [torch.float32] if device.type == "cpu" else [torch.bfloat16, torch.float32]:
        inputs = [x.to(device, dtype) for x in torch.randn(3, 1, 9, 6, 2, 24).unbind(0)]
        inputs += [torch.randn(n, 24, device=device, dtype=dtype) * 0.3 for n in (17, 11)]
        pad = torch.zeros(2, 24, device=device, dtype=dtype)

        def peer(q: Tensor, k: Tensor, v: Tensor, *tables: Tensor, pad: Tensor = pad) -> Tensor:
            return written_out(q, k, v, (tables[0], tables[1]), None, pad, fused=True)

        table.check("relative_attention", relative_attention, relative_attention_reference, inputs, peers=[peer])
        rows = ROWS[:2] if device.type == "cpu" else ROWS
        for size in rows[:1] if arguments.quick else rows:
            row(table, size, dtype)


if __name__ == "__main__":
    main()
