"""HER-Seg: the exact short cuts of its decoder, its linear cost, its names, and that everything learns."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from medseg.errors import ModelMissing
from medseg.networks import build_network
from medseg.networks.her_seg import DecoderSize, HERSeg, load_published
from medseg.networks.her_seg_decoder import MaskDecoder, meta_pooled
from medseg.networks.sam_transformer import TwoWayTransformer

SMALL = DecoderSize(dim=32, heads=4, mlp_dim=24, mask_channels=8)


def _small(out_channels: int = 1, **options: bool) -> HERSeg:
    torch.manual_seed(0)
    network = HERSeg(3, out_channels, dim=24, depths=(1, 1, 2, 1), num_heads=(3, 3, 6, 12), decoder=SMALL, **options)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # no norm at one, no branch at zero
    return network.eval()


def _image(batch: int = 1, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def _double(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def test_decoder_needs_at_most_half_of_the_published_operations() -> None:
    decoder = MaskDecoder()
    image = torch.randn(1, 256, 64, 64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        decoder(image, image, masks=1)
    assert counter.get_total_flops() / 2 <= 1.78e9 / 2


def test_published_network_has_the_published_size() -> None:
    network = build_network("her-seg").requires_grad_(False)
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_526_364
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, 512, 512))
    assert counter.get_total_flops() / 2 * 4 <= 8.23e9


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 112), (16, 16)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_logits_have_the_size_of_the_image(height: int, width: int, classes: int) -> None:
    with torch.inference_mode():
        assert _small(classes)(_image(2, height, width)).shape == (2, classes, height, width)


def test_an_odd_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiples of 16 pixels, got \(64, 65\)"):
        _small()(_image(1, 64, 65))


def test_a_batch_equals_each_image_alone() -> None:
    network, images = _small(), _image(3)
    with torch.inference_mode():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_box_moves_the_mask_and_its_order_does_not() -> None:
    network = _small()
    boxes = torch.tensor([[[4.0, 6.0, 30.0, 40.0], [20.0, 8.0, 60.0, 50.0]]])
    with torch.inference_mode():
        bare, boxed, swapped = network(_image()), network(_image(), boxes), network(_image(), boxes.flip(1))
    assert not torch.allclose(bare, boxed, atol=1e-4)
    torch.testing.assert_close(boxed, swapped, rtol=1e-4, atol=1e-5)


def test_pooling_changes_nothing_on_a_constant_image() -> None:
    look = _double(TwoWayTransformer([], 16, 2))
    image, position = torch.ones(1, 16, 9, 7).double(), torch.randn(1, 16, 9, 7).double()
    tokens = torch.randn(1, 3, 16).double()
    plain = look(image, position, tokens)[0]
    look.pool = meta_pooled
    torch.testing.assert_close(look(image, position, tokens)[0], plain)
    varied = image + position
    pooled = look(varied, position, tokens)[0]
    look.pool = None
    assert not torch.allclose(pooled, look(varied, position, tokens)[0])


def test_everything_that_is_used_learns() -> None:
    network = _small(2, meta_pool=True).train()
    network(_image(2), torch.tensor([[[4.0, 6.0, 30.0, 40.0]]] * 2)).square().mean().backward()
    idle = {name for name, x in network.named_parameters() if x.grad is None or not bool(x.grad.abs().max() > 0)}
    spare = ("mask_downscaling", "point_embeddings.0", "point_embeddings.1", "not_a_point_embed")
    assert all(any(part in name for part in spare) or name.endswith("k_proj.bias") for name in idle), idle


def test_skipped_branches_keep_the_mean() -> None:
    block = _small().image_encoder.layers[3].blocks[0].train()
    torch.manual_seed(0)
    kept = block._some(torch.ones(20_000, 1, 1))
    assert float(kept.mean()) == pytest.approx(1, abs=0.01)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.9])


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_gives_the_same_masks() -> None:
    network, image = _small(), _image()
    with torch.inference_mode():
        traced = torch.jit.trace(network, image)
        torch.testing.assert_close(traced(_image(2)), network(_image(2)), rtol=1e-4, atol=1e-5)


def test_a_published_checkpoint_loads_at_any_size() -> None:
    source, target = _small(), _small()
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    state = {f"module.{name}": x for name, x in source.state_dict().items()}
    state["module.image_encoder.layers.1.blocks.0.attn.rope.rotations"] = torch.zeros(9, 9, 12, 2)
    assert load_published(target, state) == []
    with torch.inference_mode():
        assert torch.equal(target(_image()), source(_image()))


def test_a_pretrained_encoder_leaves_the_decoder_and_says_so() -> None:
    network = _small()
    state = {name: x for name, x in network.state_dict().items() if name.startswith(("image_encoder.", "neck."))}
    kept = load_published(network, state)
    assert "mask_decoder.iou_token.weight" in kept
    assert set(kept) | set(state) == set(network.state_dict())


def test_wrong_names_are_listed() -> None:
    network = _small()
    state = dict(network.state_dict())
    del state["neck.0.weight"]
    with pytest.raises(ModelMissing, match=r"missing \['neck.0.weight'\], unknown \['neck.9.weight'\]"):
        load_published(network, state | {"neck.9.weight": torch.zeros(1)})
    with pytest.raises(ModelMissing, match=r"shapes differ in \['neck.0.weight'\]"):
        load_published(network, state | {"neck.0.weight": torch.zeros(3)})


def test_a_decoder_of_segment_anything_is_refused() -> None:
    state = {"mask_decoder.iou_prediction_head.layers.0.weight": torch.zeros(1)}
    with pytest.raises(ModelMissing, match="2048, 3 mask tokens instead of 4 and no head"):
        load_published(_small(), state)
