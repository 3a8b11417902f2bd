from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.linear_attention import linear_attention, linear_attention_reference

CASES = [(1, 1, 4, 4), (2, 37, 40, 40), (1, 70, 24, 3), (2, 65, 48, 12), (1, 9, 36, 3), (1, 20, 64, 2)]


def tensors(case: tuple[int, ...], generator: torch.Generator) -> tuple[list[Any], dict[str, Tensor]]:
    batch, tokens, channels, heads = case
    q, k, v, add, gate = (torch.randn(batch, tokens, channels, generator=generator) for _ in range(5))
    angle = torch.rand(tokens, channels // 2, generator=generator) * 6
    return [q, k, v, heads], {"rope": torch.stack((angle.cos(), angle.sin()), dim=-1), "add": add, "gate": gate}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(case: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> None:
    inputs, options = tensors(case, generator)
    inputs = [x.to(dtype) if isinstance(x, Tensor) else x for x in inputs]
    options = {name: x if name == "rope" else x.to(dtype) for name, x in options.items()}
    assert_matches_reference(linear_attention, linear_attention_reference, inputs, options=options)


def test_reference_equals_the_quadratic_form(generator: torch.Generator) -> None:
    (q, k, v, heads), options = tensors((1, 12, 8, 2), generator)
    q, k, v, rope = (x.double() for x in (q, k, v, options["rope"]))
    rotation = torch.view_as_complex(rope)

    def turn(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(2, (-1, 2))) * rotation).flatten(2)

    phi_q, phi_k = F.elu(q) + 1, F.elu(k) + 1
    for head in range(heads):
        part = slice(4 * head, 4 * head + 4)
        weights = turn(phi_q)[..., part] @ turn(phi_k)[..., part].mT  # (1, N, N)
        normaliser = (phi_q[..., part] @ phi_k[..., part].mT).sum(2, keepdim=True) + 12 * 1e-6
        want = weights @ v[..., part] / normaliser
        torch.testing.assert_close(linear_attention_reference(q, k, v, heads, rope)[..., part], want)


def test_order_of_tokens_does_not_matter(generator: torch.Generator) -> None:
    (q, k, v, heads), options = tensors((1, 30, 16, 4), generator)
    order = torch.randperm(30, generator=generator)
    shuffled = {"rope": options["rope"][order], "add": options["add"][:, order], "gate": options["gate"][:, order]}
    got = linear_attention(q[:, order], k[:, order], v[:, order], heads, **shuffled)
    torch.testing.assert_close(got, linear_attention(q, k, v, heads, **options)[:, order])


@pytest.mark.parametrize("op", [linear_attention, linear_attention_reference])
def test_gradcheck(op: Any, generator: torch.Generator) -> None:
    (q, k, v, heads), options = tensors((2, 3, 8, 4), generator)
    leaves = [x.double().requires_grad_() for x in (q, k, v, options["add"], options["gate"])]
    rope = options["rope"].double()
    assert torch.autograd.gradcheck(lambda q, k, v, add, gate: op(q, k, v, heads, rope, add, gate), leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_heads": 5}, "divide"), ({"gate": torch.zeros(1)}, "gate"), ({"rope": torch.zeros(3, 4, 2)}, "rope")],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str, generator: torch.Generator) -> None:
    (q, k, v, heads), options = tensors((1, 6, 8, 2), generator)
    with pytest.raises(ValueError, match=message):
        linear_attention(q, k, v, **({"num_heads": heads} | options | change))


class Net(torch.nn.Module):
    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        return linear_attention(x, x, x, 4, rope, x, x)


def test_compile_export_script_and_trace(generator: torch.Generator) -> None:
    (x, _, _, _), options = tensors((3, 20, 16, 4), generator)
    arguments = (x, options["rope"])
    want = Net()(*arguments)
    torch.testing.assert_close(torch.compile(Net(), fullgraph=True, backend="aot_eager")(*arguments), want)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Net(), arguments, dynamic_shapes=({0: batch}, None)).module()
    torch.testing.assert_close(exported(x[:2], options["rope"]), want[:2])
    for frozen in (torch.jit.trace(Net(), arguments), torch.jit.script(Net())):
        assert "medseg::" not in str(frozen.inlined_graph)
        torch.testing.assert_close(frozen(*arguments), want)


def test_autocast_and_inference_mode_keep_the_dtype(generator: torch.Generator) -> None:
    inputs, options = tensors((1, 20, 16, 4), generator)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        out = linear_attention(*inputs, **options)
    torch.testing.assert_close(out, linear_attention(*inputs, **options))
