"""Compile every shipped block size of the attention kernels for sm_80 and sm_90; forward kernels must not spill."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from medseg_kernels import softmax_kernels as kernels
from medseg_kernels import softmax_launch as launches
from medseg_kernels.dispatch import tl
from tests.kernels.aot import assert_fits, compile_kernel

CAPABILITIES = [80, 90]
HEADS = [(32, 32, "bf16"), (64, 64, "bf16"), (80, 80, "bf16"), (256, 64, "bf16"), (32, 32, "fp32"), (64, 64, "fp32")]
TABLES = ["q_rows", "q_segment", "q_start", "k_rows", "k_segment", "k_start"]
STRIDES = ["q_stride", "q_stride_h", "k_stride", "k_stride_h", "v_stride", "v_stride_h"]
ADDED = {"none": None, "relative 14x14": (14, 14), "relative 64x64": (64, 64), "table": None}


def arguments(
    kernel: Any, widths: tuple[int, int, str], added: str, *, backward: bool, spans: bool = False
) -> tuple[dict[str, Any], dict]:
    """Argument types of a kernel, and its launch options, as `softmax_launch` chooses them."""
    D, DV, dtype = widths
    chosen = launches.block_sizes(
        max(D, DV), 2 if dtype == "bf16" else 4, ADDED[added], backward=backward, table=added == "table"
    )
    if kernel is kernels._backward_kv_kernel:
        chosen |= launches.key_side(chosen, ADDED[added])
    launch = {"warps": chosen.pop("num_warps"), "stages": chosen.pop("num_stages")}
    values: dict[str, Any] = {f"{name}_ptr": f"*{dtype}" for name in ("q", "k", "v", "out", "grad", "dq", "dk", "dv")}
    values |= {f"{name}_ptr": "*fp32" for name in ("m", "total", "delta", "partial")}
    values |= {f"{name}_ptr": "*i32" for name in TABLES}
    values |= dict.fromkeys(STRIDES, "i32")
    values |= dict.fromkeys(["q_slots", "k_slots", "KH", "KW", "LQ", "LK", "heads", "segments", "share"], "i32")
    relative, table = added.startswith("relative"), added == "table"
    for name in ("rel_h_ptr", "rel_w_ptr", "drel_h_ptr", "drel_w_ptr"):
        values[name] = f"*{dtype}" if relative else None
    values["bias_ptr"] = "*fp32" if table else None
    values |= {name: chosen[name] for name in ("BLOCK_Q", "BLOCK_K", "WIDTH")}
    values |= {
        "D": D,
        "DV": DV,
        "SCALE": 0.125,
        "BLOCK_D": launches.padded_head(D),
        "BLOCK_DV": launches.padded_head(DV),
    }
    values |= {"SPANS": spans, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee", "ACC": tl.float32, "UPCAST": False}
    values["PRECISION"] = tl.constexpr(values["PRECISION"])
    return {name: values[name] for name in kernel.arg_names}, launch


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("widths", HEADS, ids=str)
def test_forward(widths: tuple[int, int, str], capability: int) -> None:
    types, launch = arguments(kernels._forward_kernel, widths, "none", backward=False)
    used = compile_kernel(kernels._forward_kernel, types, capability, **launch)
    assert_fits(f"forward {widths}", used, capability)
    assert used.uses_wgmma or capability == 80 or widths[2] == "fp32"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("added", [name for name in ADDED if name != "none"])
def test_forward_with_bias(added: str, capability: int) -> None:
    widths = (32, 32, "bf16") if added == "table" else (64, 64, "bf16")
    types, launch = arguments(kernels._forward_kernel, widths, added, backward=False)
    assert_fits(
        f"forward {widths} {added}", compile_kernel(kernels._forward_kernel, types, capability, **launch), capability
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("name", ["_backward_q_kernel", "_backward_kv_kernel"])
def test_backward(name: str, added: str, capability: int) -> None:
    kernel = getattr(kernels, name)
    types, launch = arguments(kernel, (64, 64, "bf16"), added, backward=True)
    assert_fits(f"{name} {added}", compile_kernel(kernel, types, capability, **launch), capability, spill=64)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", ["_forward_kernel", "_backward_q_kernel", "_backward_kv_kernel"])
def test_blocks_of_several_segments(name: str, capability: int) -> None:
    kernel = getattr(kernels, name)
    backward = name.startswith("_backward")
    types, launch = arguments(kernel, (32, 32, "bf16"), "none", backward=backward, spans=True)
    used = compile_kernel(kernel, types, capability, **launch)
    assert_fits(f"{name} spans", used, capability, spill=64 if backward else 0)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_backward_of_the_bias_table(capability: int) -> None:
    kernel = kernels._backward_bias_kernel
    types, launch = arguments(kernel, (32, 32, "bf16"), "table", backward=True)
    assert_fits("_backward_bias_kernel", compile_kernel(kernel, types, capability, **launch), capability, spill=64)
