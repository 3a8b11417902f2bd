from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_kernels.affine_upsample import affine_upsample, affine_upsample_reference
from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.guided_filter import box_sum, box_sum_reference, guided_filter, guided_filter_reference

# batch, channels, coarse sides, fine sides: smallest sides, odd ratios, shrinking, many chunks
SHAPES = [(1, 1, 6, 6, 12, 12), (2, 3, 7, 13, 15, 30), (1, 2, 17, 18, 9, 40), (1, 5, 190, 180, 40, 60)]


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


@pytest.mark.parametrize("op", [guided_filter, guided_filter_reference])
def test_gradcheck(op: Any, generator: torch.Generator) -> None:
    inputs = [x.double().requires_grad_() for x in maps((2, 1, 4, 4, 5, 6), generator)]
    assert torch.autograd.gradcheck(lambda *maps: op(*maps, radius=1), inputs)


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
