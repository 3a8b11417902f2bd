"""Scripted and traced models: every public op in one, equal to the op, and loaded where this package is absent."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import medseg_kernels as ops
from medseg_kernels import layout_dense, layout_from_labels, layout_windows
from tests.kernels.attention_cases import random

H, W = 4, 6  # grid of tokens; 24 of them, 2 heads of 8


class Region(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        labels = torch.arange(24).view(1, 4, 6) % 5
        layout = layout_from_labels(labels)
        flat = ops.region_attention(q, k, v, labels, scale=0.5)
        return flat + ops.region_attention(q, k, v, layout, scale=0.25)


class Segment(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layout = layout_dense(1, 24, 24)
        return ops.segment_attention(q[0], k[0], v[0], layout, scale=0.5)


class SegmentWithBias(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows = torch.arange(24).view(2, 12)
        layout, table = layout_windows(rows, rows), q[0, :12, :, :1].permute(1, 0, 2) + k[0, :12, :, 0].mT[:, None]
        gridded = layout_windows(rows, rows, grid=(3, 4))
        out = ops.segment_attention(q[0], k[0], v[0], layout, bias=table)
        return out + ops.segment_attention(q[0], k[0], v[0], gridded, rel_h=q[0, :, :, :3], rel_w=q[0, :, :, 3:7])


class Window(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        fine, coarse, values = q.unflatten(1, [4, 6]), k.unflatten(1, [4, 6]), v.unflatten(1, [4, 6])
        shifted = ops.window_attention(fine, coarse, values, (2, 4), shift=True)
        filled = ops.window_attention(fine, coarse, values, (3, 3), pad_k=k[0, 0], pad_v=v[0, 0], scale=0.5)
        pooled = ops.window_attention(fine[:, ::2, ::2], coarse, values, (2, 2), stride=(2, 2))
        deep = ops.window_attention(
            q.unflatten(1, [2, 2, 6]), k.unflatten(1, [2, 2, 6]), v.unflatten(1, [2, 2, 6]), (2, 2, 2)
        )
        return torch.cat((shifted.flatten(), filled.flatten(), pooled.flatten(), deep.flatten()))


class Relative(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grid, keys, values = q.unflatten(1, [4, 6]), k.unflatten(1, [4, 6]), v.unflatten(1, [4, 6])
        rel_h, rel_w = ops.relative_position(grid, q[0, :7, 0], k[0, :11, 0])
        whole = ops.relative_attention(grid, keys, values, q[0, :7, 0], k[0, :11, 0])
        options = ops.relative_attention(
            grid, keys, values, q[0, :9, 0], k[0, :5, 0], window=3, pad_k=k[0, 0], pad_v=v[0, 0]
        )
        return torch.cat((whole.flatten(), options.flatten(), rel_h.flatten(), rel_w.flatten()))


class Rope(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angle = q[0, :8, 0, :4]
        table = angle.cos(), angle.sin()
        plain = ops.rope_attention(q, ops.rotate(k, table[0], table[1]), v, table[0], table[1])
        weight = k[0, :2, :, :3]
        later = ops.rope_attention(
            q, k, v[:, :, 0, :3], table[0], table[1], v_weight=weight.mT.mT, v_bias=q[0, 0, :, :2]
        )
        return torch.cat((plain.flatten(), later.flatten()))


class Dense(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen = ops.dense_attention(q, k, v[..., :3])
        bent = ops.dense(q, k[0, :5, 0], q[0, 0, 0, :5], "gelu")
        onto = ops.dense_add(q, k[0, :5, 0], None, bent)
        return torch.cat((seen.flatten(), bent.flatten(), onto.flatten(), ops.dense(q, k[0, :5, 0]).flatten()))


class Linear(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = q.flatten(2)
        return ops.linear_attention(x, k.flatten(2), v.flatten(2), 4, rope=x[0].unflatten(1, [8, 2]), add=x, gate=x)


class Deform(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        points = k.sigmoid().unflatten(3, [2, 2, 2])
        return ops.deform_sample(q, [(4, 5), (2, 2)], points, points.sum(-1))


class Guided(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x, y = q.flatten(1).view(1, 4, 12, 8), k.flatten(1).view(1, 4, 12, 8)
        high = torch.cat((x, y), 2)
        return ops.guided_filter(x, y, high, x[:, :1], radius=1).sum() + ops.box_sum(x, 2)


class Haar(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = q.flatten(1).view(1, 2, 4, 6, 8)
        weight = k.flatten()[:42].view(3, 14, 1, 1, 1)
        low, high = ops.haar3d_project(x, weight[:, :2], None, weight, weight[:, 0, 0, 0, 0])
        return torch.cat((ops.haar3d(x).flatten(), ops.ihaar3d(ops.haar3d(x)).flatten(), low.flatten(), high.flatten()))


MODELS = [Region, Segment, SegmentWithBias, Window, Relative, Rope, Dense, Linear, Deform, Guided, Haar]
INPUTS = tuple(random(1, H * W, 2, 8, seed=i) for i in range(3))
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


@cache
def recorded(model: type[nn.Module]) -> list[torch.jit.ScriptModule]:
    """The model scripted and traced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [torch.jit.script(model()), torch.jit.trace(model(), INPUTS, check_trace=False)]


@pytest.mark.parametrize("model", MODELS)
def test_recorded_op_equals_the_op(model: type[nn.Module]) -> None:
    want = model()(*INPUTS)
    for each in recorded(model):
        assert "medseg::" not in str(each.inlined_graph)
        torch.testing.assert_close(each(*INPUTS), want, rtol=1e-5, atol=1e-5)


def test_every_public_op_is_among_them() -> None:
    named = {name for model in MODELS for name in model.forward.__code__.co_names}
    assert {name for name in ops.__all__ if name != "SegmentLayout"} <= named


def test_they_load_without_this_package(tmp_path: Path) -> None:
    for model in MODELS:
        for kind, each in zip(("scripted", "traced"), recorded(model), strict=True):
            each.save(tmp_path / f"{model.__name__} {kind}.ts")
    torch.save((INPUTS, {model.__name__: model()(*INPUTS) for model in MODELS}), tmp_path / "seen.pt")
    code = (
        "import sys, torch; sys.modules['medseg_kernels'] = sys.modules['triton'] = None\n"
        "from pathlib import Path\n"
        "inputs, want = torch.load('seen.pt'); files = sorted(Path().glob('*.ts'))\n"
        f"assert len(files) == {2 * len(MODELS)}\n"
        "for file in files:\n"
        "    got = torch.jit.load(file)(*inputs)\n"
        "    torch.testing.assert_close(got, want[file.name.split()[0]], rtol=1e-5, atol=1e-5)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, check=True)
