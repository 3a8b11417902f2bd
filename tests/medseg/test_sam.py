"""SAM without published numbers: shapes, odd sizes, exact re-association, key names, gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medseg.errors import ModelMissing
from medseg.networks import build_network, sam
from medseg.networks.sam_decoder import PromptEncoder
from medseg.networks.sam_transformer import DecoderAttention

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "global_attn_indexes": (1,),
    "img_size": 64,
    "window_size": 3,
    "out_chans": 16,
    "mask_in_chans": 4,
    "decoder_heads": 2,
    "decoder_mlp_dim": 16,
    "iou_head_hidden_dim": 16,
}


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (50, 37)])
def test_points_boxes_and_masks_on_one_embedding(rows: int, columns: int) -> None:
    network = build_network("sam", **TINY)
    embedding = network.encode(network.preprocess(torch.rand(1, 3, rows, columns) * 255))
    assert embedding.shape == (1, 16, 4, 4)
    points = (torch.rand(3, 2, 2) * 30, torch.tensor([[1, 0], [1, -1], [1, 1]]))
    several = network.decode(embedding, points=points, multimask=True)
    assert several.logits.shape == (3, 3, 16, 16)
    assert several.iou.shape == (3, 3)
    single = network.decode(embedding, boxes=torch.rand(3, 4) * 40, masks=several.logits[:, :1])
    assert single.logits.shape == (3, 1, 16, 16)
    assert network.enlarge(single.logits, (rows, columns), (91, 70)).shape == (3, 1, 91, 70)
    assert network.decode(embedding).logits.shape == (1, 1, 16, 16)  # no prompt at all


def test_other_image_sizes_interpolate_the_tables() -> None:
    network = sam.Sam(**TINY)
    embedding = network.encode(network.preprocess(torch.rand(1, 3, 96, 80) * 255, side=96))
    assert embedding.shape == (1, 16, 6, 6)
    assert network.decode(embedding, boxes=torch.tensor([[5.0, 6, 60, 70]])).logits.shape == (1, 1, 24, 24)


def test_one_prompt_decodes_alike_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    network = sam.Sam(**TINY)
    embedding, boxes = torch.randn(1, 16, 4, 4), torch.rand(3, 4) * 60
    together = network.decode(embedding, boxes=boxes)
    for i in range(3):
        alone = network.decode(embedding, boxes=boxes[i : i + 1])
        torch.testing.assert_close(together.logits[i : i + 1], alone.logits, rtol=1e-4, atol=1e-5)


def plain(module: DecoderAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Every projection where its name says."""
    h = module.num_heads
    parts = [proj(x).unflatten(2, (h, -1)).transpose(1, 2) for proj, x in zip(
        (module.q_proj, module.k_proj, module.v_proj), (q, k, v), strict=True)]  # fmt: skip
    return module.out_proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("queries", "keys"), [(1, 50), (5, 70), (70, 5), (40, 40), (40, 90), (90, 40)])
def test_moved_projections_are_exact(queries: int, keys: int) -> None:
    torch.manual_seed(1)
    module = DecoderAttention(48, 4, downsample=2).double()
    q, k, v = (torch.randn(2, n, 48, dtype=torch.float64, requires_grad=True) for n in (queries, keys, keys))
    found, wanted = module(q, k, v), plain(module, q, k, v)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    direction = torch.randn_like(found)
    # Softmax ignores the key bias: its gradient is rounding on one side and exactly nothing on the other.
    leaves = [q, k, v, module.q_proj.weight, module.k_proj.weight, module.v_proj.bias, module.out_proj.weight]
    pairs = (torch.autograd.grad((y * direction).sum(), leaves, allow_unused=True) for y in (found, wanted))
    for got, want in zip(*pairs, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_box_is_moved_by_half_a_pixel() -> None:
    encoder = PromptEncoder(8, 16, 4)
    box = torch.tensor([[0.0, 0.0, 63.0, 31.0]])
    tokens, _ = encoder((4, 4), boxes=box)
    corner = encoder.pe_layer(torch.tensor([63.5 / 64, 31.5 / 64])) + encoder.point_embeddings[3].weight[0]
    torch.testing.assert_close(tokens[0, 1], corner)


@pytest.mark.parametrize(("preset", "count"), [("vit_b", 93_735_472), ("vit_l", 312_342_832), ("vit_h", 641_090_608)])
def test_published_sizes(preset: str, count: int) -> None:
    with torch.device("meta"):
        network = sam.Sam(preset)
    assert sum(x.numel() for x in network.parameters()) == count


def test_published_containers_load_and_wrong_keys_are_listed() -> None:
    source, target = sam.Sam(**TINY), sam.Sam(**TINY)
    state = source.state_dict()
    assert not any("pixel_" in key for key in state)
    for checkpoint in (state, {"model": {f"module.{key}": x for key, x in state.items()}, "epoch": 3}, {"net": state}):
        assert sam.load_published(target, checkpoint) == []
    assert all(torch.equal(x, target.state_dict()[key]) for key, x in state.items())
    moved = dict(state)
    moved["image_encoder.head.weight"] = moved.pop("image_encoder.pos_embed")
    with pytest.raises(ModelMissing, match=r"missing .*pos_embed.* unknown .*head\.weight"):
        sam.load_published(target, moved)
    with pytest.raises(ModelMissing, match=r"pos_embed \(1, 2, 2, 16\)"):
        sam.load_published(target, state | {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 16)})


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="vit_b, vit_l, vit_h"):
        sam.Sam("vit_x")
    with pytest.raises(ValueError, match=re.escape("64 x 64 pixels, got 65 x 3")):
        sam.Sam(**TINY).preprocess(torch.zeros(3, 65, 3))


def test_every_weight_that_a_prompt_uses_learns() -> None:
    torch.manual_seed(0)
    network = sam.Sam(**TINY)
    embedding = network.encode(network.preprocess(torch.rand(1, 3, 64, 64) * 255))
    points = (torch.rand(2, 3, 2) * 60, torch.tensor([[1, 0, -1], [0, 1, 1]]))
    several = network.decode(embedding, points=points, boxes=torch.rand(2, 4) * 60, multimask=True)
    one = network.decode(embedding, boxes=torch.rand(1, 4) * 60, masks=torch.randn(1, 1, 16, 16))
    sum(x.square().sum() for x in (*several, *one)).backward()
    # Softmax ignores what a key bias adds to all logits of a query.
    unused = [name for name, x in network.named_parameters() if x.grad is None and "k_proj.bias" not in name]
    assert not unused
