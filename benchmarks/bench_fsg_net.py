"""FSG-Net against its published formulation: equal weights, equal outputs, processor time and peak memory.

    python benchmarks/bench_fsg_net.py [--size 512] [--threads 2] [--runs 2]

The published formulation stands below, written plainly from its description (2501.18921 and its appendix): every layer
as it is named there, the guided filter in float64 with box sums of cumulative sums, batch norms of their own, and all
three outputs. Each side runs in a process of its own, so that the peak is its own too; the maps must agree to a
thousandth of their standard deviation, or nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.networks.fsg_net import FSGNet

State = dict[str, Tensor]


def _resized(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class Published:
    """The network as it was published, over a state dictionary with its names."""

    def __init__(self, state: State, depths: tuple[int, ...] = (3, 3, 9, 3)) -> None:
        self.state, self.depths = state, depths

    def _conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **options)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        parts = [self.state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, training=False, eps=1e-5)

    def _mconv(self, name: str, x: Tensor) -> Tensor:
        padding = self.state[f"{name}.0.weight"].shape[-1] // 2
        return F.relu(self._norm(f"{name}.1", self._conv(f"{name}.0", x, padding=padding)))

    def _next(self, name: str, x: Tensor) -> Tensor:
        inner = self._norm(f"{name}.norm", self._conv(f"{name}.dwconv", x, padding=1, groups=x.shape[1]))
        inner = self._conv(f"{name}.conv2", F.relu(self._conv(f"{name}.conv1", inner)))
        return x + self.state[f"{name}.gamma"].view(1, -1, 1, 1) * inner

    def _blocks(self, name: str, x: Tensor, count: int) -> Tensor:
        for number in range(1, count + 1):
            x = self._next(f"{name}.{number}", x)
        return x

    def _residual(self, name: str, x: Tensor) -> Tensor:
        inner = self._conv(f"{name}.conv_block.2", F.relu(self._norm(f"{name}.conv_block.0", x)), padding=1)
        inner = self._conv(f"{name}.conv_block.5", F.relu(self._norm(f"{name}.conv_block.3", inner)), padding=1)
        return inner + self._norm(f"{name}.conv_skip.1", self._conv(f"{name}.conv_skip.0", x, padding=1))

    def _attention(self, name: str, x: Tensor, g: Tensor) -> Tensor:
        theta = self._norm(f"{name}.theta.1", self._conv(f"{name}.theta.0", x))
        phi = _resized(self._norm(f"{name}.phi.1", self._conv(f"{name}.phi.0", g)), x.shape[2:])
        return self._norm(f"{name}.psi.1", self._conv(f"{name}.psi.0", F.relu(theta + phi))).sigmoid()

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 3, H, W) to probabilities of the fine, middle and coarse output."""
        size = image.shape[2:]
        x = self._blocks("input_layer", self._mconv("input_layer.0.conv", image), self.depths[0])
        x = x + self._mconv("input_skip.0.conv", image)
        skips = []
        for level in (1, 2, 3):
            scaled = image if level == 1 else _resized(image, [side // 2 ** (level - 1) for side in size])
            skips.append(torch.cat((self._mconv(f"conv{level}.conv", scaled), x), dim=1))
            x = self._conv(f"down_conv_{level + 1}.0", skips[-1], stride=2)
            x = self._blocks(f"down_conv_{level + 1}", x, self.depths[level])
        gate = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), dim=1)
        y = guide = x * self._conv("attn.conv", gate, padding=3).sigmoid()
        outputs = []
        for level in (3, 2, 1):
            skip = skips[level - 1]
            guide = self._mconv(f"conv_cat_{level}.conv", torch.cat((skip, _resized(guide, skip.shape[2:])), dim=1))
            coarse = _resized(guide, [side // 2 for side in skip.shape[2:]])
            y = guided(coarse, y, guide, self._attention(f"attention_block{level}", coarse, y))
            y = self._residual(f"up_residual_conv{level}", y)
            shown = y if level == 1 else _resized(y, size)
            outputs.insert(0, self._conv(f"output_layer{level}.0", shown).sigmoid())
        return outputs[0], outputs[1], outputs[2]


def guided(low_x: Tensor, low_y: Tensor, high_x: Tensor, attention: Tensor, *, eps: float = 1e-2) -> Tensor:
    """The attention-guided filter with radius 2, in float64, each mean as a sum over a window and its count."""
    x, y, a = low_x.double(), low_y.double(), attention.double().abs() + 1e-12
    count = _box(torch.ones_like(x))
    share = a / a.sum()
    mean_ax, mean_ay, mean_a = _box(a * x) / count, _box(a * y) / count, _box(a.expand_as(x)) / count
    q = count * (_box(share * a * x) / count)
    above = _box(a * a * x * y) / count - q * mean_ay
    slope = above / ((_box(a * a * x * x) / count - q * mean_ax).abs() + eps)
    offset = (mean_ay - slope * mean_ax) / mean_a
    fine_slope = _resized(_box(slope) / count, high_x.shape[2:])
    return (fine_slope * high_x.double() + _resized(_box(offset) / count, high_x.shape[2:])).float()


def _box(x: Tensor, radius: int = 2) -> Tensor:
    """Sums over windows of five by five, cut at the border, as differences of cumulative sums."""
    for axis in (2, 3):
        total, size = x.cumsum(axis), x.shape[axis]
        left = total.narrow(axis, radius, radius + 1)
        middle = total.narrow(axis, 2 * radius + 1, size - 2 * radius - 1)
        middle = middle - total.narrow(axis, 0, size - 2 * radius - 1)
        right = total.narrow(axis, size - 1, 1) - total.narrow(axis, size - 2 * radius - 1, radius)
        x = torch.cat((left, middle, right), dim=axis)
    return x


def measure(side: str, state_path: Path, size: int, runs: int) -> dict[str, Any]:
    """One side: the fine map, processor and wall seconds of the best run after one to warm up, and peak memory."""
    state = torch.load(state_path, map_location="cpu", weights_only=True)
    image = torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(1))
    if side == "published":
        published = Published(state)

        def predict() -> Tensor:
            return published(image)[0]

    else:
        network = FSGNet().eval()
        network.load_state_dict(state)
        del state

        def predict() -> Tensor:
            return network(image).sigmoid()

    times, found = [], torch.empty(0)
    with torch.inference_mode():
        for _ in range(runs + 1):
            cpu, wall = time.process_time(), time.perf_counter()
            found = predict()
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
    torch.save(found, state_path.with_name(f"{side}.pt"))
    cpu, wall = min(times[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "peak_mib": round(peak)}


def main() -> None:
    """Run both sides, check that they agree, print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--side", choices=("published", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        print(json.dumps(measure(args.side, args.state, args.size, args.runs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.pt"
        torch.save(_lively(FSGNet()).state_dict(), path)
        options = ["--size", str(args.size), "--threads", str(args.threads), "--runs", str(args.runs)]
        found = {}
        for side in ("published", "ours"):
            command = [sys.executable, __file__, "--side", side, "--state", str(path), *options]
            found[side] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        maps = [torch.load(path.with_name(f"{side}.pt"), weights_only=True) for side in ("published", "ours")]
    error = float((maps[0] - maps[1]).abs().max())
    error /= float(maps[0].std())
    if not error < 1e-3:
        sys.exit(f"the two sides differ by {error:.2g} standard deviations of the map, expected less than 1e-3")
    _report(found, error, args.size, args.threads)


def _lively(network: FSGNet) -> FSGNet:
    """Weights with which every part counts: blocks that start switched off are switched on, norms have statistics."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("gamma"):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
        elif name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif name.endswith("running_mean"):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return network


def _report(found: dict[str, dict[str, float]], error: float, size: int, threads: int) -> None:
    published, ours = found["published"], found["ours"]
    print(f"FSG-Net 64, {size} x {size}, batch 1, {threads} threads, float32")
    print(f"largest difference {error:.1e} standard deviations of the map")
    print(f"{'':<12}{'processor s':>12}{'wall s':>10}{'peak MiB':>10}")
    for side, values in found.items():
        print(f"{side:<12}{values['cpu_s']:>12}{values['wall_s']:>10}{values['peak_mib']:>10}")
    ratio, memory = published["cpu_s"] / ours["cpu_s"], ours["peak_mib"] / published["peak_mib"]
    print(f"{ratio:.2f} times faster by processor time, {memory:.2f} of the peak memory")


if __name__ == "__main__":
    main()
