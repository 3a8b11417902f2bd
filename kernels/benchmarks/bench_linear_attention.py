"""Gated linear attention against the published formulation: `python kernels/benchmarks/bench_linear_attention.py`."""

from __future__ import annotations

from typing import Any

import torch
from _table import Table, no_grad, start, step
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.linear_attention import linear_attention, linear_attention_reference

# channels and heads of HER-Seg's stages, and of narrower and wider ones; 64 x 64 tokens
SIZES = [(24, 3), (96, 6), (96, 12), (96, 24), (192, 12)]


def published(q: Tensor, k: Tensor, v: Tensor, heads: int, rope: Tensor, add: Tensor, gate: Tensor) -> Tensor:
    """The released formulation: complex rotation, products per head, both factors of the state scaled."""
    tokens = q.shape[1]
    q, k = F.elu(q) + 1.0, F.elu(k) + 1.0

    def turn(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(2, (-1, 2)))
        return torch.view_as_real(torch.view_as_complex(rope) * pairs).flatten(2)

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    normaliser = 1 / (split(q) @ split(k).mean(2, keepdim=True).mT + 1e-6)
    state = (split(turn(k)).mT * tokens**-0.5) @ (split(v) * tokens**-0.5)
    out = (split(turn(q)) @ state * normaliser).transpose(1, 2).flatten(2)
    return (out + add) * F.silu(gate)


def main() -> None:
    device, arguments = start("gated linear attention (K2)")
    sizes = SIZES[:1] if arguments.quick else SIZES
    q, k, v, heads, rope, add, gate = tensors(37, 24, 6, device)
    forward = Table("Gated linear attention, 4096 tokens, forward", device, rounds=25)
    options = {"rope": rope, "add": add, "gate": gate}
    forward.check("linear_attention", linear_attention, linear_attention_reference, [q, k, v, heads], **options)
    for channels, heads in sizes:
        inputs, size = tensors(4096, channels, heads, device), f"{channels} channels, {heads} heads"
        torch.compiler.reset()  # each size is a graph of its own, and their number is limited
        compiled, peer = (torch.compile(run, dynamic=False) for run in (linear_attention, published))
        names = {"ours": linear_attention, "published": published}
        names |= {"ours compiled": compiled, "published compiled": peer, "reference": linear_attention_reference}
        for run in names.values():
            forward.agree(size, linear_attention(*inputs), run(*inputs), 1e-5)
        floor = 6 * q.element_size() * 4096 * channels / 4.3e12 * 1e3
        forward.add(size, "float32", {name: no_grad(run, *inputs) for name, run in names.items()}, floor)
    training = Table("The same, forward and backward", device, rounds=15)
    for channels, heads in sizes:
        q, k, v, heads, rope, add, gate = tensors(4096, channels, heads, device)

        def run(op: Any, heads: int = heads, rope: Tensor = rope) -> Any:
            return lambda *x: op(*x[:3], heads, rope, *x[3:])

        names = {"ours": linear_attention, "published": published, "reference": linear_attention_reference}
        leaves = [q, k, v, add, gate]
        training.add(
            f"{channels} channels, {heads} heads", "float32", {n: step(run(f), leaves) for n, f in names.items()}
        )


def tensors(tokens: int, channels: int, heads: int, device: torch.device) -> list[Any]:
    q, k, v, add, gate = (torch.randn(1, tokens, channels, device=device) for _ in range(5))
    angle = torch.rand(tokens, channels // 2, device=device) * 6
    return [q, k, v, heads, torch.stack((angle.cos(), angle.sin()), dim=-1), add, gate]


if __name__ == "__main__":
    main()
