from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from kernels.aot import assert_fits, compile_kernel
from medseg_kernels import linear_attention_kernels
from medseg_kernels.dispatch import tl

FLOAT32 = ["rope_ptr", "state_ptr", "g_state_ptr"]
CONSTANTS = {"WIDTH": 32, "HALF": 16, "HEAD": 8, "SPLIT": 256, "PRECISION": tl.constexpr("tf32x3"), "ACC": tl.float32}
BLOCKS = {"state_kernel": 32, "query_grad_kernel": 16, "output_kernel": 64, "key_grad_kernel": 64}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", list(BLOCKS))
def test_fits(name: str, capability: int) -> None:
    kernel: Any = getattr(linear_attention_kernels, name)
    arguments = {each: "*bf16" if each.endswith("_ptr") else "i32" for each in kernel.arg_names}
    arguments |= {each: "*fp32" for each in FLOAT32 if each in arguments}
    arguments |= {"out_ptr": "*fp32"} if name == "state_kernel" else {}
    arguments |= {each: value for each, value in CONSTANTS.items() if each in arguments}
    arguments |= {"eps": "fp32"} if "eps" in arguments else {}
    arguments["BLOCK"] = BLOCKS[name]
    used = compile_kernel(kernel, arguments, capability, warps=4, stages=1)
    assert_fits(name, used, capability)
