"""DISGAN's generator and wavelet units: this package against the published formulation, with equal weights, on a CPU.

The published one is written here as it is described (2308.12084 and its code), with PyTorch's own functions: features
are concatenated before each convolution, everything behind the trunk is computed at once, and a wavelet unit transforms
the volume twice, each time by a filter bank along W, then H, then D. Each contender runs in a process of its own;
figures count only if the results agree. Memory is the peak above what libraries, weights and input take.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.networks.disgan import SHARE, SLOPE, Generator, WaveletUnit, shuffle

AGREE = 1e-4  # largest difference, relative to the largest entry
LIMIT = 2e9  # bytes, for a result of 128 x 128 x 128
UNITS = {"unit 4 x 1 x 64^3": (4, 1, 64), "unit 4 x 16 x 32^3": (4, 16, 32)}
GENERATORS = {"generator, 32^3 to 64^3": (3, 32), "one of 3 blocks, 64^3 to 128^3": (1, 64)}
Work = Callable[[], Tensor]


def published_unit(unit: WaveletUnit, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two transforms, each axis by axis with one grouped convolution; band-major channels."""
    line = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5  # sum and difference of two neighbours

    def bands() -> Tensor:
        found = x
        for axis in (4, 3, 2):
            channels, shape = found.shape[1], [2 if n in (0, axis) else 1 for n in range(5)]
            stride = [2 if n == axis else 1 for n in (2, 3, 4)]
            parts = F.conv3d(found, line.view(shape).repeat(channels, 1, 1, 1, 1), stride=stride, groups=channels)
            found = parts.unflatten(1, (channels, 2)).transpose(1, 2).flatten(1, 2)
        return found

    return unit.conv1x1_low(bands()[:, : x.shape[1]]), unit.conv1x1_high(bands()[:, x.shape[1] :])


def published_generator(network: Generator, x: Tensor) -> Tensor:
    """Concatenation inside dense blocks, the rest layer by layer."""
    shallow = network.conv1(x)
    deep = shallow
    for block in network.res_blocks1:
        inner = deep
        for dense in block.dense_blocks:
            features = inner
            for layer in (dense.b1, dense.b2, dense.b3, dense.b4):
                features = torch.cat((features, F.leaky_relu(layer(features), SLOPE)), 1)
            inner = inner + SHARE * dense.b5(features)
        deep = deep + SHARE * inner
    deep = shallow + network.conv2(deep)
    fine = shuffle(F.leaky_relu(network.upsampling[0](deep), SLOPE))
    return network.conv3[2](F.leaky_relu(network.conv3[0](fine), SLOPE))


def work(case: str, ours: bool) -> Work:
    """What one contender does, with weights and input drawn from one seed."""
    torch.manual_seed(0)
    if case in UNITS:
        batch, channels, side = UNITS[case]
        unit, x = WaveletUnit(channels, channels), torch.randn(batch, channels, side, side, side)
        run = unit if ours else lambda x: published_unit(unit, x)
        return lambda: torch.cat(run(x), 1)
    blocks, side = GENERATORS[case]
    network, x = Generator(num_res_blocks=blocks).eval(), torch.randn(1, 1, side, side, side)
    return lambda: network(x) if ours else published_generator(network, x)


def memory(entry: str) -> float:
    """A figure of this process in bytes: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(entry))) * 1024


@torch.inference_mode()
def run(case: str, ours: bool, rounds: int, out: Path) -> None:
    """One contender in this process: result, processor seconds, bytes above those before, and of the process."""
    do = work(case, ours)
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, seconds = memory("VmRSS"), []
    for _ in range(rounds):
        started = time.process_time()
        result = do()
        seconds.append(time.process_time() - started)
    peak = memory("VmHWM")
    np.savez(out, result=result.numpy(), figures=np.array([median(seconds), peak - before, peak]))


def measured(case: str, name: str, rounds: int, threads: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The result of one contender and its figures, from a process of its own."""
    out = folder / "out.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--run", case, name, str(out), "--rounds", str(rounds)]
    subprocess.run(command, env=environment, check=True)
    with np.load(out) as file:
        return file["result"], file["figures"]


def compared(case: str, rounds: int, threads: int, folder: Path) -> list[str]:
    """Print the rows of one case; returns what it should have kept and did not."""
    ours, mine = measured(case, "ours", rounds, threads, folder)
    theirs, other = measured(case, "published", rounds, threads, folder)
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference < AGREE:
        sys.exit(f"wrong, so not timed: results of {case} must agree to {AGREE}, got {difference:.1e}")
    for name, row in (("ours", mine), ("published", other)):
        print(f"| {case} | {name} | {1e3 * row[0]:.1f} ms | {row[1] / 1e6:.0f} MB | {row[2] / 1e9:.2f} GB |")
    faster, smaller = other[0] / mine[0], other[1] / max(mine[1], 1.0)
    print(f"| {case} | **published / ours** | {faster:.2f}x | {smaller:.2f}x | |", flush=True)
    broken = []
    if case in UNITS and faster < 10:
        broken.append(f"{case} must be 10x as fast, got {faster:.1f}x")
    if case in GENERATORS and (faster < 1 or smaller < 1):
        broken.append(f"{case} must be no slower and take less memory, got {faster:.2f}x and {smaller:.2f}x")
    if "128" in case and mine[2] > LIMIT:
        broken.append(f"{case} must fit into {LIMIT / 1e9:.0f} GB, got {mine[2] / 1e9:.2f} GB")
    return broken


def main() -> None:
    """Run every case twice, check that the results agree, print."""
    parser = argparse.ArgumentParser(description="DISGAN against the published formulation")
    parser.add_argument("--rounds", type=int, default=3, help="runs of a generator; units take ten times as many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--run", nargs=3, metavar=("CASE", "NAME", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        case, name, out = arguments.run
        run(case, name == "ours", arguments.rounds, Path(out))
        return
    print(f"{time.strftime('%Y-%m-%d')}, torch {version('torch')}, {arguments.threads} threads\n")
    print("| case | | processor time | memory | peak of the process |\n|---|---|---|---|---|")
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        for case in (*UNITS, *GENERATORS):
            if arguments.only in case:
                rounds = arguments.rounds * (10 if case in UNITS else 1)
                broken += compared(case, rounds, arguments.threads, Path(folder))
    if broken:
        sys.exit("\n".join(broken))


if __name__ == "__main__":
    main()
