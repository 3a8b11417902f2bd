from __future__ import annotations

import pytest

pytest.importorskip("triton")

from kernels.aot import assert_fits, compile_kernel

from medseg_kernels import haar3d
from medseg_kernels.dispatch import tl


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["_haar3d_kernel", "_ihaar3d_kernel"])
def test_fits(name: str, capability: int) -> None:
    kernel = getattr(haar3d, name)
    source, *rest = kernel.arg_names
    arguments = dict.fromkeys(rest, "i32") | {
        source: "*fp32",
        "out_ptr": "*fp32",
        "ACC": tl.float32,
        "BLOCK": haar3d._BLOCK,
    }
    assert_fits(name, compile_kernel(kernel, arguments, capability, warps=4, stages=1), capability)
