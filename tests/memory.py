"""Memory that PyTorch takes on a CPU while something runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors.

    Attributes:
        largest: Of the largest single tensor.
        peak: Of all tensors made and not yet freed, at the worst moment.
    """

    largest: int
    peak: int


def memory_of(run: Callable[[], Any]) -> Memory:
    """What a call takes beyond what was there before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    results: Any = getattr(trace.profiler, "kineto_results", None)  # the annotations of torch leave its events out
    sizes = [event.nbytes() for event in results.events() if event.name() == "[memory]"]
    live = peak = 0
    for size in sizes:  # allocations and frees, in the order of time
        live += size
        peak = max(peak, live)
    return Memory(max(sizes, default=0), peak)
