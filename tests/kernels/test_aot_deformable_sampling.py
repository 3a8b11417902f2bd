from __future__ import annotations

import pytest

pytest.importorskip("triton")

from kernels.aot import assert_fits, compile_kernel
from medseg_kernels.deformable_sampling import _sample_grad_kernel, _sample_kernel
from medseg_kernels.dispatch import tl

POINTERS = ["grad_ptr", "location_ptr", "weight_ptr", "g_location_ptr", "g_weight_ptr", "out_ptr"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("fixed", [None, False, True], ids=["forward", "backward", "deterministic"])
def test_fits(fixed: bool | None, capability: int) -> None:
    kernel = _sample_kernel if fixed is None else _sample_grad_kernel
    arguments = dict.fromkeys(kernel.arg_names, "i32") | {
        name: "*fp32" for name in POINTERS if name in kernel.arg_names
    }
    arguments |= {"value_ptr": "*bf16", "levels_ptr": "*i32"}
    arguments |= {"WIDTH": 64, "CHANNELS": 64, "ACC": tl.float32, "BLOCK": 16}
    if fixed is not None:
        arguments |= {"FIXED": fixed, "scale_ptr": "*fp64", "g_value_ptr": "*i64" if fixed else "*fp32"}
    used = compile_kernel(kernel, arguments, capability, warps=4, stages=2)
    assert_fits(
        f"deformable sampling {['backward', 'deterministic'][fixed] if fixed is not None else 'forward'}",
        used,
        capability,
    )
