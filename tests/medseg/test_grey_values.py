"""Scores sharpened by the grey values of the image."""

import torch

from medseg.networks import build_network
from medseg.networks.grey_values import GreyValuePosterior


def _two_tissues(contrast: float, *, noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores with a border blurred over eight voxels, the image with a sharp one, and the truth."""
    generator = torch.Generator().manual_seed(0)
    truth = 1 + (torch.arange(32) >= 17).long()[:, None, None].expand(32, 16, 16)
    ramp = (torch.arange(32.0) - 14) / 4  # the network puts the border three voxels off
    nothing = torch.full_like(ramp, -9.0)  # background, which the grey values never decide
    scores = torch.stack((nothing, -ramp, ramp))[:, :, None, None].expand(3, 32, 16, 16)
    image = 0.4 + contrast * (truth - 1) + noise * torch.randn(32, 16, 16, generator=generator)
    return scores[None].contiguous(), image[None, None], truth


def test_the_border_moves_to_where_the_image_has_it() -> None:
    scores, image, truth = _two_tissues(0.4)
    before = (scores[0].argmax(0) == truth).float().mean()
    after = (GreyValuePosterior(3)(scores, image)[0].argmax(0) == truth).float().mean()
    assert before < 0.95
    assert after > 0.99


def test_any_contrast_works_alike() -> None:
    scores, image, _ = _two_tissues(0.4)
    posterior = GreyValuePosterior(3)
    same = posterior(scores, image).argmax(1) == posterior(scores, 1 - image).argmax(1)
    assert same.float().mean() > 0.999  # the one voxel by which an absent class is held finite lies at grey value 0


def test_without_contrast_the_network_decides() -> None:
    scores, image, _ = _two_tissues(0.0)
    changed = GreyValuePosterior(3)(scores, image).argmax(1) != scores.argmax(1)
    assert changed.float().mean() < 0.04  # the one plane where both classes are as likely


def test_an_absent_class_and_a_flat_image_stay_finite() -> None:
    scores = torch.zeros(1, 3, 8, 8, 8)
    scores[:, 2] = -200.0
    assert GreyValuePosterior(3)(scores, torch.full((1, 1, 8, 8, 8), 0.5)).isfinite().all()


def test_background_is_left_to_the_network() -> None:
    scores, image, _ = _two_tissues(0.4)
    scores[:, 0, 20:24] = 9.0
    assert torch.equal(GreyValuePosterior(3)(scores, image).argmax(1) == 0, scores.argmax(1) == 0)


def test_further_outputs_pass_unchanged() -> None:
    scores, image, _ = _two_tissues(0.4)
    side = torch.randn(1, 1, 32, 16, 16)
    out = GreyValuePosterior(3)(torch.cat((scores, side), 1), image)
    assert torch.equal(out[:, 3:], side)


def test_the_network_applies_it_after_its_head() -> None:
    torch.manual_seed(0)
    options = {"in_channels": 1, "out_channels": 4, "channels": (4, 8), "upsample": "linear", "stem": 2}
    plain, sharp = build_network("wau", **options), build_network("wau", **options, posterior=3)
    sharp.load_state_dict(plain.state_dict())
    image = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(sharp(image), GreyValuePosterior(3)(plain(image), image))
