"""Inputs of the softmax-attention tests: one list of cases, run on the CPU path and in the interpreter alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medseg_kernels.layout import SegmentLayout, layout_dense, layout_from_labels
from medseg_kernels.relative_attention import relative_attention, relative_attention_reference
from medseg_kernels.rope_attention import rope_attention, rope_attention_reference
from medseg_kernels.window_attention import window_attention, window_attention_reference

Case = tuple[Callable[..., Any], Callable[..., Any], list[Any], dict[str, Any]]


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same for the same shape and seed."""
    generator = torch.Generator().manual_seed(sum(shape) + 1000 * seed)
    return torch.randn(shape, generator=generator).to(dtype)


def ragged(q_sizes: list[int], k_sizes: list[int]) -> SegmentLayout:
    """Segments of the given sizes, rows in a random order on both sides."""
    generator = torch.Generator().manual_seed(0)
    tables = {}
    for side, sizes in (("q", q_sizes), ("k", k_sizes)):
        lengths = torch.tensor(sizes, dtype=torch.int64)
        tables[f"{side}_rows"] = torch.randperm(int(lengths.sum()), generator=generator).int()
        tables[f"{side}_segment"] = torch.arange(len(sizes)).repeat_interleave(lengths).int()
        tables[f"{side}_start"] = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return SegmentLayout(**tables)


def labels(kind: str) -> Tensor:
    """Region maps that go wrong first: (B, N), adversarial by name."""
    generator = torch.Generator().manual_seed(0)
    if kind == "one region":
        return torch.zeros(1, 70, dtype=torch.int64)
    if kind == "all singletons":
        return torch.randperm(40, generator=generator)[None]
    if kind == "giant and singletons":
        return torch.cat((torch.full((80,), 7), torch.arange(100, 130)))[None]
    if kind == "gaps, negative and huge ids":
        return torch.tensor([-5, 3, 2**31 - 1, 3, 0, -5, 2**31 - 1] * 7)[None]
    if kind == "float ids":
        return torch.tensor([0.5, -1.25, 0.5, 3.0] * 9)[None]
    if kind == "images that share ids":
        return torch.randint(0, 3, (3, 33), generator=generator)
    return torch.zeros(1, 1, dtype=torch.int64)


LABELS = [
    "one token",
    "one region",
    "all singletons",
    "giant and singletons",
    "gaps, negative and huge ids",
    "float ids",
]
LABELS += ["images that share ids"]

LAYOUTS = {
    "first, middle and last empty": ragged([0, 9, 0, 40, 1, 0], [0, 40, 0, 9, 1, 0]),
    "queries without keys and the reverse": ragged([5, 7, 3], [0, 6, 4]),
    "at the block border": ragged([31, 32, 33], [33, 32, 31]),
    "dense batch": layout_dense(2, 5, 37),
    "nothing at all": ragged([0], [0]),
    "no segment": ragged([], []),
}

WIDTHS = [(4, 4), (24, 24), (36, 20), (48, 48), (80, 80), (16, 64), (6, 12)]  # D, Dv


def window_case(name: str, dtype: torch.dtype) -> Case:
    """window_attention: paired, shifted, 3D, anisotropic, live pads, pooled queries."""
    fine, coarse, window, options = {
        "paired with bias": ((8, 8), (4, 4), (4, 4), {"bias": random(2, 64, 16)}),
        "does not divide, shifted, bias": ((10, 6), (5, 3), (4, 2), {"bias": random(2, 32, 8), "shift": True}),
        "3d shifted": ((4, 4, 6), (2, 2, 3), (2, 2, 2), {"shift": True, "bias": random(2, 64, 8)}),
        "anisotropic": ((3, 6, 10), (3, 3, 5), (2, 2, 2), {}),
        "window larger than the map": ((3, 2), (3, 2), (4, 4), {"scale": 0.5}),
        "live pads": ((7, 5), (7, 5), (4, 4), {"pad_k": random(2, 24), "pad_v": random(2, 20)}),
        "live pads, shifted, bias": (
            (7, 6),
            (7, 3),
            (4, 2),
            {"pad_k": random(2, 24), "pad_v": random(2, 20), "bias": random(2, 16, 8), "shift": True},
        ),
        "pooled queries": (
            (5, 7),
            (10, 14),
            (4, 4),
            {"stride": (2, 2), "pad_k": random(2, 24), "pad_v": random(2, 20)},
        ),
    }[name]
    batch = 1 if len(window) == 3 else 2
    inputs = [random(batch, *fine, 2, 24, dtype=dtype), random(batch, *coarse, 2, 24, dtype=dtype, seed=1)]
    inputs += [random(batch, *coarse, 2, 20, dtype=dtype, seed=2), window]
    options = {key: x.to(dtype) if isinstance(x, Tensor) else x for key, x in options.items()}
    return window_attention, window_attention_reference, inputs, options


WINDOWS = ["paired with bias", "does not divide, shifted, bias", "3d shifted", "anisotropic"]
WINDOWS += ["window larger than the map", "live pads"]
WINDOWS += ["live pads, shifted, bias", "pooled queries"]


def relative_case(name: str, dtype: torch.dtype) -> Case:
    """relative_attention: whole grid, resized tables, windows that divide or not."""
    batch, grid, D, window, table = {
        "global 9x6": (2, (9, 6), 24, None, (17, 11)),
        "resized table 10x7": (1, (10, 7), 16, None, (27, 27)),
        "wide grid 3x17": (1, (3, 17), 80, None, (5, 33)),
        "windows 5 of 10x10": (1, (10, 10), 24, 5, (9, 9)),
        "padded windows 5 of 8x9": (1, (8, 9), 36, 5, (9, 9)),
    }[name]
    inputs = [x.clone().to(dtype) for x in random(3, batch, *grid, 2, D)]
    inputs += [random(table[0], D, dtype=dtype) * 0.3, random(table[1], D, dtype=dtype, seed=1) * 0.3]
    pads = {"pad_k": random(2, D, dtype=dtype), "pad_v": random(2, D, dtype=dtype, seed=1)}
    return relative_attention, relative_attention_reference, inputs, {"window": window, **pads}


RELATIVE = ["global 9x6", "resized table 10x7", "wide grid 3x17", "windows 5 of 10x10", "padded windows 5 of 8x9"]


def rope_case(name: str, dtype: torch.dtype) -> Case:
    """rope_attention: to itself, to a bank with trailing keys, two heads, values projected afterwards."""
    heads, frames, extra, absorbed = {
        "itself": (1, 1, 0, False),
        "bank": (1, 3, 4, False),
        "absorbed values": (1, 2, 3, True),
        "two heads, absorbed": (2, 2, 0, True),
    }[name]
    places, D, C = 12, 32, 16
    angle = random(places, D // 2)
    tokens = frames * places + extra
    inputs = [random(2, places, heads, D, dtype=dtype), random(2, tokens, heads, D, dtype=dtype, seed=1)]
    values = (2, tokens, C) if absorbed else (2, tokens, heads, D)
    inputs.append(random(*values, dtype=dtype, seed=2))
    inputs += [angle.cos().to(dtype), angle.sin().to(dtype)]
    options: dict[str, Any] = {"unrotated": extra}
    if absorbed:
        options |= {"v_weight": random(heads, D, C, dtype=dtype) * 0.3, "v_bias": random(heads, D, dtype=dtype)}
    return rope_attention, rope_attention_reference, inputs, options


ROPE = ["itself", "bank", "absorbed values", "two heads, absorbed"]


def label_layout(kind: str) -> SegmentLayout:
    """The layout of one of `LABELS`."""
    return layout_from_labels(labels(kind))
