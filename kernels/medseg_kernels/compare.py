"""Error of an op against its reference in float64, for tests and benchmarks alike.

One rule, with nothing to adjust in a test. The reference runs twice on the same inputs, once in float64 and once in
the dtype at hand. An op may err twice as much as that second run, which is what the dtype costs anyone who computes
plainly; or as much as `TOLERANCES` grants, figures that were fixed before the kernels were written. They are there
because a fused op rounds elsewhere than a plain one (weights before the second product, the log-sum between the
passes), so that on a small tensor a lucky reference says little. Where peers are given, the op must also come within
1.3 times the error of the best of them, whatever the other two would allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]

OWN = 2.0  # times the reference's own rounding error
PEER = 1.3  # times the error of the best peer


@dataclass(frozen=True)
class Tolerance:
    """Error over the size of the exact tensor, both in the 2-norm.

    Args:
        out: Of outputs.
        first: Of the gradient of the first input, the queries of an attention.
        others: Of every other gradient; those of keys, values and biases are the longer sums.
    """

    out: float
    first: float
    others: float

    def of(self, name: str) -> float:
        """The figure for a tensor as `Deviation` names it."""
        return self.out if name.startswith("out") else self.first if name == "grad 0" else self.others


_ATTENTION = {
    torch.float64: Tolerance(1e-12, 1e-12, 1e-12),
    torch.float32: Tolerance(1e-6, 2e-6, 2e-6),
    torch.float16: Tolerance(5e-4, 6e-4, 7e-4),
    torch.bfloat16: Tolerance(4e-3, 5e-3, 6e-3),
}
_SAMPLING = {torch.float32: Tolerance(2e-6, 2e-6, 2e-6), torch.bfloat16: Tolerance(5e-3, 5e-3, 5e-3)}
_FILTER = {torch.float32: Tolerance(2e-6, 2e-6, 2e-6)}
_WAVELET = {torch.float32: Tolerance(5e-7, 5e-7, 5e-7)}

TOLERANCES: Mapping[str, Mapping[torch.dtype, Tolerance]] = {
    "deformable_sampling": _SAMPLING,
    "guided_filter": _FILTER,
    "affine_upsample": _FILTER,
    "haar3d": _WAVELET,
}
"""By the file that holds the reference; every other file is attention. A dtype that is missing has only the 2x rule."""


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
    peers: Sequence[Function] = (),
) -> list[Deviation]:
    """Compare an op with its reference: every output, and the gradient of every floating input.

    Args:
        op: Function under test, called as `op(*inputs, **options)`; returns a tensor or a tuple of tensors.
        reference: Plain PyTorch with the same signature, right in float64.
        inputs: Positional arguments. Floating tensors get gradients; everything else is handed on as it is.
        options: Keyword arguments, treated alike.
        gradients: Whether to compare gradients too, for one random direction of the outputs.
        peers: Other functions of the same signature, which the op must come close to as well.

    Returns:
        One `Deviation` per output and gradient.

    Raises:
        ValueError: Op and reference give other tensors, or tensors of other shape or dtype.
    """
    seen = (inputs, dict(options or {}))
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
    fixed = TOLERANCES.get(reference.__module__.rpartition(".")[2], _ATTENTION)
    bounds = _bounds(exact, rounded, fixed)
    for peer in peers:
        for name, found in _run(peer, seen, None, gradients).items():
            bounds[name] = min(bounds[name], PEER * _error(found, exact[name]))
    return [Deviation(name, _error(got[name], want), bounds[name], _rms(want)) for name, want in exact.items()]


def _bounds(
    exact: dict[str, Tensor], rounded: dict[str, Tensor], fixed: Mapping[torch.dtype, Tolerance]
) -> dict[str, float]:
    """Largest error allowed in each tensor: twice the reference's own, or what `fixed` grants."""
    largest = max((_rms(want) for want in exact.values()), default=0.0)
    bounds = {}
    for name, want in exact.items():
        granted = fixed.get(rounded[name].dtype)
        # A gradient that cancels to zero (of a softmax over one key) has no size: its terms are those of the others.
        size = _rms(want) or largest
        bounds[name] = max(OWN * _error(rounded[name], want), granted.of(name) * size if granted else 0.0)
    return bounds


def assert_matches_reference(
    op: Function,
    reference: Function,
    inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    gradients: bool = True,
    peers: Sequence[Function] = (),
) -> None:
    """Fail unless the op keeps every bound of `deviations`, whose arguments these are.

    Raises:
        AssertionError: Names each output or gradient that is too far off, with its error and bound.
    """
    found = deviations(op, reference, inputs, options=options, gradients=gradients, peers=peers)
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


def _error(found: Tensor, exact: Tensor) -> float:
    return _rms(found.double() - exact)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt()) if x.numel() else 0.0
