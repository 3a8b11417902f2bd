"""Dense layers and dense attention: the CPU's short cuts equal the plain forms, and step aside where they must."""

from __future__ import annotations

from importlib import import_module
from typing import Any, get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.dense import (
    Activation,
    dense,
    dense_add,
    dense_add_reference,
    dense_reference,
    uses_onednn,
)
from medseg_kernels.dense_attention import dense_attention, dense_attention_reference

module = import_module("medseg_kernels.dense_attention")  # the package has a function of this name
LAYERS = [(1, 1, 1), (63, 20, 7), (300, 96, 384)]  # rows, channels read, channels written
SHAPES = [  # images, queries, keys, heads, width, value width
    (1, 1, 1, 1, 4, 4),
    (2, 37, 50, 3, 8, 8),
    (1, 70, 130, 1, 32, 8),
    (2, 530, 40, 2, 16, 4),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_layer_equals_reference(
    shape: tuple[int, int, int], activation: Activation, dtype: torch.dtype, generator: torch.Generator
) -> None:
    rows, read, written = shape
    sizes = ((2, rows, read), (written, read), (written,))
    inputs = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    for gradients in (True, False):  # oneDNN runs where nobody asks for them
        with torch.set_grad_enabled(gradients):
            options = {"activation": activation}
            assert_matches_reference(dense, dense_reference, inputs, options=options, gradients=gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", LAYERS, ids=str)
def test_sum_with_a_layer_equals_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, generator: torch.Generator
) -> None:
    rows, read, written = shape
    sizes = ((2, rows, read), (written, read), (written,), (2, rows, written))
    inputs = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    kept = inputs[3].clone()
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert_matches_reference(dense_add, dense_add_reference, inputs, gradients=gradients)
    assert torch.equal(inputs[3], kept)


def test_products_of_onednn_are_counted() -> None:
    x, weight, to = torch.randn(2, 5, 7), torch.randn(3, 7), torch.randn(2, 5, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        dense(x, weight, None, "silu")
        dense_add(x, weight, None, to)
    assert counter.get_total_flops() == 2 * 2 * (2 * 5 * 7 * 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_equals_reference(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGITS", 1000)  # several chunks, the last one short
    batch, queries, keys, heads, width, narrow = shape
    sizes = ((queries, width), (keys, width), (keys, narrow))
    inputs = [torch.randn(batch, n, heads, c, generator=generator).to(dtype) for n, c in sizes]
    for gradients in (True, False):
        assert_matches_reference(dense_attention, dense_attention_reference, inputs, gradients=gradients)


def test_onednn_steps_aside_for_gradients_and_other_dtypes() -> None:
    x, weight = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    assert not uses_onednn(x, weight)
    assert not uses_onednn(x.double())
    assert not uses_onednn(x[:0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dense(x, weight).dtype == torch.bfloat16
    with torch.no_grad():
        assert uses_onednn(x, weight) == torch.backends.mkldnn.is_available()


def test_strided_and_empty_inputs(generator: torch.Generator) -> None:
    x = torch.randn(5, 8, 6, generator=generator).mT
    weight = torch.randn(8, 12, generator=generator)[:, ::2][:, :3].repeat(1, 3)[:, :8]
    torch.testing.assert_close(dense(x, weight), x @ weight.mT)
    assert dense(x[:0], weight).shape == (0, 6, 8)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_traced_layer_is_plain(generator: torch.Generator) -> None:
    x, weight = torch.randn(3, 8, generator=generator), torch.randn(4, 8, generator=generator)
    with torch.no_grad():
        traced: Any = torch.jit.trace(lambda a, b: dense(a, b, None, "gelu"), (x, weight))
    assert "mkldnn" not in str(traced.graph)
    torch.testing.assert_close(traced(x, weight), dense(x, weight, None, "gelu"))
