from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseg_kernels import dispatch
from medseg_kernels.dispatch import autocast_together, uses_triton

KERNELS = Path(__file__).parents[2] / "kernels"


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=KERNELS, check=True)


def test_cpu_tensors_take_plain_pytorch() -> None:
    assert not dispatch.INTERPRETED
    assert not uses_triton(torch.zeros(2), None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_tensors_take_the_kernel_unless_float64() -> None:
    assert uses_triton(torch.zeros(2, device="cuda"))
    assert not uses_triton(torch.zeros(2, device="cuda"), torch.zeros(2))
    assert not uses_triton(torch.zeros(2, device="cuda", dtype=torch.float64))


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
import torch
import medseg_kernels as ops
from medseg_kernels import dispatch
assert not dispatch.HAS_TRITON
q, k, v = torch.randn(3, 1, 12, 2, 8, requires_grad=True).unbind(0)
grids = [x.unflatten(1, (3, 4)) for x in (q, k, v)]
angle = torch.randn(12, 4)
found = [
    ops.region_attention(q, k, v, torch.arange(12)[None] // 5, scale=0.5),
    ops.window_attention(*grids, (2, 2)),
    ops.relative_attention(*grids, torch.randn(5, 8), torch.randn(7, 8)),
    ops.rope_attention(q, k, v, angle.cos(), angle.sin()),
    ops.rope_attention(q, k, k[:, :, 0], angle.cos(), angle.sin(), v_weight=torch.randn(2, 8, 8)),
    ops.linear_attention(q.flatten(2), k.flatten(2), v.flatten(2), 2),
    ops.deform_sample(v, [(3, 4)], torch.rand(1, 5, 2, 1, 3, 2), torch.rand(1, 5, 2, 1, 3)),
    ops.guided_filter(*torch.randn(2, 1, 2, 6, 6), torch.randn(1, 2, 12, 12), torch.rand(1, 1, 6, 6)),
    ops.haar3d(torch.randn(1, 1, 4, 4, 4)),
]
sum(x.sum() for x in found).backward()
assert all(x.isfinite().all() for x in found)
"""


def test_ops_run_without_triton() -> None:
    run(WITHOUT_TRITON)


def test_import_asks_no_device_anything() -> None:
    run("import torch; import medseg_kernels; assert not torch.cuda.is_initialized()")


def test_autocast_casts_only_inside() -> None:
    x = torch.zeros(2)
    assert autocast_together(x)[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_together(x)[0].dtype == torch.bfloat16
