"""Error of an op against its reference in float64, for tests and benchmarks alike.

No tolerance is chosen by hand. The reference runs twice on the same inputs, once in float64 and once in the dtype at
hand; its own rounding error is what that dtype costs, and an op may cost twice as much. One unit of rounding of the
largest tensor compared stays allowed, since a reference may hit a value exactly (a softmax over one key).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]


@dataclass(frozen=True)
class Deviation:
    """How far one tensor of an op lies from the float64 reference, as root mean square over its elements.

    Args:
        name: `out`, `out 1`, ... for outputs; `grad 0`, `grad bias`, ... for the gradient of that input.
        error: Of the op.
        bound: Largest error allowed.
        scale: Root mean square of the exact tensor, what makes `error` a relative figure.
    """

    name: str
    error: float
    bound: float
    scale: float

    @property
    def green(self) -> bool:
        """Whether the error keeps its bound; False where the op gave NaN."""
        return self.error <= self.bound

    def __str__(self) -> str:
        relative = self.error / self.scale if self.scale else self.error
        return f"{self.name}: error {self.error:.2e} ({relative:.1e} of its size), allowed {self.bound:.2e}"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill every fresh `torch.empty` with NaN, so that an output which a kernel did not write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic  # a module whose attributes are made at run time
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def deviations(
    op: Function,
    reference: Function,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    gradients: bool = True,
    factor: float = 2.0,
) -> list[Deviation]:
    """Compare an op with its reference: every output, and the gradient of every floating input.

    Args:
        op: Function under test, called as `op(*inputs, **options)`; returns a tensor or a tuple of tensors.
        reference: Plain PyTorch with the same signature, right in float64.
        inputs: Positional arguments. Floating tensors get gradients; everything else is handed on as it is.
        options: Keyword arguments, treated alike.
        gradients: Whether to compare gradients too, for one random direction of the outputs.
        factor: How many times the reference's own rounding error is allowed.

    Returns:
        One `Deviation` per output and gradient.
    """
    options = dict(options or {})
    seen = (inputs, options)
    with poisoned_memory():
        got = _run(op, seen, None, gradients)
    exact = _run(reference, seen, torch.float64, gradients)
    rounded = _run(reference, seen, None, gradients)
    if got.keys() != exact.keys():
        raise ValueError(f"op and reference must give the same tensors, got {sorted(got)} and {sorted(exact)}")
    for name, want in rounded.items():
        if got[name].shape != want.shape or got[name].dtype != want.dtype:
            found = f"{tuple(got[name].shape)} {got[name].dtype}"
            raise ValueError(f"{name} must be {tuple(want.shape)} {want.dtype} like the reference's, got {found}")
    bounds = _bounds(exact, rounded, factor)
    return [Deviation(name, _rms(got[name].double() - exact[name]), bounds[name], _rms(exact[name])) for name in exact]


def _bounds(exact: dict[str, Tensor], rounded: dict[str, Tensor], factor: float) -> dict[str, float]:
    """Largest error allowed in each tensor."""
    unit = max(torch.finfo(x.dtype).eps / 2 for x in rounded.values())
    largest = max((_rms(x) for x in exact.values()), default=0.0)
    own = {name: _rms(rounded[name].double() - want) for name, want in exact.items()}
    # In a tensor of a few numbers the reference may be lucky: its worst relative error is allowed in all of them.
    relative = max((own[name] / _rms(want) for name, want in exact.items() if _rms(want)), default=0.0)
    bounds = {}
    for name, want in exact.items():
        # What is zero by cancellation (the gradient of a softmax over one key) keeps the rounding of both its terms.
        floor = unit * largest * (1 if _rms(want) else 2)
        bounds[name] = factor * max(own[name], relative * _rms(want), floor)
    return bounds


def assert_matches_reference(
    op: Function,
    reference: Function,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    gradients: bool = True,
    factor: float = 2.0,
) -> None:
    """Fail unless the op keeps every bound of `deviations`, whose arguments these are.

    Raises:
        AssertionError: Names each output or gradient that is too far off, with its error and bound.
    """
    found = deviations(op, reference, inputs, options=options, gradients=gradients, factor=factor)
    wrong = [str(each) for each in found if not each.green]
    if wrong:
        raise AssertionError("; ".join(wrong))


def _run(
    function: Function, arguments: tuple[Sequence[Any], Mapping[str, Any]], dtype: torch.dtype | None, gradients: bool
) -> dict[str, Tensor]:
    """Outputs and gradients by name, on fresh leaves in `dtype` (None keeps each tensor's own)."""
    positional, keyword = arguments
    args = [_leaf(x, dtype, gradients) for x in positional]
    options = {name: _leaf(x, dtype, gradients) for name, x in keyword.items()}
    outputs = function(*args, **options)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    found = {"out" if i == 0 else f"out {i}": out.detach() for i, out in enumerate(outputs)}
    leaves = {f"grad {i}": x for i, x in enumerate(args)} | {f"grad {name}": x for name, x in options.items()}
    leaves = {name: x for name, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    if gradients and leaves:
        reached = [out for out in outputs if out.requires_grad]  # nothing, where there is not one token
        torch.autograd.backward(reached, [_direction(out) for out in reached])
        found |= {name: x.grad if x.grad is not None else torch.zeros_like(x) for name, x in leaves.items()}
    return found


def _leaf(x: Any, dtype: torch.dtype | None, gradients: bool) -> Any:
    """The argument as a fresh leaf if it is a floating tensor; strides and overlaps of views are kept by `detach`."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.detach().to(dtype or x.dtype).requires_grad_(gradients)


def _direction(out: Tensor) -> Tensor:
    """The same random output gradient for op, reference and float64: drawn in float32, rounded to bfloat16's digits."""
    generator = torch.Generator().manual_seed(out.numel())
    drawn = torch.randn(out.shape, generator=generator).bfloat16()
    return drawn.to(device=out.device, dtype=out.dtype)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0
