"""The Triton kernels of the attention ops, against float64, with every gradient."""

from __future__ import annotations

import pytest
import torch

from medseg_kernels.dispatch import uses_triton
from medseg_kernels.softmax_attention import segment_attention
from tests.kernels.attention_cases import ragged, random
from tests.kernels.attention_checks import GridChecks, RegionChecks, SegmentChecks


def test_kernels_are_what_runs(device: str) -> None:
    assert uses_triton(torch.zeros(1, device=device))


class TestSegmentKernels(SegmentChecks):
    pass


class TestRegionKernels(RegionChecks):
    pass


class TestGridKernels(GridChecks):
    pass


def test_gradcheck_of_the_kernels_themselves(device: str) -> None:
    if device == "cuda":
        pytest.skip("float64 takes the reference on a GPU")
    layout = ragged([2, 0, 3, 1], [3, 1, 2, 0])
    inputs = [random(6, 1, 3, seed=i).double().requires_grad_() for i in range(3)]
    bias = random(1, 3, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda q, k, v, b: segment_attention(q, k, v, layout, bias=b), (*inputs, bias))
