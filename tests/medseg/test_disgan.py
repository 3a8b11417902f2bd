"""DISGAN's networks without published numbers: shapes, key names, both paths, gradients, assembly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks import build_network, disgan, disgan_training


@pytest.mark.parametrize(("doublings", "channels"), [(1, 1), (2, 2)])
def test_generator_doubles_any_size(doublings: int, channels: int) -> None:
    network = build_network("disgan", channels=channels, filters=3, num_res_blocks=1, num_upsample=doublings)
    scale = 2**doublings
    assert network(torch.randn(2, channels, 3, 5, 4)).shape == (2, channels, 3 * scale, 5 * scale, 4 * scale)


def test_generator_gives_the_same_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    network = disgan.Generator(filters=4, num_res_blocks=2)
    x = torch.randn(2, 1, 4, 5, 6)
    recorded = network(x)
    with torch.no_grad():
        torch.testing.assert_close(network(x), recorded, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("doublings", [0, 1, 2])
def test_slabs_behind_the_trunk_leave_no_trace(doublings: int) -> None:
    torch.manual_seed(0)
    network = disgan.Generator(filters=3, num_res_blocks=1, num_upsample=doublings)
    x = torch.randn(1, 1, 2 * disgan.SLAB + 5, 3, 4)
    with torch.no_grad():
        slabs = network(x)
    torch.testing.assert_close(slabs, network(x), rtol=1e-5, atol=1e-6)


def test_generator_leaves_its_input_alone() -> None:
    x = torch.randn(1, 1, 4, 4, 4)
    before = x.clone()
    with torch.no_grad():
        disgan.Generator(filters=2, num_res_blocks=1)(x)
    assert torch.equal(x, before)


def test_every_weight_of_the_generator_learns() -> None:
    network = disgan.Generator(filters=3, num_res_blocks=1)
    network(torch.randn(2, 1, 4, 4, 4)).square().mean().backward()
    assert not [name for name, x in network.named_parameters() if x.grad is None or not x.grad.any()]


def test_published_sizes() -> None:
    with torch.device("meta"):
        counts = [
            sum(x.numel() for x in network.parameters())
            for network in (disgan.Generator(), disgan.Discriminator(), disgan_training.FeatureExtractor())
        ]
    assert counts == [16_042_881, 42_653_827, 14_355_520]


def test_shuffle_puts_offsets_behind_the_channel() -> None:
    x = torch.arange(16.0).view(1, 16, 1, 1, 1)
    assert disgan.shuffle(x)[0, 1].flatten().tolist() == list(range(8, 16))
    assert disgan.shuffle(x)[0, 0, 1, 0, 0] == 4  # the first of three offset digits runs along D


def twin_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under their second published names."""
    pairs = [(f".b{number}.", f".blocks.{number - 1}.") for number in range(1, 6)]
    renamed = {}
    for key, x in state.items():
        for first, second in pairs:
            key = key.replace(first, second)
        renamed[key] = x
    return renamed


def test_generator_reads_either_registration_of_its_tensors() -> None:
    source, target = (disgan.Generator(filters=2, num_res_blocks=1) for _ in range(2))
    state = source.state_dict()
    records = {"conv1.module.weight_sv": torch.ones(1)}
    for published in (state, twin_names(state), state | twin_names(state) | records):
        target.load_state_dict(published)
        assert all(torch.equal(x, target.state_dict()[key]) for key, x in state.items())


def test_registrations_that_disagree_are_refused() -> None:
    network = disgan.Generator(filters=2, num_res_blocks=1)
    state = network.state_dict()
    other = {key: x + 1 for key, x in twin_names(state).items()}
    with pytest.raises(ValueError, match="must be equal"):
        network.load_state_dict(other | state)


def test_missing_and_unknown_keys_are_listed() -> None:
    network = disgan.Generator(filters=2, num_res_blocks=1)
    state = network.state_dict()
    state["conv9.weight"] = state.pop("conv2.module.weight")
    with pytest.raises(RuntimeError, match=r"(?s)conv2\.module\.weight.*conv9\.weight"):
        network.load_state_dict(state)


def test_checkpoint_parts_keeps_module_inside_names() -> None:
    weights = disgan.Generator(filters=2, num_res_blocks=1).state_dict()
    new = {"state_dict": {f"generator.module.{key}": x for key, x in weights.items()}, "epoch": 3}
    old = {"Gnet_state_dict": {f"module.{key}": x for key, x in weights.items()}}
    for checkpoint in (new, old):
        assert disgan.checkpoint_parts(checkpoint)["generator"].keys() == weights.keys()
    with pytest.raises(ValueError, match="epoch"):
        disgan.checkpoint_parts({"epoch": 3})


def test_discriminator_judges_every_voxel() -> None:
    network = disgan.Discriminator(filters=4, wavelet_channels=(1, 1, 2, 2, 4))
    x = torch.randn(2, 1, 64, 64, 64)  # two volumes: batch norm needs more than the one voxel of the deepest stage
    logits = network(x)
    assert logits.shape == x.shape
    logits.mean().backward()
    untouched = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not untouched
    assert {key.split(".")[1] for key in network.state_dict() if key.startswith("dlayer3.")} == {
        "dlayer2_tconv",
        "dlayer2_bn",
    }


def test_discriminator_refuses_sides_that_do_not_halve() -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        disgan.Discriminator(filters=4)(torch.zeros(1, 1, 64, 64, 32))
    with pytest.raises(ValueError, match="five"):
        disgan.Discriminator(wavelet_channels=(1, 2))


def test_extractor_stays_frozen_and_in_evaluation_mode() -> None:
    model = nn.ModuleList([disgan_training.FeatureExtractor(filters=4)]).train()
    assert not any(module.training for module in model[0].modules())
    assert not any(x.requires_grad for x in model.parameters())
    x = torch.randn(1, 1, 17, 16, 24, requires_grad=True)
    features = model[0](x)
    assert features.shape == (1, 32, 3, 2, 3)
    features.sum().backward()
    assert x.grad is not None


def test_losses_fall_as_their_side_wins() -> None:
    truth, other = torch.zeros(2, 1, 4, 4, 4), torch.ones(2, 1, 4, 4, 4)
    real, fake = 3 * other, -3 * other
    fooled = disgan_training.generator_loss(truth, truth, real, fake)
    caught = disgan_training.generator_loss(other, truth, fake, real)
    assert fooled < caught
    assert disgan_training.discriminator_loss(real, fake) < disgan_training.discriminator_loss(fake, real)


def test_generator_step_sends_no_gradient_through_the_real_side() -> None:
    real, fake = (torch.randn(2, 1, 2, 2, 2, requires_grad=True) for _ in range(2))
    disgan_training.adversarial_loss(fake, real).backward()
    assert real.grad is None
    assert fake.grad is not None


def test_noise_fades() -> None:
    assert [disgan_training.noise_level(epoch, 20) for epoch in (0, 10, 20, 30)] == [1, 0.5, 0, 0]


@pytest.mark.parametrize("step", [4, 8])
def test_assembly_covers_the_volume(step: int) -> None:
    volume = torch.arange(9 * 10 * 6.0).view(9, 10, 6)
    whole = disgan_training.patches_overwritten(volume, lambda x: F.interpolate(x, scale_factor=2.0), side=8, step=step)
    assert whole.shape == (8, 10, 6)
    assert whole.max() > 0
    assert set(whole.flatten().tolist()) <= {0.0, *volume.flatten().tolist()}
