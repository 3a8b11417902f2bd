"""Rotary attention to a memory bank (SAM2-SGP) against the published formulation and PyTorch's own alternatives."""

from __future__ import annotations

import torch
from _table import Table, no_grad, start
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.rope_attention import rope_attention, rope_attention_reference, rotate


def published(
    q: Tensor, k: Tensor, memory: Tensor, table: tuple[Tensor, Tensor], weight: Tensor, unrotated: int
) -> Tensor:
    """Values projected first, scores in memory."""
    return rope_attention_reference(q, k, memory, *table, unrotated=unrotated, v_weight=weight)


def fused(q: Tensor, k: Tensor, memory: Tensor, table: tuple[Tensor, Tensor], weight: Tensor, unrotated: int) -> Tensor:
    """Values projected first, PyTorch's fused attention."""
    values = torch.einsum("bnc,hdc->bnhd", memory, weight)
    parts = (rotate(q, *table), rotate(k, *table, unrotated=unrotated), values)
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in parts)).transpose(1, 2)


def row(table: Table, frames: int, side: int, unrotated: int, dtype: torch.dtype, floor: float | None) -> None:
    """One bank of `frames` memories of side x side tokens and `unrotated` pointer tokens, one head of 256."""
    device, places, tokens = table.device, side * side, frames * side * side + unrotated
    angle = torch.randn(places, 128, device=device)
    angles = (angle.cos(), angle.sin())
    q = torch.randn(1, places, 1, 256, device=device, dtype=dtype)
    k = torch.randn(1, tokens, 1, 256, device=device, dtype=dtype)
    memory = torch.randn(1, tokens, 64, device=device, dtype=dtype)
    weight = torch.randn(1, 256, 64, device=device, dtype=dtype) / 8
    ours = no_grad(rope_attention, q, k, memory, *angles, unrotated=unrotated, v_weight=weight)
    plain = no_grad(published, q, k, memory, angles, weight, unrotated)
    table.agree("published", ours(), plain(), 1e-5 if dtype == torch.float32 else 2e-2)
    contenders = {
        "ours": ours,
        "published": plain,
        "SDPA, values projected": no_grad(fused, q, k, memory, angles, weight, unrotated),
    }
    table.add(f"{places} queries, {tokens} keys, 1h D256", str(dtype)[6:], contenders, floor)


def main() -> None:
    device, arguments = start("Rotary attention to a memory bank (SAM2-SGP)")
    table = Table("Rotary attention", device)
    for dtype in [torch.float32] if device.type == "cpu" else [torch.bfloat16, torch.float32]:
        angle = torch.randn(12, 8)
        inputs = [torch.randn(1, n, 1, 16, device=device, dtype=dtype) for n in (12, 27, 27)]
        inputs += [angle.cos().to(device, dtype), angle.sin().to(device, dtype)]

        def peer(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, *, unrotated: int) -> Tensor:
            parts = (rotate(q, cos, sin), rotate(k, cos, sin, unrotated=unrotated), v)
            return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in parts)).transpose(1, 2)

        table.check("rope_attention", rope_attention, rope_attention_reference, inputs, peers=[peer], unrotated=3)
        cpu = [(1, 32, 0, None), (7, 32, 64, None)]
        rows = cpu if device.type == "cpu" else [(1, 64, 0, 0.026), (7, 64, 64, 0.126), (16, 64, 64, None)]
        for frames, side, unrotated, floor in rows[:1] if arguments.quick else rows:
            row(table, frames, side, unrotated, dtype, floor)


if __name__ == "__main__":
    main()
