"""RAT on a slice of 256 x 256 with some 50 regions: this package against the published formulation, on a CPU.

The published one is written here as it is described (2407.09268 and its code), with PyTorch's own functions: one
L x L matrix holds 0 for pixels of the same region and -1000 for others, and is added to the scores of all heads. Both
read the same weights, each in a process of its own; the figures count only if the results agree. Memory is the peak
while restoring, above what libraries, weights and image take; the peak of the whole process stands beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.networks.rat import RAT

SIDE, REGIONS, HEADS, WINDOW = 256, 50, 8, 4
AGREE = 1e-4  # largest difference, relative to the largest entry of what the network adds
FASTER, SMALLER = 3.0, 4.0  # times, in processor time and in memory
State = Mapping[str, Tensor]


def network() -> RAT:
    """The published configuration, random; branches that start at zero are switched on."""
    torch.manual_seed(0)
    rat = RAT()
    for name, parameter in rat.named_parameters():
        if name.rsplit(".", 1)[-1] in ("beta", "gamma", "lambda_ra", "lambda_wa"):
            torch.nn.init.normal_(parameter, std=0.3)
    return rat.eval()


def case() -> tuple[Tensor, Tensor]:
    """An image (1, 1, H, W) and the cells of random seeds as its regions, (1, H, W)."""
    draw = np.random.default_rng(0)
    seeds = draw.uniform(0, SIDE, (REGIONS, 2))
    places = np.stack(np.mgrid[:SIDE, :SIDE], axis=-1)
    distance = ((places[:, :, None] - seeds) ** 2).sum(-1)
    image = draw.normal(size=(1, 1, SIDE, SIDE)).astype(np.float32)
    return torch.from_numpy(image), torch.from_numpy(distance.argmin(-1))[None]


def convolved(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    """A convolution by its name."""
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def normed(state: State, name: str, x: Tensor) -> Tensor:
    """Per pixel over channels."""
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    x = (x - mean) / (variance + 1e-6).sqrt()
    return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def conv_block(state: State, name: str, x: Tensor) -> Tensor:
    """Gated convolutions with channel attention, then gated pointwise ones."""
    u = convolved(state, f"{name}.conv1", normed(state, f"{name}.norm1", x))
    first, second = convolved(state, f"{name}.conv2", u, padding=1, groups=u.shape[1]).chunk(2, dim=1)
    u = first * second
    u = convolved(state, f"{name}.conv3", u * convolved(state, f"{name}.sca.1", u.mean((2, 3), keepdim=True)))
    x = x + u * state[f"{name}.beta"]
    first, second = convolved(state, f"{name}.conv4", normed(state, f"{name}.norm2", x)).chunk(2, dim=1)
    return x + convolved(state, f"{name}.conv5", first * second) * state[f"{name}.gamma"]


def dense_mask(regions: Tensor) -> Tensor:
    """(B, H, W) to (B, 1, L, L): 0 where two pixels share a region, -1000 elsewhere; one outer product per id."""
    flat = regions.flatten(1)
    same = torch.zeros(len(flat), flat.shape[1], flat.shape[1])
    for number in range(int(flat.max()) + 1):
        inside = (flat == number).float()
        same += inside[:, :, None] @ inside[:, None]
    return ((same - 1) * 1000)[:, None]


def region_attention(state: State, name: str, x: Tensor, mask: Tensor) -> Tensor:
    """Attention over all pixels, the mask added."""
    q, k, v = convolved(state, f"{name}.qkv", x).flatten(2).unflatten(1, (3, HEADS, -1)).mT.unbind(1)
    scores = q @ k.mT * HEADS**-0.5
    weights = (scores + mask).softmax(-1)
    out = (weights @ v).mT.flatten(1, 2).unflatten(2, x.shape[2:])
    return convolved(state, f"{name}.project_out", out)


def window_attention(state: State, name: str, x: Tensor) -> Tensor:
    """Attention inside windows that are cut out."""
    batch, channels, height, width = x.shape
    grid = (batch, height // WINDOW, WINDOW, width // WINDOW, WINDOW, channels)
    windows = x.permute(0, 2, 3, 1).reshape(grid).transpose(2, 3).reshape(-1, WINDOW**2, channels)
    qkv = F.linear(windows, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
    q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    out = ((q @ k.mT * HEADS**-0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    out = F.linear(out, state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
    rows, columns = height // WINDOW, width // WINDOW
    out = out.view(batch, rows, columns, WINDOW, WINDOW, channels).transpose(2, 3)
    return out.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def layer(state: State, name: str, x: Tensor, mask: Tensor) -> Tensor:
    """Region attention, MLP, window attention, MLP."""

    def mlp(kind: str, x: Tensor) -> Tensor:
        inner = F.gelu(convolved(state, f"{name}.mlp_{kind}.fc1", normed(state, f"{name}.norm_{kind}_mlp", x)))
        return convolved(state, f"{name}.mlp_{kind}.fc2", inner)

    seen = region_attention(state, f"{name}.ra", normed(state, f"{name}.norm_ra", x), mask)
    x = x + state[f"{name}.lambda_ra"] * seen
    x = x + mlp("ra", x)
    seen = window_attention(state, f"{name}.wa", normed(state, f"{name}.norm_wa", x))
    x = x + state[f"{name}.lambda_wa"] * seen
    return x + mlp("wa", x)


def published(state: State, image: Tensor, regions: Tensor) -> Tensor:
    """The restored image."""
    x, skips = convolved(state, "intro", image, padding=1), []
    for level in range(2):
        for block in range(2):
            x = conv_block(state, f"encoders.{level}.{block}", x)
        skips.append(x)
        x = convolved(state, f"downs.{level}", x, stride=2)
    small = F.interpolate(regions[:, None].float(), scale_factor=0.25, mode="nearest")[:, 0]
    mask, latent = dense_mask(small), x
    for group in range(4):
        deep = x
        for index in range(3):
            deep = layer(state, f"middle_blks.{group}.layers.{index}", deep, mask)
        x = x + convolved(state, f"middle_blks.{group}.conv", deep, padding=1)
    x = latent + x
    for level in range(2):
        x = F.pixel_shuffle(convolved(state, f"ups.{level}.0", x), 2) + skips[-1 - level]
        for block in range(2):
            x = conv_block(state, f"decoders.{level}.{block}", x)
    return convolved(state, "ending", x, padding=1) + image


def contender(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """What restores an image with regions."""
    rat = network()
    if name == "ours":
        return rat
    state = rat.state_dict()
    return lambda image, regions: published(state, image, regions)


def memory(entry: str) -> float:
    """A figure of this process in bytes: `VmRSS` now, `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(entry))) * 1024


@torch.inference_mode()
def run(name: str, rounds: int, out: Path) -> None:
    """One contender in this process: result, processor seconds, bytes above those before, and of the process."""
    restore = contender(name)
    image, regions = case()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, seconds = memory("VmRSS"), []
    restored = restore(image, regions)  # not timed: libraries set themselves up
    for _ in range(rounds):
        started = time.process_time()
        restored = restore(image, regions)
        seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    grown = memory("VmHWM") - before
    np.savez(out, added=(restored - image).numpy(), figures=np.array([median(seconds), grown, peak]))


def measured(name: str, rounds: int, threads: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """What one contender adds to the image, and its figures, from a process of its own."""
    out = folder / f"{name}.npz"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--run", name, str(out), "--rounds", str(rounds)]
    subprocess.run(command, env=environment, check=True)
    with np.load(out) as file:
        return file["added"], file["figures"]


def main() -> None:
    """Run both, check that they agree, print."""
    parser = argparse.ArgumentParser(description="RAT on one slice, against the published formulation")
    parser.add_argument("--rounds", type=int, default=3, help="restorations of each; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", nargs=2, metavar=("NAME", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], arguments.rounds, Path(arguments.run[1]))
        return

    sizes = case()[1][:, ::4, ::4].flatten().bincount().double()
    print(f"{time.strftime('%Y-%m-%d')}, torch {version('torch')}, {arguments.threads} threads")
    print(f"{int((sizes > 0).sum())} regions, {float((sizes**2).sum() / sizes.sum() ** 2):.3f} of all pairs share one")
    names, rounds, threads = ("ours", "published"), arguments.rounds, arguments.threads
    with tempfile.TemporaryDirectory() as folder:
        found = {name: measured(name, rounds, threads, Path(folder)) for name in names}
    (ours, figures), (theirs, dense) = found["ours"], found["published"]
    difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not difference < AGREE:
        sys.exit(f"wrong, so not timed: results must agree to {AGREE}, got {difference:.1e}")
    print(f"largest difference {difference:.1e} of the largest entry\n")
    print("| | processor time | memory while restoring | peak of the process |\n|---|---|---|---|")
    for name, (_, row) in found.items():
        print(f"| {name} | {row[0]:.2f} s | {row[1] / 1e9:.2f} GB | {row[2] / 1e9:.2f} GB |")
    ratios = dense / figures
    print(f"| published / ours | {' | '.join(f'{ratio:.1f}x' for ratio in ratios)} |")
    if ratios[0] < FASTER or ratios[1] < SMALLER:
        sys.exit(f"must be {FASTER}x as fast and {SMALLER}x as small, got {ratios[0]:.1f}x and {ratios[1]:.1f}x")


if __name__ == "__main__":
    main()
