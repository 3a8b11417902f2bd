"""SAM2-SGP without published numbers: gates, boxes, adaptation, choice of examples, slices, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medseg.errors import ModelMissing
from medseg.losses import tversky_index
from medseg.networks import build_network
from medseg.networks.sam2_sgp import DEAD, Recalled, Sam2Sgp, adapted_parameters, load_published, mask_boxes
from medseg.networks.sam2_sgp_decoder import SecondDecoder
from medseg.networks.sam2_sgp_lora import LoraProjection
from medseg.networks.sam2_sgp_training import _each_image, guided_loss, overlap, released_loss

TINY: dict[str, Any] = {
    "hiera": {"embed_dim": 8, "stages": [1, 1, 2, 1], "global_blocks": [3], "pos_grid": [4, 4]},
    "channels": 32,
    "memory_channels": 8,
    "memory_layers": 1,
    "memory_inner": 16,
    "decoder_mlp_dim": 16,
    "iou_hidden": 16,
    "lora_rank": 2,
}


def tiny(**changes: Any) -> Sam2Sgp:
    torch.manual_seed(0)
    network = build_network("sam2-sgp", **TINY | changes)
    for name, parameter in network.named_parameters():
        if "mask_slope" not in name:
            parameter.data += 0.05 * torch.randn_like(parameter)  # no branch at zero
    assert isinstance(network, Sam2Sgp)
    return network.eval()


def examples(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 64, 64, generator=generator)
    return images, (torch.rand(count, 1, 64, 64, generator=generator) > 0.7).float()


def test_a_pseudo_mask_that_covers_everything_gates_like_the_released_code() -> None:
    torch.manual_seed(0)
    gated, released = SecondDecoder(32, mlp_dim=16), SecondDecoder(32, guidance="released", mlp_dim=16)
    released.load_state_dict({key: x for key, x in gated.state_dict().items() if key != "mask_slope"})
    gated.eval()
    released.eval()
    assert gated.mask_slope is not None
    gated.mask_slope.data.normal_()  # a bias that is the same everywhere is none
    embedding, places, tokens, feature = (torch.randn(2, 32, 4, 4), torch.randn(1, 32, 4, 4), torch.randn(2, 2, 32),
                                          torch.randn(2, 4, 16, 16))  # fmt: skip
    dense = torch.randn(1, 32, 4, 4)
    everywhere = torch.full((2, 1, 16, 16), 100.0)
    parts = (embedding, places, (tokens, dense))
    with torch.no_grad():
        wanted = released(*parts, everywhere, feature).logits
        torch.testing.assert_close(gated(*parts, everywhere, feature).logits, wanted, rtol=1e-4, atol=1e-5)
        half = everywhere.clone()
        half[..., :8] = -100
        assert not torch.allclose(gated(*parts, half, feature).logits, wanted, atol=1e-4)
        torch.testing.assert_close(released(*parts, half, feature).logits, wanted)


def test_boxes_of_empty_single_and_coarse_masks() -> None:
    logits = torch.full((4, 1, 6, 8), -1.0)
    logits[1, 0, 2, 5] = 3
    logits[2, 0, 1:4, 2:7] = 3
    logits[3] = 0.5  # not above the threshold
    wanted = [[0, 0, 99, 99], [5, 2, 5, 2], [2, 1, 6, 3], [0, 0, 99, 99]]
    assert mask_boxes(logits, 0.5, 99).tolist() == wanted
    enlarged = torch.nn.functional.interpolate(logits, scale_factor=4)
    assert torch.equal(mask_boxes(logits, 0.5, 99, cell=4), mask_boxes(enlarged, 0.5, 99))


def test_an_empty_pseudo_mask_prompts_with_the_whole_image() -> None:
    nothing = torch.full((1, 1, 16, 16), -5.0)
    assert tiny().box(nothing, 64).tolist() == [[0, 0, 63, 63]]
    assert tiny(guidance="released").box(nothing, 64).tolist() == [[0, 0, 1023, 1023]]


def test_adaptation_has_the_published_size_and_starts_at_nothing() -> None:
    with torch.device("meta"):
        network = Sam2Sgp("small")
    assert sum(x.numel() for name, x in network.named_parameters() if ".linear_" in name) == 356_352
    plain = torch.nn.Linear(6, 36)
    adapted, x = LoraProjection(plain, 2), torch.randn(4, 6)
    assert torch.equal(adapted(x), plain(x))
    adapted.linear_b_q.weight.data.fill_(1)
    adapted.linear_b_v.weight.data.fill_(1)
    moved = (adapted(x) - plain(x)).abs().amax(0) > 0
    assert moved.tolist() == [True] * 6 + [False] * 24 + [True] * 6  # input width, also where the output is wider
    with torch.no_grad():
        torch.testing.assert_close(adapted(x), torch.nn.functional.linear(x, adapted.merged(), plain.bias))


def test_only_the_adaptation_of_the_trunk_learns() -> None:
    network = tiny().train()
    learning = adapted_parameters(network)
    frozen = {name for name, x in network.named_parameters() if not x.requires_grad}
    assert frozen == {name for name, _ in network.named_parameters() if ".trunk." in name and ".linear_" not in name}
    images, masks = examples()
    found = network(images[:1], network.support(images[1:], masks[1:]), count=2)
    guided_loss(found, masks[:1], 0).backward()
    idle = [name for name, x in network.named_parameters() if x.requires_grad and x.grad is None]
    spare = ("no_", "maskmem", "obj_ptr", "mask_downsample", "sam_prompt_encoder", "no_obj")
    dead = [name for name in idle if not name.startswith(spare) and not name.endswith("k_proj.bias")]
    assert all("hypernetworks" in name or "iou" in name or "obj_score" in name for name in dead), dead
    assert len(learning) > len(idle)


def test_the_pseudo_mask_learns_only_where_it_gates_or_has_a_loss() -> None:
    images, masks = examples()
    name = "sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.weight"
    for guidance, learns in (("released", False), ("gated", True)):
        network = tiny(guidance=guidance).train()
        found = network(images[:1], network.support(images[1:], masks[1:]))
        released_loss(found.logits, masks[:1], 0).backward()
        assert (network.get_parameter(name).grad is not None) == learns


def test_the_nearest_example_is_chosen_first_and_never_more_than_there_are() -> None:
    network = tiny()
    images, masks = examples()
    with torch.no_grad():
        support = network.support(images, masks)
        deep = network.features(images).deep
        assert network.nearest(deep, support, 1)[:, 0].tolist() == [0, 1, 2]
        assert network.nearest(deep, support, 9).shape == (3, 3)
        shares = network.similarity(deep, support)
    torch.testing.assert_close(shares.sum(1), torch.ones(3))


def test_masks_of_the_examples_change_the_result() -> None:
    network = tiny()
    images, masks = examples()
    with torch.no_grad():
        found = [network(images[:1], network.support(images[1:], each[1:])).logits for each in (masks, 1 - masks)]
        certain = tiny(support_logits="binary")
        other = certain(images[:1], certain.support(images[1:], masks[1:])).logits
    assert not torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[0], other, atol=1e-5)


def test_a_batch_equals_each_image_alone() -> None:
    network = tiny()
    images, masks = examples(4)
    with torch.no_grad():
        support = network.support(images[2:], masks[2:])
        together = network(images[:2], support).logits
        alone = torch.cat([network(image[None], support).logits for image in images[:2]])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_the_network_starts_from_the_match_and_needs_the_marks() -> None:
    network = tiny(matching=4)
    assert network.matcher is not None
    images, masks = examples()
    with torch.no_grad():
        support = network.support(images[1:], masks[1:])
        assert support.marks is not None
        found = network(images[:1], support, count=2)
        network.matcher.kept.data.fill_(0)
        without = network(images[:1], support, count=2)
        difference = F.interpolate(found.pseudo, (64, 64), mode="bilinear", align_corners=False)
        with pytest.raises(ValueError, match="needs the marks"):
            network.segment(network.features(images[:1]), Recalled(support.memories, None))
    ratio = ((found.logits - without.logits) / difference).flatten()
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-2, atol=1e-2)
    assert tiny().matcher is None
    network.corrects = False
    with torch.no_grad():
        anew = network(images[:1], support, count=2)
    assert torch.equal(anew.logits, anew.final.logits)
    assert not tiny(matching=4, guidance="released").corrects


def test_slices_remember_at_most_the_bank_and_the_first_knows_only_the_examples() -> None:
    images, masks = examples(3)
    volume = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    results = {}
    with torch.no_grad():
        for size in (0, 1, 3, 9):
            network = tiny(bank_size=size)
            support = network.support(images, masks)
            results[size] = torch.cat([each.logits for each in network.slices(volume, support, count=2)])
            torch.testing.assert_close(results[size][:1], network(volume[:1], support, count=2).logits)
    assert not torch.allclose(results[0][1:], results[1][1:], atol=1e-6)
    torch.testing.assert_close(results[3], results[9], rtol=1e-4, atol=1e-5)  # four slices remember three
    torch.testing.assert_close(results[1][:2], results[3][:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(results[1][2:], results[3][2:], atol=1e-6)


def test_checkpoints_of_both_kinds_load() -> None:
    source, released = tiny(), tiny(guidance="released")
    state = source.state_dict()
    dead = {f"{DEAD[0]}q_proj.weight": torch.zeros(9, 9), f"{DEAD[-1]}weight": torch.zeros(196)}
    published = {f"sam.{key}": x for key, x in (state | dead).items() if "mask_slope" not in key}
    assert load_published(released, {"state_dict": published, "epoch": 3}) == []
    assert load_published(tiny(), {"state_dict": published}) == ["mask_decoder2.mask_slope"]
    plain = {
        key.replace(".qkv.qkv.", ".qkv."): x
        for key, x in state.items()
        if not key.startswith("mask_decoder2.") and ".linear_" not in key
    }
    later = {"no_obj_embed_spatial": torch.zeros(1, 8)}
    kept = load_published(tiny(), {"model": plain | later})
    assert all(key.startswith("mask_decoder2.") or ".qkv.linear_" in key for key in kept)
    with pytest.raises(ModelMissing, match=r"missing \['maskmem_tpos_enc'\], unknown \[\]"):
        load_published(released, {key: x for key, x in published.items() if "maskmem" not in key})


def test_a_small_structure_weighs_as_much_as_the_rest() -> None:
    target = torch.zeros(1, 1, 20, 20)
    target[..., :4, :4] = 1
    right = 6 * target - 3
    entropies = []
    for part in (0, 1):
        logits = torch.where(target == part, -right, right)  # wrong there
        entropies.append(_each_image(logits, target) - 1 + tversky_index(logits.sigmoid(), target))
    softplus = F.softplus(torch.tensor([3.0, -3.0]))
    torch.testing.assert_close(torch.stack(entropies), softplus.mean().expand(2))


def test_scores_of_empty_and_equal_masks() -> None:
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, 0, 0] = 1
    iou, dice = overlap(mask - 0.5, mask > 0)
    assert (float(iou), float(dice)) == pytest.approx((1, 1))
    iou, dice = overlap(-mask, mask > 0)
    assert (float(iou), float(dice)) == pytest.approx((0.5, 0.5), abs=1e-4)


@pytest.mark.parametrize(
    ("option", "match"),
    [({"guidance": "half"}, "released or gated"), ({"normalise": "z"}, "imagenet or none"),
     ({"support_logits": "x"}, "released or binary")],
)  # fmt: skip
def test_unknown_options_are_refused(option: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Sam2Sgp(**TINY | option)
