"""The attention ops on a CPU: fast paths against float64, properties, and what compilers and exporters see."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

import medseg_kernels as ops
from medseg_kernels.compare import assert_matches_reference
from medseg_kernels.layout import layout_from_labels
from medseg_kernels.region_attention import region_attention_reference
from medseg_kernels.softmax_attention import (
    segment_attention,
    segment_attention_reference,
    segment_attention_with_lse,
    segment_attention_with_lse_reference,
)
from medseg_kernels.window_attention import window_attention_reference
from tests.kernels.attention_cases import WINDOWS, labels, ragged, random, relative_case, rope_case, window_case
from tests.kernels.attention_checks import GridChecks, RegionChecks, SegmentChecks


class TestSegments(SegmentChecks):
    pass


class TestRegions(RegionChecks):
    pass


class TestGrids(GridChecks):
    pass


def qkv(*shape: int) -> list[Tensor]:
    return [x.clone() for x in random(3, *shape)]


def test_large_regions_get_batches_of_their_own() -> None:
    regions = torch.cat((torch.zeros(600), torch.ones(520), torch.full((90,), 2.0), torch.full((85,), 3.0)))[None]
    options = {"scale": 0.3}
    assert_matches_reference(
        ops.region_attention, region_attention_reference, [*qkv(1, 1295, 1, 8), regions], options=options
    )


def test_a_segment_without_keys_gives_zeros_and_minus_infinity() -> None:
    layout = ragged([5, 7], [0, 6])
    q, k, v = random(12, 1, 8).requires_grad_(), random(6, 1, 8, seed=1), random(6, 1, 8, seed=2)
    out, lse = segment_attention_with_lse(q, k, v, layout)
    alone = layout.q_rows[:5].long()
    assert out[alone].abs().max() == 0
    assert lse[alone].isneginf().all()
    out.sum().backward()
    assert q.grad is not None
    assert q.grad[alone].abs().max() == 0


def test_log_sums_are_those_of_the_reference() -> None:
    layout = ragged([20, 3, 18], [15, 20, 2])
    inputs = random(41, 2, 8), random(37, 2, 8), random(37, 2, 8, seed=1)
    got = segment_attention_with_lse(*inputs, layout)
    want = segment_attention_with_lse_reference(*inputs, layout)
    torch.testing.assert_close(got[1], want[1])


def test_permuted_tokens_permute_the_output() -> None:
    regions = labels("giant and singletons")
    q, k, v = qkv(*regions.shape, 2, 8)
    order = torch.randperm(regions.shape[1], generator=torch.Generator().manual_seed(0))
    whole = ops.region_attention(q, k, v, regions, scale=0.5)
    shuffled = ops.region_attention(q[:, order], k[:, order], v[:, order], regions[:, order], scale=0.5)
    torch.testing.assert_close(shuffled, whole[:, order])


def test_windows_as_labels_equal_windows() -> None:
    q, k, v = qkv(2, 8, 12, 2, 8)
    regions = torch.arange(8)[:, None] // 4 * 3 + torch.arange(12) // 4
    as_windows = ops.window_attention(q, k, v, (4, 4), scale=0.5)
    flat = (x.flatten(1, 2) for x in (q, k, v))
    as_regions = ops.region_attention(*flat, regions.expand(2, -1, -1), scale=0.5)
    torch.testing.assert_close(as_windows.flatten(1, 2), as_regions)


def test_2d_windows_equal_3d_windows_of_depth_one() -> None:
    q, k, v = qkv(2, 8, 12, 2, 8)
    deep = ops.window_attention(q[:, None], k[:, None], v[:, None], (1, 4, 4))
    torch.testing.assert_close(deep[:, 0], ops.window_attention(q, k, v, (4, 4)))


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_one_at_a_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, reference, inputs, options = window_case(name, torch.float32)
    together = op(*inputs, **options)
    monkeypatch.setattr(import_module("medseg_kernels.window_chunks"), "LOGITS", 1)
    assert_matches_reference(op, reference, inputs, options=options)
    torch.testing.assert_close(op(*inputs, **options), together, rtol=1e-6, atol=1e-6)


def test_pooling_may_leave_the_last_keys_without_a_query() -> None:
    inputs = [random(1, 4, 4, 2, 8), random(1, 9, 9, 2, 8, seed=1), random(1, 9, 9, 2, 8, seed=2), (4, 4)]
    options = {"stride": (2, 2), "pad_k": random(2, 8), "pad_v": random(2, 8, seed=1)}
    assert_matches_reference(ops.window_attention, window_attention_reference, inputs, options=options)


def test_constant_values_come_out_constant_where_keys_are_masked() -> None:
    op, _, inputs, options = window_case("does not divide, shifted, bias", torch.float32)
    out = op(inputs[0], inputs[1], torch.ones_like(inputs[2]), inputs[3], **options)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_relative_attention_over_a_grid_has_the_published_bits() -> None:
    op, reference, inputs, options = relative_case("global 9x6", torch.float32)
    assert torch.equal(op(*inputs, **options), reference(*inputs, **options))


@pytest.mark.parametrize("case", [window_case, relative_case, rope_case], ids=lambda case: case.__name__)
def test_references_pass_gradcheck(case) -> None:
    name = {window_case: "window larger than the map", relative_case: "global 9x6", rope_case: "itself"}[case]
    _, reference, inputs, options = case(name, torch.float64)
    inputs = [x[:1, :3, ..., :4].contiguous() if isinstance(x, Tensor) and x.ndim > 3 else x for x in inputs]
    inputs = [
        x[:, :4].contiguous() if isinstance(x, Tensor) and x.ndim == 2 and case is relative_case else x for x in inputs
    ]
    if case is rope_case:
        inputs[3:] = [x[:3, :2].contiguous() for x in inputs[3:]]
    options = {key: x for key, x in options.items() if not isinstance(x, Tensor)}
    tensors = [x.requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: reference(*x, **options), tensors, fast_mode=True)


def test_segment_paths_pass_gradcheck() -> None:
    layout = ragged([3, 0, 4, 2], [4, 2, 3, 0])
    inputs = [random(9, 1, 4, seed=i).double().requires_grad_() for i in range(3)]
    for function in (segment_attention, segment_attention_reference):
        assert torch.autograd.gradcheck(lambda q, k, v, f=function: f(q, k, v, layout), inputs)


# q, k, v, bias, rel_h, rel_w, pad_k, pad_v of windows of 2 x 2 that do not divide the key grid
WINDOW_SHAPES = [(1, 6, 10, 2, 4), (1, 3, 5, 2, 4), (1, 3, 5, 2, 4), (2, 16, 4), (1, 6, 10, 2, 2), (1, 6, 10, 2, 2)]
WINDOW_SHAPES += [(2, 4), (2, 4)]


def test_opcheck_of_the_registered_ops() -> None:
    layout = ragged([9, 0, 4], [4, 2, 7])
    q, k, v = (random(13, 2, 8, seed=i).requires_grad_() for i in range(3))
    tables = (layout.q_rows, layout.q_segment, layout.q_start, layout.k_rows, layout.k_segment, layout.k_start)
    torch.library.opcheck(torch.ops.medseg.segment_attention.default, (q, k, v, *tables, None, None, None, 0.3, []))
    parts = [random(1, 2, 12, n).requires_grad_() for n in (8, 8, 8, 3, 4)]
    torch.library.opcheck(torch.ops.medseg.chunked_attention.default, (*parts, 0.3))
    grids = [random(*shape).requires_grad_() for shape in WINDOW_SHAPES]
    torch.library.opcheck(torch.ops.medseg.window_attention.default, (*grids, [2, 2], True, None, 0.3))


def test_opcheck_of_the_registered_backward_ops() -> None:
    layout = ragged([9, 0, 4], [4, 2, 7])
    saved = [random(13, 2, 8, seed=i) for i in range(3)]
    tables = (layout.q_rows, layout.q_segment, layout.q_start, layout.k_rows, layout.k_segment, layout.k_start)
    added = (None, None, None, 0.3, [])
    saved += torch.ops.medseg.segment_attention(*saved, *tables, *added)
    arguments = (random(13, 2, 8, seed=5), *saved, *tables, *added)
    torch.library.opcheck(torch.ops.medseg.segment_attention_backward.default, arguments)
    parts = [random(1, 2, 12, n) for n in (8, 8, 8, 8, 3, 4)]
    torch.library.opcheck(torch.ops.medseg.chunked_attention_backward.default, (*parts, 0.3))
    grids = [random(*WINDOW_SHAPES[0], seed=1), *(random(*shape) for shape in WINDOW_SHAPES)]
    torch.library.opcheck(torch.ops.medseg.window_attention_backward.default, (*grids, [2, 2], True, None, 0.3))


class Regions(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, regions: Tensor) -> Tensor:
        return ops.region_attention(q, k, v, regions, scale=0.5)


class Relative(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, regions: Tensor) -> Tensor:
        grids = (x.unflatten(1, (3, 11)) for x in (q, k, v))
        return ops.relative_attention(*grids, q[0, :5, 0], k[0, :21, 0])


@pytest.mark.parametrize("module", [Regions(), Relative()], ids=lambda module: type(module).__name__)
def test_compile_export_autocast_and_inference_mode(module: nn.Module) -> None:
    regions = labels("images that share ids")
    inputs = (*qkv(*regions.shape, 2, 8), regions)
    want = module(*inputs)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(*inputs), want)
    torch.testing.assert_close(torch.export.export(module, inputs).module()(*inputs), want)
    with torch.inference_mode():
        torch.testing.assert_close(module(*inputs), want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = module(*inputs)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), want, rtol=0.05, atol=0.05)


def test_export_with_a_dynamic_number_of_tokens() -> None:
    tokens = torch.export.Dim("tokens", min=3, max=4096)
    regions = labels("images that share ids")
    shapes = ({1: tokens}, {1: tokens}, {1: tokens}, {1: tokens})
    program = torch.export.export(Regions(), (*qkv(*regions.shape, 2, 8), regions), dynamic_shapes=shapes)
    regions = torch.randint(0, 5, (3, 50), generator=torch.Generator().manual_seed(0))
    inputs = (*qkv(3, 50, 2, 8), regions)
    torch.testing.assert_close(program.module()(*inputs), Regions()(*inputs))


def test_layout_is_shared_between_layers() -> None:
    regions = labels("images that share ids")
    inputs = qkv(*regions.shape, 2, 8)
    shared = ops.region_attention(*inputs, layout_from_labels(regions), scale=0.5)
    assert torch.equal(shared, ops.region_attention(*inputs, regions, scale=0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.region_attention(*qkv(1, 9, 2, 8), torch.zeros(1, 8), scale=1.0), "labels must name all 1 x 9"),
        (lambda: ops.window_attention(*qkv(1, 6, 6, 2, 8), (4, 4), bias=torch.zeros(2, 3, 3)), "bias must be"),
        (lambda: ops.window_attention(*qkv(1, 6, 6, 2, 8), (4, 4), pad_k=torch.zeros(2, 8)), "come together"),
        (lambda: ops.window_attention(*qkv(1, 6, 6, 2, 8), (4, 4), stride=(2, 2)), "pooled by"),
        (lambda: ops.relative_attention(*qkv(1, 6, 6, 2, 8), *qkv(7, 8)[:2], window=4), "must be given"),
        (lambda: ops.rope_attention(*qkv(1, 6, 2, 8), torch.zeros(4, 4), torch.zeros(4, 4)), "whole frames of 4"),
        (lambda: ops.segment_attention(*qkv(6, 2, 8), ragged([6], [6]), rel_h=torch.zeros(6, 2, 3)), "come together"),
        (lambda: layout_from_labels(torch.zeros(4)), "labels must be"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
