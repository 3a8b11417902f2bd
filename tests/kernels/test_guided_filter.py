from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_kernels.affine_upsample import affine_upsample, affine_upsample_reference
from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.guided_filter import box_sum, box_sum_reference, guided_filter, guided_filter_reference
from tests.kernels.registered import check_backward_op

# batch, channels, coarse sides, fine sides: smallest, odd ratios, one fine row, chunks of 2 channels and of 1
SIDES = [(6, 6, 12, 12), (17, 18, 9, 40), (6, 7, 1, 9)]
SHAPES = [(1, 1, *SIDES[0]), *((1, 2, *sides) for sides in SIDES[1:]), (2, 3, 7, 13, 15, 30), (2, 3, 130, 120, 40, 60)]


def maps(shape: tuple[int, ...], generator: torch.Generator, guide: int | None = None) -> list[Tensor]:
    b, c, h, w, fine_h, fine_w = shape
    x, y = torch.randn(b, guide or c, h, w, generator=generator), torch.randn(b, c, h, w, generator=generator)
    high = torch.randn(b, guide or c, fine_h, fine_w, generator=generator)
    return [x, y, high, torch.rand(b, 1, h, w, generator=generator) + 0.05]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> None:
    inputs = [x.to(dtype) for x in maps(shape, generator)]
    assert_matches_reference(guided_filter, guided_filter_reference, inputs)


def test_float64_keeps_its_digits(generator: torch.Generator) -> None:
    inputs = [x.double() for x in maps((2, 3, 7, 13, 15, 30), generator)]
    torch.testing.assert_close(guided_filter(*inputs), guided_filter_reference(*inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("coupled", [False, True])
def test_one_guide_for_all_channels(coupled: bool, generator: torch.Generator) -> None:
    inputs = maps((2, 3, 7, 8, 10, 11), generator, guide=1)
    assert_matches_reference(guided_filter, guided_filter_reference, [*inputs, 1, 1e-2, coupled])


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_box_sum_counts_what_lies_inside(radius: int, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 4, 5, generator=generator)
    assert_matches_reference(box_sum, box_sum_reference, [x, radius])
    want = x[:, :, max(1 - radius, 0) : 2 + radius, max(3 - radius, 0) : 4 + radius].sum((2, 3))
    torch.testing.assert_close(box_sum(x, radius)[:, :, 1, 3], want)


def test_a_sample_does_not_depend_on_its_neighbours(generator: torch.Generator) -> None:
    inputs = maps((3, 2, 8, 9, 16, 18), generator)
    alone = guided_filter(*(x[1:2] for x in inputs))
    torch.testing.assert_close(guided_filter(*inputs)[1:2], alone)
    assert not torch.allclose(guided_filter(*inputs, batch_coupled=True)[1:2], alone)


def test_wide_maps_keep_their_coordinates(generator: torch.Generator) -> None:
    line, x = torch.randn(2, 1, 1, 6, 672, generator=generator), torch.zeros(1, 1, 6, 1344)
    exact = affine_upsample_reference(line.double(), x.double())
    assert (affine_upsample(line, x) - exact).norm() < 2e-7 * exact.norm()


def test_no_attention_anywhere_stays_finite(generator: torch.Generator) -> None:
    x, y, high, attention = maps((1, 2, 6, 8, 12, 16), generator)
    assert guided_filter(x, y, high, torch.zeros_like(attention)).isfinite().all()


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("guide", [1, 2])
@pytest.mark.parametrize("op", [guided_filter, guided_filter_reference])
def test_gradcheck(op: Any, guide: int, coupled: bool, generator: torch.Generator) -> None:
    inputs = [x.double().requires_grad_() for x in maps((2, 2, 4, 5, 7, 6), generator, guide)]
    options = {"radius": 1, "batch_coupled": coupled}
    assert torch.autograd.gradcheck(lambda *maps: op(*maps, **options), inputs, fast_mode=True)


def gradients(op: Any, inputs: list[Tensor], wanted: Sequence[int] = range(4)) -> list[Tensor]:
    leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(inputs)]
    return list(torch.autograd.grad(op(*leaves).square().sum(), [leaves[i] for i in wanted]))


@pytest.mark.parametrize("which", range(4))
def test_one_gradient_alone_is_what_it_is_among_others(which: int, generator: torch.Generator) -> None:
    inputs = maps((2, 3, 7, 9, 15, 17), generator)
    (alone,) = gradients(guided_filter, inputs, [which])
    torch.testing.assert_close(alone, gradients(guided_filter, inputs)[which], rtol=0, atol=0)


def test_gradients_under_a_compiler_and_under_autocast(generator: torch.Generator) -> None:
    inputs = maps((2, 3, 7, 9, 15, 17), generator)
    want = gradients(guided_filter, inputs)
    compiled = torch.compile(guided_filter, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, inputs), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gradients(guided_filter, inputs), want, rtol=0, atol=0)


def test_the_registered_ops_are_sound(generator: torch.Generator) -> None:
    x, y, high, a = (each.requires_grad_() for each in maps((2, 3, 6, 7, 9, 8), generator))
    given = (x, y, high, a, a.detach().sum([1, 2, 3], keepdim=True).requires_grad_())
    torch.library.opcheck(torch.ops.medseg.guided_filter_on_cpu.default, (*given, 2, 1e-2))
    arguments = (torch.rand_like(high), *(each.detach() for each in given), 2, 1e-2, [True, False, True, False, True])
    check_backward_op(torch.ops.medseg.guided_filter_on_cpu_backward.default, arguments)


@pytest.mark.parametrize(
    ("which", "shape", "message"),
    [
        (1, (1, 2, 5, 8), "at least 6"),
        (3, (1, 2, 6, 8), "attention"),
        (0, (1, 3, 6, 8), "low_x"),
        (2, (1, 1, 9, 9), "high_x"),
    ],
)
def test_what_does_not_fit_is_refused(
    which: int, shape: tuple[int, ...], message: str, generator: torch.Generator
) -> None:
    inputs = maps((1, 2, 6, 8, 12, 16), generator)
    inputs[which] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        guided_filter(*inputs)


class Net(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor, high: Tensor, attention: Tensor) -> Tensor:
        return guided_filter(x, y, high, attention)


def test_compile_export_script_and_trace(generator: torch.Generator) -> None:
    arguments = tuple(maps((3, 2, 7, 9, 15, 17), generator))
    want = Net()(*arguments)
    torch.testing.assert_close(torch.compile(Net(), fullgraph=True, backend="aot_eager")(*arguments), want)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Net(), arguments, dynamic_shapes=({0: batch},) * 4).module()
    torch.testing.assert_close(exported(*(x[:2] for x in arguments)), want[:2])
    for frozen in (torch.jit.trace(Net(), arguments), torch.jit.script(Net())):
        assert "medseg::" not in str(frozen.inlined_graph)
        torch.testing.assert_close(frozen(*arguments), want, rtol=1e-4, atol=1e-5)


def test_autocast_and_inference_mode_keep_the_dtype(generator: torch.Generator) -> None:
    inputs = maps((1, 2, 6, 8, 12, 16), generator)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        out = guided_filter(*inputs)
    torch.testing.assert_close(out, guided_filter(*inputs))
