"""Window attention (WAU, RAT, Hiera) against the written-out formulation and PyTorch's own alternatives."""

from __future__ import annotations

from typing import Any

import torch
from _table import Table, no_grad, start, step
from torch import Tensor

from medseg_kernels.window_attention import window_attention, window_attention_reference

ROWS: list[dict[str, Any]] = [
    {
        "name": "WAU 2D, 256x256 over 128x128, M 8, bias",
        "fine": (256, 256),
        "coarse": (128, 128),
        "window": (8, 8),
        "bias": True,
    },
    {
        "name": "WAU 2D shifted, bias",
        "fine": (256, 256),
        "coarse": (128, 128),
        "window": (8, 8),
        "bias": True,
        "shift": True,
    },
    {
        "name": "WAU 3D, 48^3 over 24^3, M 4, bias",
        "fine": (48,) * 3,
        "coarse": (24,) * 3,
        "window": (4,) * 3,
        "bias": True,
    },
    {"name": "RAT 4x4 windows, 128x128", "fine": (128, 128), "coarse": (128, 128), "window": (4, 4)},
    {
        "name": "Hiera pooled queries, 64x64, M 8",
        "fine": (32, 32),
        "coarse": (64, 64),
        "window": (8, 8),
        "stride": (2, 2),
    },
]


def by_products(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, ...], **options: Any) -> Tensor:
    """Logits of every window in memory, softmax, product: what one writes without a fused attention."""
    return window_attention_reference(q, k, v, window, **options)


def row(table: Table, case: dict[str, Any], dtype: torch.dtype) -> None:
    """One case with 4 heads of 32, forward, then forward and backward."""
    device = table.device
    q = torch.randn(1, *case["fine"], 4, 32, device=device, dtype=dtype)
    k, v = torch.randn(2, 1, *case["coarse"], 4, 32, device=device, dtype=dtype).unbind(0)
    options = {key: case[key] for key in ("shift", "stride") if key in case}
    if "bias" in case:
        tokens = [1, 1]
        for fine, coarse, side in zip(case["fine"], case["coarse"], case["window"], strict=True):
            tokens = [tokens[0] * fine // coarse * side, tokens[1] * side]
        options["bias"] = torch.randn(4, *tokens, device=device, dtype=dtype)
    ours = no_grad(window_attention, q, k, v, case["window"], **options)
    plain = no_grad(by_products, q, k, v, case["window"], **options)
    table.agree("written out", ours(), plain(), 1e-5 if dtype == torch.float32 else 1e-2)
    table.add(f"{case['name']}, forward", str(dtype)[6:], {"ours": ours, "published": plain})
    trained = {
        "ours": step(window_attention, (q, k, v), case["window"], **options),
        "published": step(by_products, (q, k, v), case["window"], **options),
    }
    table.add(f"{case['name']}, forward + backward", str(dtype)[6:], trained)


def main() -> None:
    device, arguments = start("Window attention (WAU, RAT, SAM2)")
    table = Table("Window attention", device)
    for dtype in [torch.float32] if device.type == "cpu" else [torch.bfloat16, torch.float32]:
        inputs = [torch.randn(1, *grid, 2, 24, device=device, dtype=dtype) for grid in ((10, 6), (5, 3), (5, 3))]
        table.check("window_attention", window_attention, window_attention_reference, [*inputs, (4, 2)], shift=True)
        for case in ROWS[:1] if arguments.quick else ROWS:
            row(table, case, dtype)


if __name__ == "__main__":
    main()
