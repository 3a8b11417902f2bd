"""3D Haar transform against the published one and plain PyTorch: `python kernels/benchmarks/bench_haar3d.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from _table import Table, no_grad, start, step
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.haar3d import haar3d, haar3d_project, haar3d_project_reference, haar3d_reference, ihaar3d

SHAPES = [(4, 1, 64, 64, 64), (4, 16, 32, 32, 32), (1, 16, 64, 64, 64), (16, 1, 64, 64, 64), (2, 4, 96, 96, 96)]


def filters(x: Tensor) -> Tensor:
    """The eight band filters, (8, 1, 2, 2, 2)."""
    line = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=x.dtype, device=x.device) * 0.5**0.5
    return torch.einsum("ai,bj,ck->abcijk", line, line, line).reshape(8, 1, 2, 2, 2)


def published(x: Tensor) -> Tensor:
    """The released formulation: a filter bank along W, then H, then D, each time one grouped convolution."""
    line = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=x.dtype, device=x.device) * 0.5**0.5
    for axis in (4, 3, 2):
        channels, shape = x.shape[1], [2 if n in (0, axis) else 1 for n in range(5)]
        stride = [2 if n == axis else 1 for n in (2, 3, 4)]
        parts = F.conv3d(x, line.view(shape).repeat(channels, 1, 1, 1, 1), stride=stride, groups=channels)
        x = parts.unflatten(1, (channels, 2)).transpose(1, 2).flatten(1, 2)  # the band in front of the channel
    return x


def one_convolution(x: Tensor) -> Tensor:
    """Eight filters on every channel in one strided convolution, bands brought to the front afterwards."""
    channels = x.shape[1]
    bands = F.conv3d(x, filters(x).repeat(channels, 1, 1, 1, 1), stride=2, groups=channels)
    return bands.unflatten(1, (channels, 8)).transpose(1, 2).flatten(1, 2)


def published_unit(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The released unit: the transform once for each of its two convolutions."""
    return F.conv3d(published(x)[:, : x.shape[1]], low), F.conv3d(published(x)[:, x.shape[1] :], high)


def main() -> None:
    device, arguments = start("3D Haar transform (K5)")
    shapes = SHAPES[:1] if arguments.quick else SHAPES
    forward = Table("3D Haar transform, forward", device, rounds=25)
    training = Table("3D Haar transform, forward and backward", device, rounds=15)
    unit = Table("Transform and two projections (DISGAN's unit)", device, rounds=15)
    names = {
        "ours": haar3d,
        "published": published,
        "one convolution": one_convolution,
        "butterfly in plain PyTorch": haar3d_reference,
    }
    small = torch.randn(2, 3, 8, 6, 4, device=device)
    forward.check("haar3d", haar3d, haar3d_reference, [small])
    for shape in shapes:
        x, size = torch.randn(shape, device=device), " x ".join(map(str, shape))
        for peer in (published, one_convolution):
            forward.agree(size, haar3d(x), peer(x), 1e-6)
        forward.agree(size, ihaar3d(haar3d(x)), x, 1e-6)
        floor = 2 * x.numel() * 4 / 4.3e12 * 1e3
        forward.add(size, "float32", {name: no_grad(run, x) for name, run in names.items()}, floor)
    for shape in shapes:
        x, size = torch.randn(shape, device=device), " x ".join(map(str, shape))
        training.add(size, "float32", {name: step(run, [x]) for name, run in names.items()})
    for shape in shapes:
        x, size = torch.randn(shape, device=device), " x ".join(map(str, shape))
        low, high = (torch.randn(4, n * shape[1], 1, 1, 1, device=device) for n in (1, 7))
        unit.check("haar3d_project", _project, _project_reference, [small, *_weights(3, device)])
        unit.agree(size, _project(x, low, high)[1], published_unit(x, low, high)[1], 1e-5)
        units = {"ours": _project, "published": published_unit, "transform once": _project_reference}
        unit.add(size, "float32", {name: no_grad(run, x, low, high) for name, run in units.items()})
        steps = {name: step(_joined(run), [x, low, high]) for name, run in units.items()}
        unit.add(f"{size}, forward and backward", "float32", steps)


def _weights(channels: int, device: torch.device) -> list[Tensor]:
    return [torch.randn(2, n * channels, 1, 1, 1, device=device) for n in (1, 7)]


def _joined(run: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    return lambda *x: torch.cat(run(*x), dim=1)


def _project(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return haar3d_project(x, low, None, high, None)


def _project_reference(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return haar3d_project_reference(x, low, None, high, None)


if __name__ == "__main__":
    main()
