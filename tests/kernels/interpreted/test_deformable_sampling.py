from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.deformable_sampling import deform_sample, deform_sample_reference
from tests.kernels.registered import check_backward_op

# levels, heads, head width, queries, points: one pixel; single rows and odd counts; more queries than a block
CASES = [([(1, 1)], 1, 1, 1, 1), ([(1, 5), (4, 3)], 3, 12, 7, 3), ([(6, 6), (3, 3), (2, 1)], 2, 24, 19, 2)]


def maps(case: tuple, generator: torch.Generator, batch: int = 2) -> list:
    shapes, heads, width, queries, points = case
    pixels = sum(rows * columns for rows, columns in shapes)
    value = torch.randn(batch, pixels, heads, width, generator=generator)
    # A third of the points lies outside, by up to half a map.
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, generator=generator) * 1.6 - 0.3
    weights = torch.rand(batch, queries, heads, len(shapes), points, generator=generator)
    return [value, shapes, locations, weights]


def to(inputs: list, *args: object) -> list:
    return [x.to(*args) if isinstance(x, Tensor) else x for x in inputs]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(case: tuple, deterministic: bool, device: str, generator: torch.Generator) -> None:
    inputs = to(maps(case, generator), device)

    def op(*arguments: object) -> Tensor:
        return deform_sample(*arguments, deterministic=deterministic)

    assert_matches_reference(op, deform_sample_reference, inputs)


@pytest.mark.parametrize("case", CASES[1:], ids=str)
def test_values_in_bfloat16(case: tuple, device: str, generator: torch.Generator) -> None:
    inputs = to(maps(case, generator), device)
    inputs[0] = inputs[0].bfloat16()
    for i in (2, 3):
        inputs[i] = inputs[i].bfloat16().float()  # the reference samples in the dtype of the values
    assert_matches_reference(deform_sample, deform_sample_reference, inputs)


def test_points_that_are_nowhere_read_zero(device: str, generator: torch.Generator) -> None:
    value, shapes, locations, weights = to(maps(CASES[1], generator), device)
    for nowhere in (math.inf, -math.inf, math.nan, 1e30):
        locations[...] = nowhere
        assert deform_sample(value, shapes, locations, weights).eq(0).all()


def test_deterministic_gradients_do_not_depend_on_the_size_of_the_gradient(
    device: str, generator: torch.Generator
) -> None:
    value, shapes, locations, weights = to(maps(CASES[2], generator), device)
    grads = []
    for size in (1e-20, 1.0, 1e20):
        leaf = value.clone().requires_grad_()
        out = deform_sample(leaf, shapes, locations, weights, deterministic=True)
        out.backward(torch.full_like(out, size))
        grads.append(leaf.grad / size)
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[2], grads[1])


def test_gradcheck_of_the_kernels(device: str, generator: torch.Generator) -> None:
    if device == "cuda":
        pytest.skip("the kernels sum in float32 on a GPU")
    value, shapes, locations, weights = to(maps(CASES[1], generator, 1), torch.float64)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, xy, w: deform_sample(v, shapes, xy, w), inputs, fast_mode=True)


def test_the_registered_ops_are_sound(device: str, generator: torch.Generator) -> None:
    value, _, locations, weights = to(maps(CASES[0], generator), device)
    inputs = [x.requires_grad_() for x in (value, locations, weights)]
    torch.library.opcheck(torch.ops.medseg.deform_sample.default, (inputs[0], [1, 1], *inputs[1:], False))
    value, locations, weights = (x.detach() for x in inputs)
    out = torch.ops.medseg.deform_sample(value, [1, 1], locations, weights, False)
    for fixed in (False, True):
        arguments = (out, value, [1, 1], locations, weights, fixed)
        check_backward_op(torch.ops.medseg.deform_sample_backward.default, arguments)
