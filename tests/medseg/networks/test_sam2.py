"""SAM 2 without published numbers: sizes, names, strips of windows, known memories, options."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.errors import ModelMissing
from medseg.networks import build_network, sam2
from medseg.networks.sam2_decoder import Drawing
from medseg.networks.sam2_hiera import HieraBlock, HieraConfig, ImageEncoder
from medseg.networks.sam2_memory import Memories, MemoryAttention

TINY: dict[str, Any] = {
    "hiera": {"embed_dim": 8, "stages": [1, 1, 2, 1], "global_blocks": [3], "pos_grid": [4, 4]},
    "channels": 32,
    "memory_channels": 8,
    "memory_layers": 2,
    "memory_inner": 16,
    "decoder_mlp_dim": 16,
    "iou_hidden": 16,
}


def tiny(**changes: Any) -> sam2.Sam2:
    torch.manual_seed(0)
    network = build_network("sam2", **TINY | changes)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # no branch at zero
    assert isinstance(network, sam2.Sam2)
    return network.eval()


@pytest.mark.parametrize(
    ("preset", "encoder", "whole"),
    [("tiny", 27.22, 38.96), ("small", 34.32, 46.06), ("base_plus", 69.11, 80.85), ("large", 212.70, 224.45)],
)
def test_published_sizes(preset: str, encoder: float, whole: float) -> None:
    with torch.device("meta"):
        network = sam2.Sam2(preset)
    counts = [sum(x.numel() for x in part.parameters()) / 1e6 for part in (network.image_encoder, network)]
    assert counts == pytest.approx([encoder, whole], abs=0.005)
    assert sam2.preset_of(network.state_dict()) == preset


def test_version_2_0_lacks_the_three_later_tensors() -> None:
    later, first = (set(tiny(version=version).state_dict()) for version in ("2.1", "2.0"))
    assert later - first == {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}


@pytest.mark.parametrize(("window", "pool", "grid"), [(8, False, (16, 16)), (7, False, (10, 12)), (4, True, (10, 14))])
def test_strips_of_windows_equal_the_whole_block(window: int, pool: bool, grid: tuple[int, int]) -> None:
    torch.manual_seed(1)
    block = HieraBlock(8, 16 if pool else 8, 2, window=window, pool=pool)
    x = torch.randn(2, *grid, 8)
    whole = block(x)  # gradients are wanted: no strips
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole, rtol=1e-4, atol=1e-5)


def test_places_are_bicubic_and_tiled() -> None:
    torch.manual_seed(2)
    trunk = ImageEncoder(HieraConfig(embed_dim=8, pos_grid=(7, 5)), 32).trunk
    grid = (24, 40)
    coarse = torch.nn.functional.interpolate(trunk.pos_embed, grid, mode="bicubic")
    wanted = coarse + trunk.pos_embed_window.repeat(1, 1, 3, 5)
    torch.testing.assert_close(trunk.places(grid), wanted.permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_narrow_features_equal_neck_and_projection() -> None:
    network, image = tiny(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = network.encode(image)
        levels = network.image_encoder(image)
        decoder = network.sam_mask_decoder
        narrow = (decoder.conv_s0(levels[0]), decoder.conv_s1(levels[1]), levels[2])
        for found, wanted in zip(features, narrow, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_side_that_is_no_multiple_of_32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 32 pixels, got \(64, 80\)"):
        tiny().encode(torch.zeros(1, 3, 64, 80))


def test_order_of_memories_does_not_matter_and_each_counts() -> None:
    network = tiny()
    deep, memory = torch.randn(1, 32, 4, 4), torch.randn(3, 8, 4, 4)
    with torch.no_grad():
        known = network.remember(memory)
        found = [
            network.condition(deep, known.chosen(torch.tensor([which]))) for which in ([0, 1, 2], [2, 0, 1], [0, 1])
        ]
        one_by_one = Memories.joined([known.chosen(torch.tensor([[i]])) for i in range(3)])
        torch.testing.assert_close(network.condition(deep, one_by_one), found[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


def test_dropout_of_memory_attention_keeps_the_mean() -> None:
    torch.manual_seed(3)
    network = MemoryAttention(16, 4, layers=1, inner=8, dropout=0.1)
    x, places, memory = torch.randn(1, 16, 16), torch.randn(1, 16, 16), torch.randn(1, 16, 4)
    memories = network.remember(memory, memory, 16)
    with torch.no_grad():
        noisy = torch.stack([network.train()(x, places, memories) for _ in range(300)])
        assert noisy.std(0).mean() > 0.01
        torch.testing.assert_close(noisy.mean(0), network.eval()(x, places, memories), rtol=0, atol=0.15)


def test_an_unstable_first_mask_gives_way_to_the_best_other() -> None:
    masks = torch.full((3, 4, 4, 4), -1.0)
    masks[0, 0, :2] = 1.0  # stable
    masks[1, 0, :2] = 0.01  # moves with the margin
    iou = torch.tensor([[0.1, 0.2, 0.9, 0.3]]).expand(3, -1)
    drawing = Drawing(masks, iou, *[torch.zeros(3, 1)] * 4)  # the third first mask is empty, so stable
    kept, score = drawing.single(training=False)
    assert score[:, 0].tolist() == pytest.approx([0.1, 0.9, 0.1])
    assert torch.equal(kept[1, 0], masks[1, 2])
    assert torch.equal(drawing.single(training=True)[0], masks[:, :1])


def test_prompts_move_the_mask() -> None:
    network, image = tiny(), torch.randn(2, 3, 64, 64)
    boxes = torch.tensor([[4.0, 6, 30, 40], [20, 8, 60, 50]])
    points = (torch.tensor([[[8.0, 9]], [[40, 50]]]), torch.ones(2, 1, dtype=torch.int64))
    with torch.no_grad():
        masks = [network(image), network(image, boxes=boxes), network(image, points=points)]
    assert all(mask.shape == (2, 1, 64, 64) for mask in masks)
    assert not torch.allclose(masks[0], masks[1], atol=1e-5)
    assert not torch.allclose(masks[1], masks[2], atol=1e-5)


def test_everything_that_a_conditioned_prompt_uses_learns() -> None:
    network = tiny()
    features = network.encode(torch.randn(1, 3, 64, 64))
    memories = network.remember(network.memory(features.deep, torch.randn(1, 1, 64, 64)))
    embedding = network.condition(features.deep, memories)
    sparse, dense = network.sam_prompt_encoder((4, 4), boxes=torch.tensor([[4.0, 6, 30, 40]]))
    places = network.sam_prompt_encoder.dense_pe((4, 4))
    drawing = network.sam_mask_decoder.drawing(embedding, places, sparse, dense, (features.fine, features.middle))
    torch.stack([x.square().sum() for x in drawing]).sum().backward()
    spare = ("no_", "maskmem", "obj_ptr", "mask_downsample", "sam_prompt_encoder")  # tracking, and other prompts
    idle = [name for name, x in network.named_parameters() if x.grad is None and not name.startswith(spare)]
    assert all(name.endswith("k_proj.bias") for name in idle), idle  # softmax ignores them


def test_published_containers_load_and_the_first_wrong_names_are_told() -> None:
    source, target = tiny(), tiny()
    for parameter in target.parameters():
        parameter.data.zero_()
    state = source.state_dict()
    for checkpoint in ({"model": state}, {"state_dict": {f"module.sam.{key}": x for key, x in state.items()}}, state):
        sam2.load_published(target, checkpoint)
    assert all(torch.equal(x, state[key]) for key, x in target.state_dict().items())
    with pytest.raises(ModelMissing, match=r"missing \['image_encoder.*and \d+ more, unknown \['other'\]"):
        sam2.load_published(target, {"model": {"other": torch.zeros(1)}})


def test_unknown_presets_and_versions_are_refused() -> None:
    with pytest.raises(ValueError, match="tiny, small, base_plus, large"):
        sam2.Sam2("huge")
    with pytest.raises(ValueError, match=r"2\.0 or 2\.1, got '3'"):
        sam2.Sam2(version="3")
