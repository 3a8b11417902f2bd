"""Guided filter against the published formulation: `python kernels/benchmarks/bench_guided_filter.py`."""

from __future__ import annotations

import torch
from _table import Table, no_grad, start, step
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.guided_filter import guided_filter, guided_filter_reference

# channels and coarse side of FSG-Net's calls; the fine side is twice as large
SIZES = [(64, 128), (128, 64), (512, 64), (256, 128), (64, 336)]


def running_box(x: Tensor, radius: int) -> Tensor:
    """Clipped window sums by running sums and differences, as released."""
    for axis in (2, 3):
        total = x.cumsum(axis)
        first = total.narrow(axis, radius, radius + 1)
        middle = total.narrow(axis, 2 * radius + 1, x.shape[axis] - 2 * radius - 1)
        middle = middle - total.narrow(axis, 0, x.shape[axis] - 2 * radius - 1)
        last = total.narrow(axis, x.shape[axis] - 1, 1)
        last = last - total.narrow(axis, x.shape[axis] - 2 * radius - 1, radius)
        x = torch.cat((first, middle, last), axis)
    return x


def running(low_x: Tensor, low_y: Tensor, high_x: Tensor, attention: Tensor) -> Tensor:
    """The released formulation in the dtype of its inputs; float32 loses digits in it."""
    a = attention.abs() + 1e-12
    count = running_box(torch.ones_like(a), 2)

    def mean(x: Tensor) -> Tensor:
        return running_box(x, 2) / count

    ax, ay = a * low_x, a * low_y
    q = count * mean(a / a.sum() * ax)
    slope = (mean(ax * ay) - q * mean(ay)) / ((mean(ax * ax) - q * mean(ax)).abs() + 1e-2)
    offset = (mean(ay) - slope * mean(ax)) / mean(a)
    size = high_x.shape[2:]
    slope, offset = (F.interpolate(mean(x), size, mode="bilinear", align_corners=True) for x in (slope, offset))
    return slope * high_x + offset


def published(*maps: Tensor) -> Tensor:
    """As released: everything in float64."""
    return running(*(x.double() for x in maps)).to(maps[0].dtype)


def main() -> None:
    device, arguments = start("attention-guided filter (K4)")
    sizes = SIZES[:1] if arguments.quick else SIZES
    forward = Table("Guided filter, forward", device, rounds=7)
    training = Table("Guided filter, forward and backward", device, rounds=3)
    forward.check("guided_filter", guided_filter, guided_filter_reference, maps(2, 3, 7, 9, device))
    for channels, side in sizes:
        inputs, size = maps(1, channels, side, side, device), f"{channels} x {side}^2 to {2 * side}^2"
        forward.agree(size, guided_filter(*inputs), published(*inputs), 5e-6)
        names = {"ours": guided_filter, "published": published, "published in float32": running}
        names["direct sums in plain PyTorch"] = guided_filter_reference
        floor = 10 * channels * side**2 * 4 / 4.3e12 * 1e3  # two coarse maps and the guide in, the result out
        forward.add(size, "float32", {name: no_grad(run, *inputs) for name, run in names.items()}, floor)
    for channels, side in sizes[:3]:
        inputs, size = maps(1, channels, side, side, device), f"{channels} x {side}^2 to {2 * side}^2"
        names = {"ours": guided_filter, "published": published, "published in float32": running}
        names["direct sums in plain PyTorch"] = guided_filter_reference
        training.add(size, "float32", {name: step(run, inputs) for name, run in names.items()})


def maps(batch: int, channels: int, height: int, width: int, device: torch.device) -> list[Tensor]:
    x, y = (torch.randn(batch, channels, height, width, device=device) for _ in range(2))
    high = torch.randn(batch, channels, 2 * height, 2 * width, device=device)
    return [x, y, high, torch.rand(batch, 1, height, width, device=device)]


if __name__ == "__main__":
    main()
