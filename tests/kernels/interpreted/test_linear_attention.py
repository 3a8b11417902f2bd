from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.linear_attention import linear_attention, linear_attention_reference
from tests.kernels.registered import check_backward_op

# batch, tokens, channels, heads: widths 1 (a pair spans heads), 2, 4 over a split, 16 in a cut group, 12, 32, odd, 48
CASES = [(1, 1, 4, 4), (2, 37, 40, 40), (1, 70, 24, 12), (1, 300, 36, 9), (2, 65, 48, 3), (1, 9, 36, 3), (1, 64, 64, 2)]
CASES += [(1, 20, 18, 6), (1, 10, 34, 2), (1, 17, 96, 2)]


def tensors(case: tuple[int, ...], generator: torch.Generator) -> tuple[list[Any], dict[str, Tensor]]:
    batch, tokens, channels, heads = case
    q, k, v, add, gate = (torch.randn(batch, tokens, channels, generator=generator) for _ in range(5))
    angle = torch.rand(tokens, channels // 2, generator=generator) * 6
    rope = torch.stack((angle.cos(), angle.sin()), dim=-1)
    return [q, k, v, heads], {"rope": rope, "add": add, "gate": gate}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(case: tuple[int, ...], device: str, generator: torch.Generator) -> None:
    inputs, options = tensors(case, generator)
    inputs = [x.to(device) if isinstance(x, Tensor) else x for x in inputs]
    options = {name: x.to(device) for name, x in options.items()}
    assert_matches_reference(linear_attention, linear_attention_reference, inputs, options=options)


@pytest.mark.parametrize("kept", [(), ("rope",), ("add",), ("gate", "rope")], ids=str)
def test_every_part_is_optional(kept: tuple[str, ...], device: str, generator: torch.Generator) -> None:
    inputs, options = tensors((1, 20, 16, 4), generator)
    inputs = [x.to(device) if isinstance(x, Tensor) else x for x in inputs]
    options = {name: options[name].to(device) for name in kept}
    assert_matches_reference(linear_attention, linear_attention_reference, inputs, options=options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_and_views(dtype: torch.dtype, device: str, generator: torch.Generator) -> None:
    inputs, options = tensors((2, 33, 48, 12), generator)
    q, k, v = torch.cat(inputs[:3], dim=-1).to(device, dtype).chunk(3, dim=-1)
    options = {name: x.to(device, torch.float32 if name == "rope" else dtype) for name, x in options.items()}
    assert_matches_reference(linear_attention, linear_attention_reference, [q, k, v, 12], options=options)


def test_gradcheck_of_the_kernels(device: str, generator: torch.Generator) -> None:
    if device == "cuda":
        pytest.skip("the kernels sum in float32 on a GPU")
    (q, k, v, heads), options = tensors((1, 5, 8, 4), generator)
    leaves = [x.double().requires_grad_() for x in (q, k, v, options["add"], options["gate"])]
    rope = options["rope"].double()
    assert torch.autograd.gradcheck(
        lambda q, k, v, add, gate: linear_attention(q, k, v, heads, rope, add, gate), leaves, fast_mode=True
    )


def test_the_registered_ops_are_sound(device: str, generator: torch.Generator) -> None:
    (q, k, v, heads), options = tensors((1, 5, 8, 4), generator)
    q, k, v, add, gate = (x.to(device).requires_grad_() for x in (q, k, v, options["add"], options["gate"]))
    rope = options["rope"].to(device)
    torch.library.opcheck(torch.ops.medseg.linear_attention.default, (q, k, v, rope, add, gate, heads, 1e-6))
    q, k, v, add, gate = (x.detach() for x in (q, k, v, add, gate))
    out, state = torch.ops.medseg.linear_attention(q, k, v, rope, add, gate, heads, 1e-6)
    inputs = (out, q, k, v, rope, add, gate, state, heads, 1e-6)
    check_backward_op(torch.ops.medseg.linear_attention_backward.default, inputs)
