from __future__ import annotations

import pytest
import torch

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.haar3d import haar3d, haar3d_reference, ihaar3d, ihaar3d_reference

SHAPES = [(1, 1, 2, 2, 2), (2, 3, 4, 6, 10), (1, 5, 8, 14, 18)]  # one block; odd halves; several programs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator) -> None:
    x = torch.randn(shape, generator=generator).to(device, dtype)
    assert_matches_reference(haar3d, haar3d_reference, [x])
    assert_matches_reference(ihaar3d, ihaar3d_reference, [haar3d_reference(x)])


def test_takes_views(device: str, generator: torch.Generator) -> None:
    x = torch.randn(2, 10, 6, 4, 3, generator=generator).to(device).permute(0, 4, 3, 2, 1)
    assert_matches_reference(haar3d, haar3d_reference, [x])
    assert_matches_reference(ihaar3d, ihaar3d_reference, [haar3d_reference(x).mT])


def test_an_empty_batch_stays_empty(device: str) -> None:
    assert haar3d(torch.zeros(0, 3, 2, 4, 6, device=device)).shape == (0, 24, 1, 2, 3)


@pytest.mark.parametrize("op", [haar3d, ihaar3d])
def test_gradcheck_of_the_kernels(op: object, device: str, generator: torch.Generator) -> None:
    if device == "cuda":
        pytest.skip("the kernels sum in float32 on a GPU")
    x = torch.randn(1, 8, 2, 4, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(op, x)


@pytest.mark.parametrize("op", [haar3d, ihaar3d])
def test_the_registered_op_is_sound(op: object, device: str, generator: torch.Generator) -> None:
    x = torch.randn(1, 8, 2, 4, 2, generator=generator).to(device).requires_grad_()
    torch.library.opcheck(getattr(torch.ops.medseg, op.__name__).default, (x,))
