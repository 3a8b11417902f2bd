"""RAT: what regions do and do not, sizes and names; region maps, and the loss that looks at regions."""

import pytest
import torch
from torch import Tensor, nn

from medseg.errors import ModelMissing
from medseg.losses import charbonnier_loss, focal_region_loss
from medseg.metrics import eight_bit, luma, psnr
from medseg.networks import build_network
from medseg.networks.rat import RAT, RegionAttention, load_published, restore
from medseg.regions import downscale, pad_to_multiple, region_map, region_mean


def _small(scale: int = 1, in_channels: int = 1) -> RAT:
    torch.manual_seed(0)
    network = RAT(
        in_channels, width=4, encoder_depths=(1, 1), decoder_depths=(1, 1), middle_depth=3, num_heads=4, scale=scale
    )
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no branch at zero
    return network.eval()


def _case(batch: int = 1, height: int = 32, width: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(batch, 1, height, width, generator=generator)
    return image, torch.randint(0, 4, (batch, height // 8, width // 8), generator=generator).repeat_interleave(
        8, 1
    ).repeat_interleave(8, 2)


def test_published_network_has_the_published_size() -> None:
    network = build_network("rat")
    assert sum(parameter.numel() for parameter in network.parameters()) == 15_945_025
    assert len(network.state_dict()) == 474


def test_a_fresh_network_passes_its_regions_by() -> None:
    torch.manual_seed(0)
    network, (image, regions) = RAT(width=4, middle_depth=3, num_heads=4).eval(), _case()
    with torch.inference_mode():
        torch.testing.assert_close(network(image, regions), network(image, torch.zeros_like(regions)))


def test_names_of_regions_do_not_matter_but_their_shapes_do() -> None:
    network, (image, regions) = _small(), _case()
    with torch.inference_mode():
        expected = network(image, regions)
        torch.testing.assert_close(network(image, 1000 - 7 * regions), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(network(image, torch.zeros_like(regions)), expected, atol=1e-4)


def test_a_batch_equals_each_image_alone() -> None:
    network, (images, regions) = _small(), _case(3)
    with torch.inference_mode():
        alone = torch.cat([network(x[None], ids[None]) for x, ids in zip(images, regions, strict=True)])
        torch.testing.assert_close(network(images, regions), alone, rtol=1e-4, atol=1e-5)


def test_pixels_on_their_own_see_only_themselves() -> None:
    torch.manual_seed(0)
    attention, x = RegionAttention(8, 4), torch.randn(1, 8, 3, 5)
    values = attention.qkv(x)[:, 16:]
    torch.testing.assert_close(attention(x, torch.arange(15).view(1, 3, 5)), attention.project_out(values))


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 37), (1, 1), (33, 20)])
def test_any_size_is_restored(height: int, width: int, scale: int) -> None:
    network, image = _small(scale), torch.randn(2, 1, height, width)
    shared = torch.zeros(scale * height, scale * width, dtype=torch.int64)
    shared[:, width // 2 :] = 1
    with torch.inference_mode():
        found = restore(network, image, shared)
        assert found.shape == (2, 1, scale * height, scale * width)
        torch.testing.assert_close(found, restore(network, image, shared.expand(2, -1, -1)))


@pytest.mark.parametrize(
    ("image", "regions", "message"),
    [
        (torch.zeros(1, 1, 16, 20), torch.zeros(1, 16, 20), "multiples of 16 pixels"),
        (torch.zeros(1, 1, 16, 16), torch.zeros(1, 8, 8), "regions must be"),
        (torch.zeros(1, 1, 16, 16), -torch.ones(1, 16, 16), "whole numbers"),
        (torch.zeros(1, 1, 16, 16), torch.full((1, 16, 16), 0.5), "whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(image: Tensor, regions: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _small()(image, regions)


def test_every_parameter_learns() -> None:
    network, (image, regions) = _small().train(), _case()
    focal_region_loss(network(image, regions), torch.zeros_like(image), regions, beta=1.0).backward()
    assert not [name for name, x in network.named_parameters() if x.grad is None or not bool(x.grad.abs().max() > 0)]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_gives_the_same_image() -> None:
    network, case = _small(), _case()
    with torch.inference_mode():
        traced = torch.jit.trace(network, case)
        image, regions = 2 * case[0], case[1].flip(1)
        torch.testing.assert_close(traced(image, regions), network(image, regions), rtol=1e-4, atol=1e-4)


def test_published_checkpoints_load_and_wrong_names_are_listed() -> None:
    source, target = _small(), _small()
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    state = dict(source.state_dict())
    load_published(target, {f"module.{name}": x for name, x in state.items()})
    assert all(torch.equal(x, target.state_dict()[name]) for name, x in state.items())
    del state["intro.bias"]
    with pytest.raises(ModelMissing, match=r"missing \['intro.bias'\], unknown \['outro.bias'\]"):
        load_published(target, state | {"outro.bias": torch.zeros(1)})


def test_small_masks_lie_on_large_ones() -> None:
    masks = torch.zeros(4, 3, 4, dtype=torch.bool)
    masks[0, 0, 0] = True
    masks[1, :2] = True
    masks[2, 0, :2] = masks[3, 0, :2] = True  # equal areas: the later one covers the earlier
    expected = [[4, 3, 1, 1], [1, 1, 1, 1], [5, 5, 5, 5]]
    assert region_map(masks).tolist() == expected
    assert region_map(masks[:0]).unique().tolist() == [1]


def test_the_upper_left_pixel_speaks_for_its_cell() -> None:
    ids = torch.arange(35).view(1, 5, 7)
    assert downscale(ids, 2).tolist() == [[[0, 2, 4], [14, 16, 18]]]


def test_padding_mirrors_or_repeats() -> None:
    x = torch.tensor([[[[1, 2, 3]]]])
    assert pad_to_multiple(x, (1, 5)).tolist() == [[[[1, 2, 3, 2, 1]]]]
    assert pad_to_multiple(x, (2, 7)).tolist() == [[[[1, 2, 3, 3, 3, 3, 3]] * 2]]


def test_means_are_taken_within_an_image() -> None:
    values, ids = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]]), torch.tensor([[[4, 4]], [[4, 9]]])
    assert region_mean(values, ids).tolist() == [[[2.0, 2.0]], [[5.0, 7.0]]]


def test_the_worst_region_counts_double() -> None:
    prediction, target = torch.tensor([[[[4.0, 0.0, 1.0]]]]), torch.zeros(1, 1, 1, 3)
    ids = torch.tensor([[[0, 0, 5]]])
    assert float(focal_region_loss(prediction, target, ids, beta=1.0)) == pytest.approx((4 * 2 + 0 + 1 * 1.5) / 3)
    assert float(focal_region_loss(target, target, ids)) == 0
    assert float(charbonnier_loss(prediction, prediction, eps=0.1)) == pytest.approx(0.1)


def test_luma_shifts_a_psnr_by_its_range() -> None:
    a, b = (torch.rand(9, 9, 1, generator=torch.Generator().manual_seed(seed)).numpy() for seed in (0, 1))
    a, b = eight_bit(a), eight_bit(b)
    assert psnr(luma(a), luma(b), 255) - psnr(a, b, 255) == pytest.approx(1.322, abs=1e-3)
    assert eight_bit(torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.0]).numpy()).tolist() == [0, 0, 2, 255]
