from __future__ import annotations

import pytest

pytest.importorskip("triton")

from kernels.aot import assert_fits, compile_kernel
from medseg_kernels import affine_upsample, guided_filter_kernels
from medseg_kernels.dispatch import tl

KERNELS = [
    (guided_filter_kernels.box_kernel, {"MEAN": 1}),
    (guided_filter_kernels.coefficients_kernel, {}),
    (guided_filter_kernels.coefficients_to_sums_kernel, {}),
    (guided_filter_kernels.sums_to_inputs_kernel, {}),
    (affine_upsample._apply_kernel, {"BACKWARD": False}),
    (affine_upsample._apply_kernel, {"BACKWARD": True}),
    (affine_upsample._apply_grad_kernel, {}),
]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("kernel", "constants"), KERNELS, ids=lambda x: getattr(x, "__name__", str(x)))
def test_fits(kernel: object, constants: dict[str, object], capability: int) -> None:
    arguments = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
    arguments |= {"ACC": tl.float32, "BLOCK": 256, **constants}
    arguments |= {"RADIUS": 2} if "RADIUS" in arguments else {}
    arguments |= {"eps": "fp32"} if "eps" in arguments else {}
    used = compile_kernel(kernel, arguments, capability, warps=4, stages=2)
    assert_fits(kernel.__name__, used, capability)
