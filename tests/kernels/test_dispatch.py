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


def test_package_imports_without_triton() -> None:
    run("import sys; sys.modules['triton'] = None; import medseg_kernels.dispatch as d; assert not d.HAS_TRITON")


def test_import_asks_no_device_anything() -> None:
    run("import torch; import medseg_kernels; assert not torch.cuda.is_initialized()")


def test_autocast_casts_only_inside() -> None:
    x = torch.zeros(2)
    assert autocast_together(x)[0].dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_together(x)[0].dtype == torch.bfloat16
