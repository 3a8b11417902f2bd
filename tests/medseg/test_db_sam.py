"""DB-SAM without published numbers: presets, shapes, frozen parts, kept first stage, loading over SAM, loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.errors import ModelMissing
from medseg.networks import build_network, db_sam, db_sam_branch, sam

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "global_attn_indexes": (2,),
    "img_size": 64,
    "window_size": 3,
    "out_chans": 16,
    "mask_in_chans": 4,
    "decoder_heads": 2,
    "decoder_mlp_dim": 16,
    "iou_head_hidden_dim": 16,
    "stages": ((0, 0), (1, 2)),
    "deform_heads": 2,
    "prior_widths": (4, 6, 8),
    "fusion_reduction": 4,
}
ADAPTER = ("stages", "deform_heads", "prior_widths", "fusion_reduction")


@pytest.mark.parametrize("preset", db_sam.DB_PRESETS)
def test_presets_predict_one_mask_per_box(preset: str) -> None:
    network = build_network("db-sam", preset=preset, **TINY).eval()
    images, boxes = torch.rand(2, 50, 64, 3) * 255, torch.tensor([[3.0, 4, 30, 40], [0, 0, 63, 49]])
    with torch.no_grad():
        answer = network(images, boxes)
        assert answer.logits.shape == (2, 1, 16, 16)
        assert network(images, boxes, multimask=True).iou.shape == (2, 3)
        alone = network(images[1:], boxes[1:])
    torch.testing.assert_close(answer.logits[1:], alone.logits, rtol=1e-4, atol=1e-5)


def test_other_image_sizes_keep_all_maps_on_one_grid() -> None:
    network = db_sam.DbSam("db_sam_ms", **TINY).eval()
    with torch.no_grad():
        assert network.encode(torch.randn(1, 3, 96, 160)).shape == (1, 16, 6, 10)


def test_only_adapter_neck_and_prompt_side_learn() -> None:
    network = db_sam.DbSam("db_sam_ms", **TINY)
    logits = network(torch.rand(2, 64, 64, 3) * 255, torch.tensor([[3.0, 4, 30, 40]] * 2)).logits
    db_sam.box_loss(logits, (torch.rand_like(logits) > 0.5).float()).backward()
    frozen = [name for name, x in network.named_parameters() if not x.requires_grad]
    assert {name.split(".")[1] for name in frozen} == {"blocks", "patch_embed", "pos_embed"}
    still = {
        name.removeprefix("image_encoder.adapter.").split(".")[0]
        for name, x in network.named_parameters()
        if x.requires_grad and x.grad is None and "adapter" in name
    }
    assert not still


def test_a_kept_first_stage_changes_nothing() -> None:
    encoder = db_sam.DbSam(**TINY).eval().image_encoder
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(x, encoder.first_stage(x)), encoder(x))


def test_a_silent_adapter_leaves_the_tokens_to_sam() -> None:
    torch.manual_seed(0)
    encoder = db_sam.DbSam(**TINY).eval().image_encoder
    for name, weight in encoder.adapter.named_parameters():
        if any(part in name for part in ("output_proj", "mlp.fc2", "conv_pw")):
            torch.nn.init.zeros_(weight)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens, maps = encoder.first_stage(x), encoder.adapter.maps(x)
        plain = encoder.tokens(x)
        for block in encoder.blocks:
            plain = block(plain)
        tokens, maps = encoder.adapter(0, tokens, maps)
        for block in encoder.blocks[1:]:
            tokens = block(tokens)
        tokens, _ = encoder.adapter(1, tokens, maps)
    torch.testing.assert_close(tokens, plain)


def test_sam_weights_load_and_leave_the_adapter() -> None:
    plain = sam.Sam(**{name: value for name, value in TINY.items() if name not in ADAPTER})
    network = db_sam.DbSam(**TINY)
    kept = sam.load_published(network, plain.state_dict())
    assert kept
    assert all(name.startswith("image_encoder.adapter.") for name in kept)
    assert torch.equal(network.image_encoder.pos_embed, plain.image_encoder.pos_embed)
    own = network.state_dict()
    assert sam.load_published(network, {"net": own}) == []
    lost = own.pop("image_encoder.adapter.norm.weight")
    with pytest.raises(ModelMissing, match=r"adapter\.norm\.weight.*adapter\.mlp\.new"):
        sam.load_published(network, own | {"image_encoder.adapter.mlp.new": lost})


def test_reading_directions_are_parallel() -> None:
    torch.manual_seed(0)
    adapter = db_sam.DbSam(**TINY).eval().image_encoder.adapter
    adapter.position = None
    tokens, maps = torch.randn(1, 4, 4, 16), [torch.randn(1, 4, 4, 16)]
    with torch.no_grad():
        new_tokens, new_maps = adapter(0, tokens, maps)
        assert torch.equal(new_tokens, adapter.vit_cross_attn_blocks[0]([tokens], maps)[0])
        assert torch.equal(new_maps[0], adapter.conv_cross_attn_blocks[0](maps, [tokens])[0])


def test_cross_attention_reads_maps_of_other_sizes() -> None:
    module = db_sam.CrossAttention(16, 2, 3)
    queries = [torch.randn(2, 4, 5, 16), torch.randn(2, 1, 3, 16)]
    values = [torch.randn(2, *grid, 16) for grid in ((8, 8), (5, 7), (1, 1))]
    assert [x.shape for x in module(queries, values)] == [x.shape for x in queries]


def test_drop_path_keeps_the_mean_and_drops_whole_images() -> None:
    torch.manual_seed(0)
    dropped = db_sam_branch.DropPath(0.25)(torch.ones(4000, 2))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    assert dropped.mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", db_sam_branch.FUSIONS)
def test_fusion_stays_between_its_inputs_before_the_feed_forward_part(name: str) -> None:
    options = {"inputs": 1} if name == "MultiConvFeatsDANE" else {}
    module = db_sam_branch.FUSIONS[name](24, reduction=4, **options)
    tokens, other = torch.zeros(1, 2, 3, 24), torch.ones(1, 2, 3, 24)
    mixed = module.mix(tokens, [other])
    assert bool(((mixed > 0) & (mixed < 1)).all())
    assert module(tokens, [other]).shape == tokens.shape


def test_loss_falls_towards_the_mask() -> None:
    target = torch.zeros(2, 1, 6, 6)
    target[:, :, 2:5, 1:4] = 1
    losses = [float(db_sam.box_loss(scale * (2 * target - 1), target)) for scale in (-4.0, 0.0, 4.0, 40.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(0, abs=1e-6)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="db_sam_plus"):
        db_sam.DbSam("db_sam_max")
    with pytest.raises(ValueError, match="stages must cover blocks 0 to 2"):
        db_sam.DbSam(**TINY | {"stages": ((0, 1),)})
    with pytest.raises(ValueError, match="levels must be of 1, 2, 3, 4"):
        db_sam_branch.SpatialPrior(8, (5,))
