"""Triton kernel or plain PyTorch: the only place that decides, and the only one that imports triton.

Kernel files take `triton` and `tl` from here. Where triton is not installed both are stand-ins that let a file
define its kernels without ever running them, so the package works with torch alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    # A kernel is not Python: a type checker would judge each launch by the signature of one program.
    class _Unchecked(type):
        def __getattr__(cls, name: str) -> Any: ...

    class _Language(metaclass=_Unchecked):
        constexpr = Any

    triton: Any = _Language
    tl = _Language
    HAS_TRITON = True

    def constant(value: float) -> Any:
        """A number that kernels may read from their module."""
else:
    try:
        import triton
        import triton.language as tl

        HAS_TRITON = True
    except ImportError:

        def _leave(function: Callable[..., Any]) -> Callable[..., Any]:
            """Stand in for `triton.jit`: the function stays as it is and is never launched."""
            return function

        triton = SimpleNamespace(
            jit=_leave, cdiv=lambda a, b: -(-a // b), next_power_of_2=lambda n: 1 << (n - 1).bit_length()
        )
        tl = SimpleNamespace(constexpr=float)
        HAS_TRITON = False

    constant = tl.constexpr

Op = TypeVar("Op", bound=Callable[..., Any])

INTERPRETED: bool = HAS_TRITON and bool(triton.knobs.runtime.interpret)
"""Whether kernels run in triton's interpreter. Fixed here because `triton.jit` fixes it when a kernel is defined."""


def is_recorded() -> bool:
    """Say whether a model is being scripted or traced: ops then must be plain PyTorch, to load without this package."""
    return torch.jit.is_scripting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] torch's stubs


def wants_gradients(*tensors: Tensor | None) -> bool:
    """Say whether autograd follows what is done with these tensors."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def scripted_as(reference: Callable[..., Any]) -> Callable[[Op], Op]:
    """Let TorchScript compile `reference`, which takes the same arguments, wherever a model calls the op.

    TorchScript knows neither keyword-only arguments nor registered ops of a package that is not there when a model is
    loaded; with this, ops need not care.
    """

    def mark(op: Op) -> Op:
        op.__prepare_scriptable__ = lambda: reference  # pyright: ignore[reportFunctionMemberAccess] torch's own hook
        return op

    return mark


def uses_triton(*tensors: Tensor | None) -> bool:
    """Say whether an op on these tensors runs its Triton kernel.

    True for CUDA tensors where triton is installed, and for CPU tensors under `TRITON_INTERPRET=1`. False in a
    scripted or traced model, which must load in a process that lacks this package; for float64 on a GPU, where the
    kernels' float32 sums would lose digits; and for tensors of mixed devices.

    Args:
        tensors: The op's tensor arguments; None stands for one that was not given.
    """
    if is_recorded() or not HAS_TRITON:
        return False
    given = [x for x in tensors if x is not None]
    if INTERPRETED:
        return all(x.device.type == "cpu" for x in given)
    return all(x.is_cuda and x.dtype != torch.float64 for x in given)


def kernel_types(dtype: torch.dtype) -> dict[str, Any]:
    """Give the constexpr arguments `ACC` and `UPCAST` that every kernel takes.

    Returns:
        `ACC`: the triton type of sums, float64 for float64 data (only the interpreter gets there, so that gradcheck
        can judge the kernels themselves), else float32. `UPCAST`: whether loaded operands must become `ACC` at once;
        the interpreter multiplies bfloat16 as raw integers, so it never may see two of them.
    """
    return {"ACC": tl.float64 if dtype == torch.float64 else tl.float32, "UPCAST": INTERPRETED}


def dot_precision(dtype: torch.dtype) -> str:
    """Give `tl.dot`'s input precision: three TF32 products for float32 on a GPU, as exact as float32 sums allow."""
    return "tf32x3" if dtype == torch.float32 and not INTERPRETED else "ieee"


def launch_options(*, warps: int, stages: int) -> dict[str, Any]:
    """Give the launch keywords of a kernel; fusing is said aloud because triton's default changes between versions."""
    return {} if INTERPRETED else {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


def is_deterministic() -> bool:
    """Say whether the same input must give the same bits: torch's own switch, there is no second one."""
    return torch.are_deterministic_algorithms_enabled()


def autocast_together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Bring the operands of a product to autocast's dtype, as `torch.matmul` would; as they are outside autocast."""
    device = tensors[0].device.type
    if is_recorded() or not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != torch.float64 else x for x in tensors)


@contextmanager
def outside_autocast(device: torch.device) -> Iterator[None]:
    """Run an op's inside in exactly the dtypes it was handed, whatever autocast says around it."""
    if not torch.is_autocast_enabled(device.type):  # leaving `torch.autocast` takes as long as a small op
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield
