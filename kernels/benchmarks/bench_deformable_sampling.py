"""Deformable sampling against grid_sample and a gather: `python kernels/benchmarks/bench_deformable_sampling.py`."""

from __future__ import annotations

from typing import Any

import torch
from _table import Table, no_grad, start, step
from torch import Tensor

from medseg_kernels.deformable_sampling import deform_sample, deform_sample_reference

Shapes = list[tuple[int, int]]
# queries, levels of 64 x 64; DB-SAM's ViT side and its five-branch variant, 12 heads of 64, 4 points
SIZES = [(1024, 4), (4096, 1), (4096, 4), (5120, 5)]


def gather(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Four gathers per level in plain PyTorch, weighted and added up."""
    batch, _, heads, width = value.shape
    out, first = value.new_zeros(batch, locations.shape[1], heads, width), 0
    for level, (rows, columns) in enumerate(shapes):
        pixels = value[:, first : first + rows * columns].transpose(1, 2)  # (B, h, pixels, D)
        x, y = (locations[:, :, :, level] * locations.new_tensor([columns, rows]) - 0.5).unbind(-1)
        for low in range(2):
            for right in range(2):
                column, row = x.floor() + right, y.floor() + low
                share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * weights[:, :, :, level]
                real = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
                index = torch.where(real, row * columns + column, 0).long().transpose(1, 2)  # (B, h, Q, P)
                seen = pixels.gather(2, index.flatten(2)[..., None].expand(-1, -1, -1, width))
                seen = seen.unflatten(2, index.shape[2:]) * (share * real).transpose(1, 2)[..., None]
                out = out + seen.sum(3).transpose(1, 2)
        first += rows * columns
    return out.flatten(2)


def main() -> None:
    device, arguments = start("deformable sampling (K3)")
    sizes = SIZES[:1] if arguments.quick else SIZES
    forward = Table("Deformable sampling, 12 heads of 64, 4 points, levels 64 x 64, forward", device, rounds=3)
    training = Table("The same, forward and backward", device, rounds=3)
    small = tensors(7, [(4, 5), (3, 3)], 2, 12, device)
    forward.check("deform_sample", deform_sample, deform_sample_reference, small)
    peers = {"ours": deform_sample, "published (grid_sample)": deform_sample_reference, "gather": gather}
    for queries, levels in sizes:
        inputs, size = tensors(queries, [(64, 64)] * levels, 12, 64, device), f"{queries} queries, {levels} levels"
        for run in (deform_sample_reference, gather):
            forward.agree(size, deform_sample(*inputs), run(*inputs), 1e-5)
        forward.add(size, "float32", {name: no_grad(run, *inputs) for name, run in peers.items()})
    for queries, levels in sizes[:2]:
        value, shapes, locations, weights = tensors(queries, [(64, 64)] * levels, 12, 64, device)

        def run(op: Any, shapes: Shapes = shapes) -> Any:
            return lambda first, *rest: op(first, shapes, *rest)

        size, leaves = f"{queries} queries, {levels} levels", [value, locations, weights]
        training.add(size, "float32", {name: step(run(op), leaves) for name, op in peers.items()})


def tensors(queries: int, shapes: Shapes, heads: int, width: int, device: torch.device) -> list[Any]:
    points = (1, queries, heads, len(shapes), 4)
    value = torch.randn(1, sum(rows * columns for rows, columns in shapes), heads, width, device=device)
    locations = torch.rand(*points, 2, device=device) * 1.1 - 0.05
    weights = torch.randn(points, device=device).flatten(3).softmax(-1).view(points)
    return [value, shapes, locations, weights]


if __name__ == "__main__":
    main()
