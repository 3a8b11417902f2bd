from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from kernels.aot import assert_fits, compile_kernel
from medseg_kernels.dispatch import tl
from medseg_kernels.haar3d import _BLOCK, _haar3d_kernel, _ihaar3d_kernel


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", [_haar3d_kernel, _ihaar3d_kernel], ids=lambda kernel: kernel.__name__)
def test_fits(kernel: Any, capability: int) -> None:
    source, *rest = kernel.arg_names
    arguments: dict[str, Any] = dict.fromkeys(rest, "i32") | {source: "*fp32", "out_ptr": "*fp32"}
    arguments |= {"ACC": tl.float32, "BLOCK": _BLOCK}
    assert_fits(kernel.__name__, compile_kernel(kernel, arguments, capability, warps=4, stages=1), capability)
