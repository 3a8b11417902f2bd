"""Ratio tables for the benchmarks: nothing is timed before it is right in the same run.

A CPU column is processor time, not wall time: other work on the machine then costs nothing. A GPU column is the median
of many launches with the cache flushed between them. Contenders take turns, so that a drift of the machine meets all.
"""

from __future__ import annotations

import argparse
import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.dispatch import HAS_TRITON, triton

Function = Callable[..., Any]
PATIENCE = 2.0  # seconds; what takes longer on a CPU gets one turn, where noise is small against it
TURN = 0.03  # seconds that a turn of a short call lasts at least: a network, too, finds its code and caches warm


@dataclass
class Table:
    """One ratio table.

    Args:
        title: First line.
        device: Where it runs.
        rounds: Turns of each contender; the median counts, and slow ones (`PATIENCE`) have one turn.
    """

    title: str
    device: torch.device
    rounds: int = 3
    rows: list[list[str]] = field(default_factory=list)

    def check(
        self,
        name: str,
        op: Function,
        reference: Function,
        inputs: Sequence[Any],
        *,
        peers: Sequence[Function] = (),
        **options: Any,
    ) -> None:
        """Compare with float64 and with peers before anything is timed; a wrong op ends the program with its errors."""
        try:
            assert_matches_reference(op, reference, inputs, options=options, peers=peers)
        except AssertionError as wrong:
            sys.exit(f"{name}: wrong, so not timed: {wrong}")

    def agree(self, name: str, ours: Tensor, other: Tensor, allowed: float = 1e-4) -> None:
        """Make sure that a contender computes the same thing at the size that is timed."""
        error = float((ours.double() - other.double()).norm() / other.double().norm())
        if not error <= allowed:
            sys.exit(f"{name}: differs by {error:.1e} of its size, allowed {allowed:.0e}; not timed")

    def add(
        self, size: str, dtype: str, contenders: Mapping[str, Function | None], roofline: float | None = None
    ) -> None:
        """Time one row.

        Args:
            size: What the row is about.
            dtype: As it shall stand in the table.
            contenders: "ours" and "published" and any peers; None for one that cannot run here.
            roofline: Milliseconds the hardware needs at least, for the GPU column.
        """
        seconds: dict[str, list[float]] = {name: [] for name, run in contenders.items() if run is not None}
        peaks = {name: self._peak(contenders[name]) for name in seconds}  # also the warm-up
        for turn in range(self.rounds):
            for name, times in seconds.items():
                if turn == 0 or times[0] < PATIENCE:
                    times.append(self._seconds(contenders[name]))
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        ours = medians["ours"]
        cells = [size, dtype, f"{ours * 1e3:.1f} ms, {peaks['ours']}"]
        for name in contenders:
            if name == "ours":
                continue
            known = name in medians
            cells.append(f"{medians[name] * 1e3:.1f} ms = {medians[name] / ours:.1f}x, {peaks[name]}" if known else "-")
        cells.append("-" if roofline is None or self.device.type == "cpu" else f"{roofline / ours / 10:.0f} %")
        if not self.rows:
            self._head(list(contenders))
        self.rows.append(cells)
        print("| " + " | ".join(cells) + " |", flush=True)

    def _head(self, names: list[str]) -> None:
        peers = [name for name in names if name != "ours"]
        clock = "processor time, one thread" if self.device.type == "cpu" else "GPU time"
        print(f"\n### {self.title}\n\nMedian {clock}; peak memory above the inputs.\n")
        columns = ["size", "dtype", "ours", *peers, "of roofline"]
        print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))

    def _seconds(self, run: Function | None) -> float:
        assert run is not None
        if self.device.type == "cuda":
            return triton.testing.do_bench(run, return_mode="median") / 1e3
        calls, seconds = 1, _processor_time(run, 1)
        if seconds < TURN:
            calls = min(math.ceil(TURN / max(seconds, 1e-5)), 100)
            seconds = _processor_time(run, calls)
        return seconds / calls

    def _peak(self, run: Function | None) -> str:
        """Peak memory of one call: measured by the allocator on a GPU, by a profiler's trace on a CPU."""
        assert run is not None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            torch.cuda.synchronize()
            return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.0f} MB"
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
        live = peak = 0
        for event in profile.profiler.kineto_results.events():  # allocations and frees, in the order of time
            if event.name() == "[memory]":
                live += event.nbytes()
                peak = max(peak, live)
        return f"{peak / 1e6:.0f} MB"


def _processor_time(run: Function, calls: int) -> float:
    begin = time.process_time()
    for _ in range(calls):
        run()
    return time.process_time() - begin


def start(description: str) -> tuple[torch.device, argparse.Namespace]:
    """Read the command line, fix threads and seed, and print what the figures belong to."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="only the smallest row of each table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    found = triton.__version__ if HAS_TRITON else "absent"
    print(f"{description}\n{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}, triton {found}, ", end="")
    print(f"Python {platform.python_version()}; command: {' '.join(['python', *sys.argv])}")
    return device, arguments


def resident_peak() -> float:
    """Largest memory this process ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def no_grad(run: Function, *args: Any, **options: Any) -> Function:
    """The call without autograd, to be timed."""

    def forward() -> Any:
        with torch.no_grad():
            return run(*args, **options)

    return forward


def step(run: Function, leaves: Sequence[Tensor], *args: Any, **options: Any) -> Function:
    """Forward and backward to `leaves`, which are the first arguments."""

    def both() -> Any:
        tracked = [x.detach().requires_grad_() for x in leaves]
        out = run(*tracked, *args, **options)
        return torch.autograd.grad(out, tracked, torch.ones_like(out))

    return both
