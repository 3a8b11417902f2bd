"""Every engine gives the labels of the plain network, but for ties."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from medseg.errors import UsageError
from medseg.networks.wau import WAUNet
from medseg_pipelines import engines

NETWORKS: dict[str, dict[str, Any]] = {
    "3D, every kind": {"channels": (8, 8, 8, 8), "upsample": ["wau", "linear", "transpose-conv"], "heads": 2},
    "3D, stem": {"channels": (8, 12, 8), "stem": 2, "window": 2, "heads": 2},
    "2D": {"channels": (8, 12, 8), "spatial_dims": 2, "heads": 2},
}
ALLOWED = 1e-3


def _network(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    network = WAUNet(1, 5, **options).eval()
    for parameter in network.parameters():
        parameter.data *= 2  # random weights as drawn give probabilities that hardly differ
    return network


def _compare(predict: engines.Predict, network: nn.Module, spatial_dims: int) -> None:
    image = torch.rand(1, 1, *[16, 32, 24][:spatial_dims], generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, reference = predict(image).softmax(1), network(image).softmax(1)
    assert float((ours - reference).abs().max()) <= ALLOWED
    first, second = reference.topk(2, dim=1).values.unbind(1)
    clear = first - second > 2 * ALLOWED
    assert float(clear.float().mean()) > 0.9
    assert torch.equal(ours.argmax(1)[clear], reference.argmax(1)[clear])


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_is_the_plain_network(name: str) -> None:
    network = _network(NETWORKS[name])
    predict = engines.prepare(deepcopy(network), engine="channels-last")
    _compare(predict, network, NETWORKS[name].get("spatial_dims", 3))


def test_channels_last_packs_the_convolutions_and_changes_no_value() -> None:
    network, plain = _network(NETWORKS["3D, stem"]), _network(NETWORKS["3D, stem"])
    engines.prepare(network, engine="auto", device="cpu")
    for (name, packed), value in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(packed, value), name
        if packed.dim() == 5:
            assert packed.is_contiguous(memory_format=torch.channels_last_3d), name


@pytest.mark.slow
@pytest.mark.skipif("compiled" not in engines.available(), reason="needs a C++ compiler")
def test_compiled_is_the_plain_network() -> None:
    torch.manual_seed(0)  # the compiler needs minutes for a U-Net and says no more about it
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv2d(8, 5, 3, padding=1)).eval()
    _compare(engines.prepare(deepcopy(network), engine="compiled"), network, 2)


def test_engines_by_name() -> None:
    assert engines.available()[:2] == ["eager", "channels-last"]
    assert engines.default_engine("cpu") == "channels-last"
    assert engines.default_engine("cuda:0") == "eager"
    network = nn.Conv3d(1, 1, 1)
    assert engines.prepare(network, engine="eager") is network
    with pytest.raises(UsageError, match=r"must be one of auto, eager, channels-last.*got 'steam'"):
        engines.prepare(network, engine="steam")


def test_compiled_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engines.available() == ["eager", "channels-last"]
    with pytest.raises(UsageError, match="got 'compiled'"):
        engines.prepare(nn.Conv3d(1, 1, 1), engine="compiled")
