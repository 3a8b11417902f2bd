"""Compile a kernel for a GPU that is not there, and read what it would use of it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # bytes one block may have


@dataclass(frozen=True)
class Resources:
    """What one kernel takes on one architecture.

    Args:
        registers: Per thread; 255 is the hardware's limit.
        stack: Bytes of local memory per thread; anything but 0 is a spill.
        shared: Bytes of shared memory per block.
        uses_wgmma: Whether its products run on Hopper's asynchronous matrix unit.
    """

    registers: int
    stack: int
    shared: int
    uses_wgmma: bool


def compile_kernel(kernel: Any, arguments: Mapping[str, Any], capability: int, *, warps: int, stages: int) -> Resources:
    """Compile a `@triton.jit` function ahead of time.

    Args:
        kernel: The function itself; the process must not run under `TRITON_INTERPRET`.
        arguments: By parameter name, a triton type as string for what arrives at run time ("*bf16", "i32", "fp32"),
            any other value for a constexpr; None is a constexpr too.
        capability: 80 for A100, 90 for H100 and H200.
        warps: Warps per block.
        stages: Depth of the load pipeline.

    Raises:
        ValueError: An argument is missing or unknown.
    """
    if set(arguments) != set(kernel.arg_names):
        odd = sorted(set(arguments) ^ set(kernel.arg_names))
        raise ValueError(f"arguments must be exactly those of the kernel, these differ: {odd}")
    signature = {
        name: arguments[name] if isinstance(arguments[name], str) else "constexpr" for name in kernel.arg_names
    }
    constants = {(i,): arguments[n] for i, n in enumerate(kernel.arg_names) if not isinstance(arguments[n], str)}
    # At run time triton finds out that pointers and strides are multiples of 16 and compiles for that.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if isinstance(arguments[name], str) and (arguments[name].startswith("*") or "stride" in name)
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, stack = _usage(compiled.asm["cubin"])
    return Resources(registers, stack, compiled.metadata.shared, "wgmma" in compiled.asm["ptx"])


def assert_fits(name: str, used: Resources, capability: int, *, spill: int = 0) -> None:
    """Print one line of figures, then fail on spills beyond `spill` bytes or too much shared memory."""
    print(
        f"{name} sm_{capability}: {used.registers} registers, {used.stack} B stack, {used.shared / 1024:.0f} KB shared"
    )
    assert used.stack <= spill, f"{name} spills {used.stack} bytes per thread on sm_{capability}, allowed {spill}"
    assert used.shared <= SHARED_LIMIT[capability], f"{name} wants {used.shared} bytes of shared memory"


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, read by the cuobjdump that the triton wheel brings."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    if registers is None or stack is None:
        raise RuntimeError(f"cuobjdump must report REG and STACK, got {text!r}")
    return int(registers[1]), int(stack[1])
