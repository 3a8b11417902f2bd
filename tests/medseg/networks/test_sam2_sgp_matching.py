"""Matching of places: the share of an outline, what it learns from."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from medseg.networks.sam2 import Features
from medseg.networks.sam2_sgp_matching import KEENER, Marks, Matcher, draw_places, matching_loss


def matcher(width: int = 6) -> Matcher:
    torch.manual_seed(0)
    return Matcher(32, width).eval()


def described(count: int, total: int, width: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, total, width, generator=torch.Generator().manual_seed(2)), dim=2)


def test_a_match_is_the_share_of_the_outline_among_the_places_alike() -> None:
    one, places = matcher(), described(3, 16)
    marks = Marks(places[1:], torch.rand(2, 16, generator=torch.Generator().manual_seed(3)))
    chosen = marks.chosen(torch.tensor([[1, 0]]))
    weights = (KEENER * one.sharpness() * places[:1] @ torch.cat((places[2], places[1])).mT).softmax(-1)
    wanted = weights @ torch.cat((marks.inside[1], marks.inside[0]))
    with torch.no_grad():
        found = one.match(places[:1], chosen)
    assert found.shape == (1, 1, 4, 4)
    slope, offset = one.trust.detach()
    torch.testing.assert_close(found.flatten(), slope * wanted.flatten().logit() + offset, rtol=1e-4, atol=1e-4)


def test_an_image_that_is_its_own_example_gets_its_outline_back() -> None:
    one = matcher()
    one.log_sharpness.data.fill_(4.6)
    features = Features(torch.randn(1, 4, 16, 16), torch.randn(1, 8, 8, 8), torch.randn(1, 32, 4, 4))
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 8:40, 20:44] = 1
    with torch.no_grad():
        places = one(features)
        drawn = F.normalize(torch.randn_like(places), dim=2)  # distinct ones: what training makes of them
        found = one.match(drawn, Marks.of(drawn, mask).chosen(torch.tensor([[0]])))
    torch.testing.assert_close(places.norm(dim=2), torch.ones(1, 256))
    assert torch.equal(found > 0, F.avg_pool2d(mask, 4) > 0.5)


def test_the_loss_is_the_share_of_places_of_the_same_part() -> None:
    one, places = matcher(), described(2, 5)
    own, parts = torch.tensor([[3, 4, 9, -1, 3]]), torch.tensor([[3, 4, -1, 3, 7]])
    logits = (one.sharpness() * places[0] @ places[1].mT).detach()
    logits[:, 2] = -torch.inf  # a place without a name is not looked at
    shares = logits.softmax(-1)
    wanted = -torch.stack([shares[0, [0, 3]].sum(), shares[1, 1], shares[4, [0, 3]].sum()]).log().mean()
    found = matching_loss(one, places[:1], own, places[1:], parts)  # 9 is nowhere, -1 does not count
    torch.testing.assert_close(found.detach(), wanted)
    assert matching_loss(one, places[:1], own, places[1:], torch.full_like(parts, 8)).item() == 0


def test_places_are_drawn_from_named_parts_and_matched_to_other_images() -> None:
    parts = torch.full((3, 40), -1)
    parts[:, :30] = torch.arange(3)[:, None]  # the part tells the image
    parts[:, 29] = 7
    places = torch.arange(120.0).reshape(3, 40, 1)
    query, own, keys, part = draw_places(places, parts, torch.Generator().manual_seed(0), queries=25, others=1, keys=40)
    assert query.shape == (3, 25, 1)
    assert (own >= 0).all()
    assert (own == 7).any(1).all(), "one place of thirty, but a rare part"
    for image in range(3):
        assert (keys[image] // 40 != image).all()
        assert torch.equal(part[image], parts.flatten()[keys[image, :, 0].long()])
