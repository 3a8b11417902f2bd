from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference, deviations, poisoned_memory


def product(a: Tensor, b: Tensor) -> Tensor:
    return a @ b


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_reference_matches_itself(dtype: torch.dtype, generator: torch.Generator) -> None:
    inputs = [torch.randn(9, 9, generator=generator).to(dtype) for _ in range(2)]
    assert_matches_reference(product, product, inputs)


def test_a_fault_of_one_in_a_hundred_thousand_is_seen(generator: torch.Generator) -> None:
    inputs = [torch.randn(9, 9, generator=generator) for _ in range(2)]
    with pytest.raises(AssertionError, match="out"):
        assert_matches_reference(lambda a, b: a @ b * (1 + 1e-5), product, inputs)


def test_a_wrong_gradient_is_seen_and_named(generator: torch.Generator) -> None:
    inputs = [torch.randn(9, 9, generator=generator) for _ in range(2)]
    found = deviations(lambda a, b: a @ b.detach(), product, inputs)
    assert [each.name for each in found if not each.green] == ["grad 1"]


def test_an_unwritten_output_is_seen(generator: torch.Generator) -> None:
    def forgets_the_last_row(a: Tensor, b: Tensor) -> Tensor:
        out = torch.empty_like(a)
        out[:-1] = (a @ b)[:-1]
        return out

    inputs = [torch.randn(9, 9, generator=generator) for _ in range(2)]
    with pytest.raises(AssertionError, match="nan"):
        assert_matches_reference(forgets_the_last_row, product, inputs, gradients=False)


def test_poison_is_taken_away_again() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
    assert torch.are_deterministic_algorithms_enabled() == before
