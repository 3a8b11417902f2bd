"""Region attention (RAT) against the published dense formulation and PyTorch's own alternatives."""

from __future__ import annotations

import torch
from _table import Table, no_grad, resident_peak, start, step
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from medseg_kernels.layout import layout_from_labels
from medseg_kernels.region_attention import region_attention, region_attention_reference

GPU_ROWS = [(128, 8, 32, 50, 0.183), (256, 8, 32, 50, 2.877), (64, 8, 32, 50, 0.011)]  # serial floor, ms, on an H200
CPU_ROWS = [(64, 8, 32, 20), (64, 8, 32, 50), (64, 8, 32, 200), (128, 1, 32, 20), (128, 1, 32, 50), (128, 1, 32, 200)]


def skewed_regions(side: int, regions: int, device: torch.device) -> Tensor:
    """(1, side, side) labels like a segmenter's: 40 % background, the rest cells whose sizes differ widely."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    seeds = torch.rand(regions - 1, 2, generator=generator) ** 2 * side
    nearest = torch.cdist(torch.stack((y, x), -1).flatten(0, 1).float(), seeds).argmin(1).view(side, side) + 1
    return torch.where(x < 0.4 * side, 0, nearest)[None].to(device)


def share(labels: Tensor) -> float:
    """Chance that two tokens share a region: the work that is left of dense attention."""
    sizes = labels.flatten().unique(return_counts=True)[1].double()
    return float((sizes / sizes.sum()).square().sum())


def published(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Dense scores plus a mask of 0 and -1000, softmax over all tokens."""
    scores = q.transpose(1, 2) @ k.transpose(1, 2).mT * scale + mask
    return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)


def dense_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """PyTorch's fused attention with a boolean mask of all pairs."""
    parts = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale).transpose(1, 2)


def per_region(q: Tensor, k: Tensor, v: Tensor, labels: Tensor, scale: float) -> Tensor:
    """PyTorch's fused attention, one region after the other."""
    out = torch.empty_like(v)
    flat = labels.flatten()
    for region in flat.unique():
        rows = (flat == region).nonzero().flatten()
        parts = (x[:, rows].transpose(1, 2) for x in (q, k, v))
        out[:, rows] = F.scaled_dot_product_attention(*parts, scale=scale).transpose(1, 2)
    return out


def flexible(labels: Tensor, scale: float):
    """Compiled FlexAttention on tokens sorted by region, with a block mask: the strongest peer on a GPU."""
    order = labels.flatten().argsort(stable=True)
    region = labels.flatten()[order]
    tokens = len(order)
    mask = create_block_mask(
        lambda b, h, i, j: region[i] == region[j], None, None, tokens, tokens, device=labels.device
    )
    compiled = torch.compile(flex_attention)
    back = order.argsort()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (x[:, order].transpose(1, 2) for x in (q, k, v))
        return compiled(*parts, block_mask=mask, scale=scale).transpose(1, 2)[:, back]

    return run


def check(table: Table, device: torch.device, dtype: torch.dtype) -> None:
    """Output and gradients against float64 on a small map."""
    labels = skewed_regions(16, 9, device)
    inputs = [x.to(device, dtype) for x in torch.randn(3, 1, 256, 2, 24).unbind(0)]
    options = {"scale": 2**-0.5}

    def peer(q: Tensor, k: Tensor, v: Tensor, labels: Tensor, *, scale: float) -> Tensor:
        return per_region(q, k, v, labels, scale)

    inputs.append(labels)
    table.check("region_attention", region_attention, region_attention_reference, inputs, peers=[peer], **options)


def row(table: Table, side: int, heads: int, width: int, regions: int, dtype: torch.dtype, floor: float | None) -> None:
    """One size, forward, then forward and backward."""
    device, scale = table.device, heads**-0.5
    labels = skewed_regions(side, regions, device)
    layout = layout_from_labels(labels)
    q, k, v = torch.randn(1, side * side, 3, heads, width, device=device, dtype=dtype).unbind(2)
    flat = labels.flatten(1)
    same = (flat[:, :, None] == flat[:, None])[:, None]
    dense = side <= (128 if device.type == "cpu" else 256)
    mask = torch.where(same, 0.0, -1000.0).to(dtype) if dense else None
    ours = no_grad(region_attention, q, k, v, layout, scale=scale)
    table.agree(
        "published", ours(), no_grad(per_region, q, k, v, labels, scale)(), 1e-2 if dtype != torch.float32 else 1e-4
    )
    flex = flexible(labels, scale) if device.type == "cuda" else None
    contenders = {
        "ours": ours,
        "published": None if mask is None else no_grad(published, q, k, v, mask, scale),
        "SDPA + mask": no_grad(dense_masked, q, k, v, same, scale),
        "SDPA per region": no_grad(per_region, q, k, v, labels, scale),
        "FlexAttention": None if flex is None else no_grad(flex, q, k, v),
    }
    name = f"{side}x{side}, {heads}h D{width}, {regions} regions, share {share(labels):.2f}"
    table.add(f"{name}, forward", str(dtype)[6:], contenders, floor)
    trained = {
        "ours": step(region_attention, (q, k, v), layout, scale=scale),
        "published": None if mask is None else step(published, (q, k, v), mask, scale),
        "SDPA + mask": step(dense_masked, (q, k, v), same, scale),
        "SDPA per region": step(per_region, (q, k, v), labels, scale),
        "FlexAttention": None if flex is None else step(flex, (q, k, v)),
    }
    table.add(f"{name}, forward + backward", str(dtype)[6:], trained)


def large(device: torch.device) -> None:
    """256 x 256 tokens, where the published score matrix alone is 17 GB per head."""
    labels = skewed_regions(256, 50, device)
    q, k, v = torch.randn(1, 256 * 256, 3, 1, 32, device=device).unbind(2)
    before = resident_peak()
    no_grad(region_attention, q, k, v, labels, scale=1.0)()
    whole = resident_peak()
    print(f"\n256x256, 1 head, 50 regions: {(whole - before) / 1e6:.0f} MB for the op, {whole / 1e9:.2f} GB in all;")
    print("the published score matrix alone would take 17.2 GB")


def main() -> None:
    device, arguments = start("Region attention (RAT)")
    if device.type == "cpu":
        large(device)
    table = Table("Region attention", device, rounds=5)
    for dtype in [torch.float32] if device.type == "cpu" else [torch.bfloat16, torch.float32]:
        check(table, device, dtype)
        rows = [(*size, None) for size in CPU_ROWS] if device.type == "cpu" else GPU_ROWS
        for size in rows[:1] if arguments.quick else rows:
            row(table, *size[:4], dtype, size[4])


if __name__ == "__main__":
    main()
