"""The checks that CPU path, interpreter and GPU must all pass; the test files say only where they run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from medseg_kernels.compare import assert_matches_reference, deviations
from medseg_kernels.region_attention import region_attention, region_attention_reference
from medseg_kernels.softmax_attention import segment_attention, segment_attention_reference
from tests.kernels.attention_cases import (
    LABELS,
    LAYOUTS,
    RELATIVE,
    ROPE,
    WIDTHS,
    WINDOWS,
    labels,
    ragged,
    random,
    relative_case,
    rope_case,
    window_case,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def qkv(queries: int, keys: int, D: int, Dv: int, *, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """(queries, 2, D), (keys, 2, D) and (keys, 2, Dv) on the device."""
    sizes = ((queries, D), (keys, D), (keys, Dv))
    return [random(n, 2, width, dtype=dtype, seed=i).to(device) for i, (n, width) in enumerate(sizes)]


def to(device: str, x: object) -> object:
    """The argument on the device, if it can move."""
    return x.to(device) if hasattr(x, "to") else x


class SegmentChecks:
    """segment_attention on layouts and widths that go wrong first."""

    @DTYPES
    @pytest.mark.parametrize("name", LAYOUTS)
    def test_layouts(self, name: str, dtype: torch.dtype, device: str) -> None:
        layout = LAYOUTS[name].to(device)
        inputs = qkv(len(layout.q_segment), len(layout.k_segment), 20, 12, dtype=dtype, device=device)
        assert_matches_reference(segment_attention, segment_attention_reference, [*inputs, layout])

    @pytest.mark.parametrize("widths", WIDTHS, ids=str)
    def test_widths(self, widths: tuple[int, int], device: str) -> None:
        layout = ragged([20, 3, 18], [15, 20, 2]).to(device)
        inputs = qkv(41, 37, *widths, device=device)
        assert_matches_reference(segment_attention, segment_attention_reference, [*inputs, layout])

    def test_float16(self, device: str) -> None:
        layout = ragged([20, 3, 18], [15, 20, 2]).to(device)
        inputs = qkv(41, 37, 24, 24, dtype=torch.float16, device=device)
        assert_matches_reference(segment_attention, segment_attention_reference, [*inputs, layout])

    @pytest.mark.parametrize("size", [0.0, 60.0], ids=["equal logits", "logits to 500"])
    def test_extreme_logits(self, size: float, device: str) -> None:
        layout = ragged([20, 3, 18], [15, 20, 2]).to(device)
        q, k, v = qkv(41, 37, 16, 16, device=device)
        # A logit L is stored to within half a unit of its last digit, u * L; exp turns that into a relative error of
        # its probability, and so of everything made of it, in whatever order the sums are taken.
        largest = float((size * q.transpose(0, 1) @ k.permute(1, 2, 0)).abs().max()) * 16**-0.5
        rounding = torch.finfo(q.dtype).eps / 2 * largest
        for each in deviations(segment_attention, segment_attention_reference, [q * size, k, v, layout]):
            assert each.error <= max(each.bound, rounding * each.scale), str(each)

    def test_views_of_a_fused_projection(self, device: str) -> None:
        layout = ragged([20, 3, 18], [20, 3, 18]).to(device)
        fused = random(41, 3, 2, 24).to(device)
        fresh = [x.clone() for x in fused.unbind(1)]
        got = segment_attention(*fused.unbind(1), layout)
        torch.testing.assert_close(got, segment_attention(*fresh, layout), rtol=0, atol=0)

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")], ids=str)
    @pytest.mark.parametrize("which", range(4), ids=["q", "k", "v", "grad"])
    def test_a_broken_token_stays_in_its_segment(self, which: int, value: float, device: str) -> None:
        layout = ragged([5, 1, 9, 3, 20], [4, 6, 11, 8, 20])  # all in one block, all in few buckets
        inputs = [*qkv(38, 49, 8, 12, device="cpu"), random(38, 2, 12, seed=9)]
        own_q, own_k = layout.q_rows[6:15].long(), layout.k_rows[10:21].long()
        broken = [x.clone() for x in inputs]
        broken[which][(own_k if which in (1, 2) else own_q)[2], 1, 3] = value
        found = []
        for q, k, v, grad in (inputs, broken):
            leaves = [x.to(device).requires_grad_() for x in (q, k, v)]
            out = segment_attention(*leaves, layout.to(device))
            found.append([out.detach(), *torch.autograd.grad(out, leaves, grad.to(device))])
        for clean, got, own in zip(*found, (own_q, own_q, own_k, own_k), strict=True):
            others = torch.ones(len(clean), dtype=torch.bool).index_fill(0, own, False)
            assert torch.equal(got.cpu()[others], clean.cpu()[others])
        if which == 2:  # every weight is positive, so all queries of the segment must show it
            assert not found[1][0].cpu()[own_q, 1, 3].isfinite().any()

    def test_same_bits_on_every_run(self, device: str) -> None:
        layout = ragged([20, 3, 18], [20, 3, 18]).to(device)
        inputs = [x.requires_grad_() for x in qkv(41, 41, 24, 24, device=device)]
        runs = [torch.autograd.grad(segment_attention(*inputs, layout).square().sum(), inputs) for _ in range(3)]
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


class RegionChecks:
    """region_attention on region maps that go wrong first."""

    @DTYPES
    @pytest.mark.parametrize("kind", LABELS)
    def test_labels(self, kind: str, dtype: torch.dtype, device: str) -> None:
        regions = labels(kind).to(device)
        inputs = [x.to(device, dtype) for x in random(3, *regions.shape, 2, 8).unbind(0)]
        options = {"scale": 2**-0.5}
        inputs.append(regions)
        assert_matches_reference(region_attention, region_attention_reference, inputs, options=options)


class GridChecks:
    """Window, relative and rotary attention."""

    @DTYPES
    @pytest.mark.parametrize("name", WINDOWS)
    def test_windows(self, name: str, dtype: torch.dtype, device: str) -> None:
        op, reference, inputs, options = window_case(name, dtype)
        options = {key: to(device, x) for key, x in options.items()}
        inputs = [to(device, x) for x in inputs]
        assert_matches_reference(op, reference, inputs, options=options)

    @DTYPES
    @pytest.mark.parametrize("name", RELATIVE)
    def test_relative(self, name: str, dtype: torch.dtype, device: str) -> None:
        op, reference, inputs, options = relative_case(name, dtype)
        options = {key: to(device, x) for key, x in options.items()}
        inputs = [to(device, x) for x in inputs]
        assert_matches_reference(op, reference, inputs, options=options)

    @DTYPES
    @pytest.mark.parametrize("name", ROPE)
    def test_rope(self, name: str, dtype: torch.dtype, device: str) -> None:
        op, reference, inputs, options = rope_case(name, dtype)
        options = {key: to(device, x) for key, x in options.items()}
        inputs = [to(device, x) for x in inputs]
        assert_matches_reference(op, reference, inputs, options=options)
