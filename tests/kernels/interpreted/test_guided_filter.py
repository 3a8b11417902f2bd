from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.guided_filter import box_sum, box_sum_reference, guided_filter, guided_filter_reference
from tests.kernels.registered import check_backward_op

# batch, channels, coarse sides, fine sides: smallest sides, odd ratios, shrinking, fine sides of one pixel, one to one
SHAPES = [(1, 1, 6, 6, 12, 12), (2, 3, 7, 13, 15, 30), (1, 2, 17, 18, 9, 40), (1, 1, 6, 7, 1, 9), (1, 2, 8, 8, 8, 8)]


def maps(shape: tuple[int, ...], generator: torch.Generator, guide: int | None = None) -> list[Tensor]:
    b, c, h, w, fine_h, fine_w = shape
    x, y = torch.randn(b, guide or c, h, w, generator=generator), torch.randn(b, c, h, w, generator=generator)
    high = torch.randn(b, guide or c, fine_h, fine_w, generator=generator)
    return [x, y, high, torch.rand(b, 1, h, w, generator=generator) + 0.05]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator) -> None:
    inputs = [x.to(device, dtype) for x in maps(shape, generator)]
    assert_matches_reference(guided_filter, guided_filter_reference, inputs)


@pytest.mark.parametrize("coupled", [False, True])
def test_one_guide_for_all_channels(coupled: bool, device: str, generator: torch.Generator) -> None:
    inputs = [x.to(device) for x in maps((2, 3, 7, 8, 10, 11), generator, guide=1)]
    options = {"batch_coupled": coupled, "radius": 1}
    assert_matches_reference(guided_filter, guided_filter_reference, inputs, options=options)


def test_no_attention_anywhere_stays_finite(device: str, generator: torch.Generator) -> None:
    x, y, high, attention = (x.to(device) for x in maps((1, 2, 6, 8, 12, 16), generator))
    out = guided_filter(x, y, high, torch.zeros_like(attention))
    torch.testing.assert_close(out, guided_filter_reference(x, y, high, torch.zeros_like(attention)))


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_box_sum(radius: int, device: str, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 5, generator=generator).to(device)
    assert_matches_reference(box_sum, box_sum_reference, [x, radius])


def test_gradcheck_of_the_kernels(device: str, generator: torch.Generator) -> None:
    if device == "cuda":
        pytest.skip("the kernels sum in float32 on a GPU")
    inputs = [x.double().requires_grad_() for x in maps((2, 1, 4, 4, 5, 6), generator)]
    assert torch.autograd.gradcheck(lambda *maps: guided_filter(*maps, radius=1), inputs, fast_mode=True)


def test_the_registered_ops_are_sound(device: str, generator: torch.Generator) -> None:
    x, y, high, a = (x.to(device).requires_grad_() for x in maps((2, 2, 4, 5, 7, 6), generator, guide=1))
    total = a.detach().sum([1, 2, 3]).requires_grad_()
    torch.library.opcheck(torch.ops.medseg.guided_line.default, (x, y, a, total, 2, 1e-2))
    torch.library.opcheck(torch.ops.medseg.box_filter.default, (y, 2, 1))
    line = torch.randn(2, 2, 2, 4, 5, generator=generator).to(device).requires_grad_()
    torch.library.opcheck(torch.ops.medseg.affine_upsample.default, (line, high))
    x, y, a, total, line, high = (tensor.detach() for tensor in (x, y, a, total, line, high))
    grad = torch.ops.medseg.guided_line(x, y, a, total, 2, 1e-2)
    check_backward_op(torch.ops.medseg.guided_line_backward.default, (grad, x, y, a, total, 2, 1e-2))
    grad = torch.ops.medseg.affine_upsample(line, high)
    check_backward_op(torch.ops.medseg.affine_upsample_backward.default, (grad, line, high))
