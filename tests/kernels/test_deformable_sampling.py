from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.deformable_sampling import deform_sample, deform_sample_reference

# levels, heads, head width, queries, points
CASES = [([(1, 1)], 1, 1, 1, 1), ([(1, 5), (4, 3)], 3, 12, 7, 3), ([(6, 6), (3, 3), (2, 1)], 2, 24, 19, 2)]


def maps(case: tuple[Any, ...], generator: torch.Generator, batch: int = 2) -> list[Any]:
    shapes, heads, width, queries, points = case
    pixels = sum(rows * columns for rows, columns in shapes)
    value = torch.randn(batch, pixels, heads, width, generator=generator)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, generator=generator) * 1.6 - 0.3
    return [value, shapes, locations, torch.rand(locations.shape[:-1], generator=generator)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(case: tuple[Any, ...], generator: torch.Generator) -> None:
    assert_matches_reference(deform_sample, deform_sample_reference, maps(case, generator))


def test_values_in_bfloat16(generator: torch.Generator) -> None:
    value, shapes, locations, weights = maps(CASES[1], generator)
    inputs = [value.bfloat16(), shapes, locations.bfloat16().float(), weights.bfloat16().float()]
    assert_matches_reference(deform_sample, deform_sample_reference, inputs)


def test_a_point_on_a_pixel_reads_that_pixel() -> None:
    value = torch.arange(12.0).view(1, 12, 1, 1)
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    centres = torch.stack(((columns + 0.5) / 4, (rows + 0.5) / 3), dim=-1).view(1, 12, 1, 1, 1, 2)
    out = deform_sample(value, [(3, 4)], centres, torch.ones(1, 12, 1, 1, 1))
    torch.testing.assert_close(out.flatten(), value.flatten())


def test_half_of_a_border_point_lies_outside() -> None:
    out = deform_sample(
        torch.ones(1, 4, 1, 1), [(2, 2)], torch.tensor([0.0, 0.5]).view(1, 1, 1, 1, 1, 2), torch.ones(1, 1, 1, 1, 1)
    )
    assert float(out) == 0.5


@pytest.mark.parametrize("nowhere", [math.inf, -math.inf, math.nan, 1e30])
def test_points_that_are_nowhere_read_zero(nowhere: float, generator: torch.Generator) -> None:
    value, shapes, locations, weights = maps(CASES[1], generator)
    leaf = locations.fill_(nowhere).requires_grad_()
    out = deform_sample(value, shapes, leaf, weights)
    out.sum().backward()
    assert out.eq(0).all()
    assert leaf.grad is not None
    assert leaf.grad.eq(0).all()


@pytest.mark.parametrize("op", [deform_sample, deform_sample_reference])
def test_gradcheck_away_from_borders(op: Any, generator: torch.Generator) -> None:
    value, shapes, _, weights = maps(CASES[1], generator, 1)
    # Cell borders lie at half pixels, where the derivative jumps; these points keep a tenth of a pixel away.
    pixel = torch.randint(0, 3, (*weights.shape, 2), generator=generator)
    inside = 0.1 + 0.8 * torch.rand(pixel.shape, dtype=torch.float64, generator=generator)
    size = torch.tensor([shape[::-1] for shape in shapes], dtype=torch.float64)[:, None]
    locations = (pixel - 0.5 + inside) / size
    leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, xy, w: op(v, shapes, xy, w), leaves)


def test_what_does_not_fit_is_refused(generator: torch.Generator) -> None:
    value, shapes, locations, weights = maps(CASES[1], generator)
    with pytest.raises(ValueError, match="pixels"):
        deform_sample(value, [(4, 4)], locations, weights)
    with pytest.raises(ValueError, match="weights"):
        deform_sample(value, shapes, locations, weights[..., :2])


class Net(torch.nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deform_sample(value, [(1, 5), (4, 3)], locations, weights)


def test_compile_export_script_and_trace(generator: torch.Generator) -> None:
    value, _, locations, weights = maps(CASES[1], generator)
    arguments = (value, locations, weights)
    want = Net()(*arguments)
    torch.testing.assert_close(torch.compile(Net(), fullgraph=True, backend="aot_eager")(*arguments), want)
    batch, queries = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("queries", min=2, max=64)
    sizes = ({0: batch}, {0: batch, 1: queries}, {0: batch, 1: queries})
    exported = torch.export.export(Net(), arguments, dynamic_shapes=sizes).module()
    torch.testing.assert_close(exported(value, locations[:, :4], weights[:, :4]), want[:, :4])
    for frozen in (torch.jit.trace(Net(), arguments), torch.jit.script(Net())):
        assert "medseg::" not in str(frozen.inlined_graph)
        torch.testing.assert_close(frozen(*arguments), want)


def test_autocast_and_inference_mode_keep_the_dtype(generator: torch.Generator) -> None:
    inputs = maps(CASES[1], generator)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        out = deform_sample(*inputs)
    torch.testing.assert_close(out, deform_sample(*inputs))
