"""SAM 2's image encoder and memory attention against the published formulation, on a CPU.

The published one is written here as it is described, with PyTorch's own layers: windows are cut out and padded before
the projection, every map stands in memory whole, memory keys and values are projected and turned for every frame. Both
read the same weights; nothing is timed before their results agree. Processor time of the process is what counts, the
contenders take turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.networks.sam2 import PRESETS, Sam2
from medseg.networks.sam2_hiera import HieraBlock
from medseg.networks.sam2_memory import sine_places

State = Mapping[str, Tensor]
GOALS = {"encoder": 1.25, "memory attention": 1.5}
AGREE = 1e-4  # largest difference, relative to the largest entry


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """A layer by its name."""
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def normed(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """A layer norm by its name."""
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def pooled(x: Tensor) -> Tensor:
    """(B, H, W, C) to half the sides, the largest of each 2 x 2."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def cut(x: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, H, W, C) filled up with zeros and cut into (B * windows, side, side, C), and the filled sides."""
    batch, height, width, channels = x.shape
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    parts = x.view(batch, rows, side, columns, side, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
    return parts.view(-1, side, side, channels), (x.shape[1], x.shape[2])


def joined(x: Tensor, side: int, filled: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Undo `cut`, for windows of `side` on a grid that was filled up to `filled`."""
    rows, columns = filled[0] // side, filled[1] // side
    x = x.reshape(-1, rows, columns, side, side, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).contiguous()
    return x.view(x.shape[0], *filled, x.shape[-1])[:, : grid[0], : grid[1]].contiguous()


def plain_block(state: State, name: str, x: Tensor, *, heads: int, window: int, pool: bool) -> Tensor:
    """One block of Hiera."""
    a = normed(state, f"{name}.norm1", x, 1e-6)
    if f"{name}.proj.weight" in state:
        x = linear(state, f"{name}.proj", a)
        x = pooled(x) if pool else x
    grid, filled = (a.shape[1], a.shape[2]), (a.shape[1], a.shape[2])
    if window:
        a, filled = cut(a, window)
    batch, height, width, _ = a.shape
    qkv = linear(state, f"{name}.attn.qkv", a).reshape(batch, height * width, 3, heads, -1)
    q, k, v = qkv.unbind(2)
    if pool:
        q = pooled(q.reshape(batch, height, width, -1))
        height, width = q.shape[1:3]
        q = q.reshape(batch, height * width, heads, -1)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    out = linear(state, f"{name}.attn.proj", out.reshape(batch, height, width, -1))
    if window:
        step = 2 if pool else 1
        grid = (x.shape[1], x.shape[2])
        out = joined(out, window // step, (filled[0] // step, filled[1] // step), grid)
    x = x + out
    inner = F.gelu(linear(state, f"{name}.mlp.layers.0", normed(state, f"{name}.norm2", x, 1e-6)))
    return x + linear(state, f"{name}.mlp.layers.1", inner)


def plain_encoder(network: Sam2, image: Tensor) -> list[Tensor]:
    """Features of an image: trunk, neck, and the decoder's two narrow projections."""
    state, trunk = network.state_dict(), "image_encoder.trunk"
    patch = f"{trunk}.patch_embed.proj"
    x = F.conv2d(image, state[f"{patch}.weight"], state[f"{patch}.bias"], stride=4, padding=3).permute(0, 2, 3, 1)
    fine = state[f"{trunk}.pos_embed_window"]
    coarse = F.interpolate(state[f"{trunk}.pos_embed"], x.shape[1:3], mode="bicubic")
    tiled = fine.tile([a // b for a, b in zip(coarse.shape, fine.shape, strict=True)])
    x = x + (coarse + tiled).permute(0, 2, 3, 1)
    stages = []
    for index, block in enumerate(network.image_encoder.trunk.blocks):
        assert isinstance(block, HieraBlock)
        sizes = {"heads": block.attn.num_heads, "window": block.attn.window, "pool": block.attn.pool}
        x = plain_block(state, f"{trunk}.blocks.{index}", x, **sizes)
        if index in network.image_encoder.trunk.ends:
            stages.append(x.permute(0, 3, 1, 2))

    def point(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"])

    levels = [point(f"image_encoder.neck.convs.{3 - level}.conv", stage) for level, stage in enumerate(stages)]
    levels[2] = levels[2] + F.interpolate(levels[3], scale_factor=2.0, mode="nearest")
    return [point("sam_mask_decoder.conv_s0", levels[0]), point("sam_mask_decoder.conv_s1", levels[1]), levels[2]]


def turned(x: Tensor, table: Tensor) -> Tensor:
    """(B, 1, T, D) turned by a complex table (N, D / 2), repeated for every frame."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * table.repeat(x.shape[2] // len(table), 1)).flatten(3)


def plain_attention(state: State, name: str, table: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention with one head, queries and keys turned after their projection."""
    q, k, v = (linear(state, f"{name}.{p}_proj", x)[:, None] for p, x in (("q", q), ("k", k), ("v", v)))
    out = F.scaled_dot_product_attention(turned(q, table), turned(k, table), v)
    return linear(state, f"{name}.out_proj", out[:, 0])


def plain_memory_attention(network: Sam2, deep: Tensor, memory: Tensor) -> Tensor:
    """An embedding (1, C, g, g) after it read memories (K, m, g, g)."""
    state, side = network.state_dict(), deep.shape[2]
    x = deep.flatten(2).mT + 0.1 * sine_places((side, side), deep.shape[1]).flatten(2).mT
    tokens = memory.flatten(2).mT.reshape(1, -1, memory.shape[1])
    marks = sine_places((side, side), memory.shape[1]).flatten(2).mT.repeat(1, len(memory), 1)
    table = rotary_table(side, deep.shape[1])
    for index in range(len(network.memory_attention.layers)):
        name = f"memory_attention.layers.{index}"
        own = normed(state, f"{name}.norm1", x, 1e-5)
        x = x + plain_attention(state, f"{name}.self_attn", table, own, own, own)
        read = normed(state, f"{name}.norm2", x, 1e-5)
        x = x + plain_attention(state, f"{name}.cross_attn_image", table, read, tokens + marks, tokens)
        inner = F.relu(linear(state, f"{name}.linear1", normed(state, f"{name}.norm3", x, 1e-5)))
        x = x + linear(state, f"{name}.linear2", inner)
    return normed(state, "memory_attention.norm", x, 1e-5).mT.unflatten(2, (side, side))


def rotary_table(side: int, width: int) -> Tensor:
    """Complex rotations by column and row, (side * side, width / 2)."""
    speed = 10_000.0 ** -(torch.arange(0, width, 4)[: width // 4].float() / width)
    at = torch.arange(side * side, dtype=torch.float32)
    angle = torch.cat((torch.outer(at % side, speed), torch.outer(at.div(side, rounding_mode="floor"), speed)), 1)
    return torch.polar(torch.ones_like(angle), angle)


def check(name: str, ours: Tensor, plain: Tensor) -> None:
    """Stop unless both results agree."""
    error = float((ours - plain).abs().max() / plain.abs().max())
    print(f"{name}: largest difference {error:.1e} of the largest entry")
    if not error <= AGREE:
        sys.exit(f"wrong, so not timed: {name} must agree within {AGREE}")


def timed(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, tuple[float, float]]:
    """Median processor and wall time of each, in seconds, in turns after one round that does not count."""
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            if turn:
                spent[name].append((time.process_time() - processor, time.perf_counter() - wall))
    return {name: (median(a for a, _ in all_), median(b for _, b in all_)) for name, all_ in spent.items()}


def report(title: str, times: Mapping[str, tuple[float, float]], goal: float | None) -> bool:
    """Print a table; say whether the first contender reaches its goal against the last, in processor time."""
    print(f"\n### {title}\n\n| | processor time | wall | published / this |\n|---|---|---|---|")
    reference = list(times.values())[-1][0]
    for name, (processor, wall) in times.items():
        print(f"| {name} | {processor:.2f} s | {wall:.2f} s | {reference / processor:.2f}x |")
    reached = goal is None or reference / next(iter(times.values()))[0] >= goal
    print(f"\ngoal {goal}x: {'reached' if reached else 'MISSED'}" if goal else "", flush=True)
    return reached


def bench_encoder(network: Sam2, preset: str, side: int, rounds: int) -> bool:
    image = torch.randn(1, 3, side, side)
    for name, ours, plain in zip(
        ("fine", "middle", "deep"), network.encode(image), plain_encoder(network, image), strict=True
    ):
        check(f"encoder, {name} features", ours, plain)
    times = timed({"ours": lambda: network.encode(image), "published": lambda: plain_encoder(network, image)}, rounds)
    return report(f"Image encoder, {preset}, {side} x {side}", times, GOALS["encoder"])


def bench_memory(network: Sam2, count: int, grid: int, rounds: int) -> bool:
    deep = torch.randn(1, network.config.channels, grid, grid)
    memory = torch.randn(count, network.config.memory_channels, grid, grid)
    every = torch.arange(count)[None]

    def first() -> Tensor:
        return network.condition(deep, network.remember(memory).chosen(every))

    memories = network.remember(memory).chosen(every)
    check(f"memory attention, {count} memories", first(), plain_memory_attention(network, deep, memory))
    times = timed(
        {
            "ours, memories known": lambda: network.condition(deep, memories),
            "ours, memories new": first,
            "published": lambda: plain_memory_attention(network, deep, memory),
        },
        rounds,
    )
    return report(f"Memory attention, {count} memories of {grid} x {grid}", times, GOALS["memory attention"])


@torch.inference_mode()
def main() -> None:
    """Check, time, compare with the goals; exit 1 where one is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny")
    parser.add_argument("--side", type=int, default=1024, help="pixels; a multiple of 32")
    parser.add_argument("--memories", type=int, nargs="*", default=[4], help="how many memories a frame reads")
    parser.add_argument("--no-encoder", action="store_true", help="memory attention alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    network = Sam2(options.preset).eval()
    for parameter in network.parameters():  # no branch at zero
        parameter += 0.02 * torch.randn_like(parameter)
    print(f"{time.strftime('%Y-%m-%d')}, torch {version('torch')}, {options.threads} threads, {options.rounds} rounds")
    reached = []
    if not options.no_encoder:
        reached.append(bench_encoder(network, options.preset, options.side, options.rounds))
    reached += [bench_memory(network, count, options.side // 16, options.rounds) for count in options.memories]
    sys.exit(0 if all(reached) else 1)


if __name__ == "__main__":
    main()
