"""FSG-Net: its blocks against plain forms, sizes, names, what learns; and its training's small formulas."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import ModelMissing
from medseg.networks import build_network, strips
from medseg.networks.fsg_net import DropBlock, FSGNet, Fusion, load_published, resize
from medseg.networks.fsg_net_training import learning_rate_wave, pad_to_centre, supervision_loss, vessel_scores


def _small(out_channels: int = 1, *, guided: bool = True, batch_coupled: bool = False) -> FSGNet:
    torch.manual_seed(0)
    network = FSGNet(3, out_channels, depths=(1, 1, 1, 1), base_channels=4, guided=guided, batch_coupled=batch_coupled)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # no block at its straight path
    return network.eval()


def _image(batch: int = 1, height: int = 50, width: int = 61) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_published_network_has_the_published_size() -> None:
    assert sum(p.numel() for p in build_network("fsg-net").parameters()) == 18_318_831
    assert sum(p.numel() for p in build_network("fsg-net", guided=False).parameters()) == 16_851_587
    assert len(build_network("fsg-net").state_dict()) == 412


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (50, 61), (64, 49)])
def test_all_outputs_have_the_size_of_the_image(height: int, width: int, guided: bool) -> None:
    network = _small(2, guided=guided)
    with torch.inference_mode():
        outputs = network.supervised(_image(2, height, width))
        assert [tuple(x.shape) for x in outputs] == [(2, 2, height, width)] * 3
        assert torch.equal(network(_image(2, height, width)), outputs[0])


def test_a_small_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 48 pixels, got \(47, 60\)"):
        _small()(_image(1, 47, 60))


def test_samples_meet_only_in_the_coupled_filter() -> None:
    images = torch.cat((_image(), 3 * _image(1).flip(3)))
    with torch.inference_mode():
        for coupled in (False, True):
            network = _small(batch_coupled=coupled)
            alone = torch.cat([network(image[None]) for image in images])
            assert torch.allclose(network(images), alone, atol=1e-4) is not coupled


def test_fusion_equals_resizing_before_joining() -> None:
    torch.manual_seed(0)
    fusion = Fusion(3, 5, 4).double().eval()
    skip, guide = torch.randn(2, 3, 9, 8).double(), torch.randn(2, 5, 4, 4).double()
    torch.testing.assert_close(fusion(skip, guide), fusion.conv(torch.cat((skip, resize(guide, (9, 8))), dim=1)))


def test_dropped_squares_keep_the_sum() -> None:
    drop, x = DropBlock(3, 0.5), torch.ones(1, 1, 6, 8)
    seeds = torch.zeros(1, 1, 4, 6)
    seeds[0, 0, 1, 2] = 1
    y = drop(x, seeds)
    assert y.sum() == pytest.approx(48)
    assert (y == 0).nonzero()[:, 2:].tolist() == [[row, column] for row in (1, 2, 3) for column in (2, 3, 4)]
    assert torch.equal(drop(x, torch.ones_like(seeds)), torch.zeros_like(x))
    assert torch.equal(drop.eval()(x), x)


def test_drawn_squares_keep_the_mean() -> None:
    torch.manual_seed(0)
    y = DropBlock()(torch.ones(64, 8, 20, 20))
    assert float(y.mean()) == pytest.approx(1)
    assert 0.3 < float((y == 0).float().mean()) < 0.5
    with pytest.raises(ValueError, match="at least 7 columns, got 6"):
        DropBlock()(torch.ones(1, 1, 9, 6))


@pytest.mark.parametrize("guided", [True, False])
def test_every_parameter_learns(guided: bool) -> None:
    network = _small(guided=guided).train()
    outputs = network.supervised(_image(2, 64, 64))
    supervision_loss(outputs, (torch.rand(2, 1, 64, 64) > 0.5).long()).backward()
    assert not [name for name, x in network.named_parameters() if x.grad is None or not bool(x.grad.isfinite().all())]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_gives_the_same_maps() -> None:
    network, image = _small(), _image()
    with torch.inference_mode():
        traced: Any = torch.jit.trace(network, image)
        torch.testing.assert_close(traced(2 * image), network(2 * image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prefix", ["", "FSGNet.", "neunet.", "module.", "module.FSGNet.", "module.neunet."])
def test_published_checkpoints_load_under_all_prefixes(prefix: str) -> None:
    source, target = _small(), _small()
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    load_published(target, {prefix + name: x for name, x in source.state_dict().items()})
    assert all(torch.equal(x, target.state_dict()[name]) for name, x in source.state_dict().items())


def test_wrong_names_are_listed() -> None:
    state = dict(_small(guided=False).state_dict())
    with pytest.raises(ModelMissing, match=r"missing \['attention_block1.phi.0.bias'"):
        load_published(_small(), state)
    with pytest.raises(ModelMissing, match=r"unknown \['attn.conv.bias', 'attn.conv.weight'\]"):
        load_published(
            _small(guided=False), state | {"attn.conv.weight": torch.ones(1), "attn.conv.bias": torch.ones(1)}
        )


def test_another_encoder_can_stand_in() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = (3, 8, 16, 32, 32)
            self.fit = nn.ModuleList(nn.Conv2d(*pair, kernel_size=1) for pair in pairwise(widths))

        def forward(self, x: Tensor) -> list[Tensor]:
            found = []
            for level, layer in enumerate(self.fit):
                x = layer(F.avg_pool2d(x, 2) if level else x)
                found.append(x)
            return found

    network = FSGNet(base_channels=4, backbone=Pyramid()).eval()
    assert network(_image()).shape == (1, 1, 50, 61)
    assert not any(name.startswith(("input_layer", "down_conv")) for name in network.state_dict())


def test_learning_rate_rises_once_and_returns() -> None:
    wave = [learning_rate_wave(step, 110, warmup=10, cycles=2) for step in range(111)]
    assert wave[0] == 0
    assert wave[10] == wave[60] == pytest.approx(wave[110]) == 1
    assert wave[35] == pytest.approx(0)


def test_padding_puts_the_odd_line_below_and_right() -> None:
    padded = pad_to_centre(torch.ones(1, 2, 3), (5, 6))
    assert padded[0].nonzero().tolist() == [[row, column] for row in (1, 2) for column in (1, 2, 3)]
    with pytest.raises(ValueError, match=r"at least \(2, 3\), got \(1, 9\)"):
        pad_to_centre(torch.ones(1, 2, 3), (1, 9))


def test_scores_of_a_case_worked_out_by_hand() -> None:
    probability, target = np.array([0.9, 0.6, 0.5, 0.1, 0.4]), np.array([1, 0, 1, 0, 0])
    scores = vessel_scores(probability, target)
    assert scores["accuracy"] == pytest.approx(3 / 5)  # 0.5 itself is not found
    assert scores["sensitivity"] == scores["f1"] == pytest.approx(1 / 2)
    assert scores["iou"] == pytest.approx(1 / 3)
    assert scores["mcc"] == pytest.approx((1 * 2 - 1 * 1) / 6)
    assert scores["auc"] == pytest.approx(5 / 6)
    assert np.isnan(vessel_scores(probability, np.zeros(5))["auc"])


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = _small(), _image(2, 60, 70)
    whole = network(image)  # with gradients nothing is cut
    cuts: list[tuple[int, ...]] = []

    def noted(shape: tuple[int, ...], like: Tensor) -> Tensor:
        cuts.append(shape)
        return like.new_empty(shape)

    monkeypatch.setattr(strips, "_NUMBERS", 5000)
    monkeypatch.setattr(strips, "empty_large", noted)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), whole, rtol=1e-5, atol=1e-5)
    assert (2, 4, 60, 70) in cuts
    assert len(cuts) > 8
