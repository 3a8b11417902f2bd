"""Matching of a query to a support set, place by place: ours, before SAM2-SGP's first decoder.

Every place of an image gets a descriptor. A place of a query is as likely inside as the places of the support set that
look like it: softmax over their likeness, summed over what is outlined. Nothing in this knows one structure from
another, so it holds for structures that training never named. The result is a mask prompt that nobody had to draw.

B images, S or K support images, D width of a descriptor, g sides of the token grid, P = 16 g * g places.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam2 import Features
from medseg_kernels.dense_attention import dense_attention

SURE = 0.995  # share up to which a match is believed: its logit is at most 5.3
CELL = 4  # pixels per side of a place
KEENER = 2.0  # times the sharpness that was learned: training meets a quarter of the places, a match all of them


class Marks(NamedTuple):
    """Descriptors of images whose structure is outlined.

    Args:
        places: Length 1, (S, P, D).
        inside: Share of each place that the structure covers, 0 to 1, (S, P).
    """

    places: Tensor
    inside: Tensor

    @staticmethod
    def of(places: Tensor, masks: Tensor) -> Marks:
        """From descriptors (S, P, D) and masks (S, 1, 16 g, 16 g), 0 or 1."""
        return Marks(places, F.avg_pool2d(masks.float(), CELL).flatten(1))

    def chosen(self, which: Tensor) -> Marks:
        """The K of each query, `which` (B, K), to (B, K P, ...)."""
        return Marks(self.places[which].flatten(1, 2), self.inside[which].flatten(1, 2))

    def full(self) -> Marks:
        """In float32, where they were kept in half of it."""
        return Marks(self.places.float(), self.inside)


class Matcher(nn.Module):
    """Descriptors of places, and the share of a support set's outline among those that look alike.

    Args:
        channels: C of the deep features.
        width: D.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.deep = nn.Conv2d(channels, width, kernel_size=1)
        self.middle = nn.Conv2d(channels // 4, width, kernel_size=1)
        self.fine = nn.Conv2d(channels // 8, width, kernel_size=1)
        self.mix = nn.Sequential(
            nn.GELU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
        )
        self.log_sharpness = nn.Parameter(torch.tensor(3.2))  # of the cosine; about 25 at first
        self.trust = nn.Parameter(torch.tensor([1.0, 1.2]))  # slope, offset of its logits: 1/4 becomes an even chance
        self.kept = nn.Parameter(torch.tensor(1.0))  # how much of the pseudo mask the result starts from

    @staticmethod
    def silence(heads: nn.Module) -> None:
        """Let the last layers of a decoder's heads draw nothing at first, so that training starts from the match."""
        for head in heads.children():
            for parameter in list(head.parameters())[-2:]:
                nn.init.zeros_(parameter)

    def forward(self, features: Features) -> Tensor:
        """Descriptors of length 1, (B, P, D)."""
        fine, middle, deep = self.fine(features.fine), self.middle(features.middle), self.deep(features.deep)
        size = fine.shape[2:]
        coarse = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (middle, deep))
        return F.normalize(self.mix(sum(coarse, fine)).float(), dim=1).flatten(2).mT

    def described(self) -> list[nn.Parameter]:
        """What the descriptors depend on; the rest belongs to the decoders."""
        parts = (self.deep, self.middle, self.fine, self.mix)
        return [*(parameter for part in parts for parameter in part.parameters()), self.log_sharpness]

    def sharpness(self) -> Tensor:
        """What a cosine of 1 counts in the exponent."""
        return self.log_sharpness.clamp(max=4.6).exp()  # up to 100

    def match(self, query: Tensor, marks: Marks) -> Tensor:
        """Share of the outline among the places like each place of a query.

        Args:
            query: Descriptors, (B, P, D).
            marks: Of the images that it reads, (B, K P, ...).

        Returns:
            Logits, (B, 1, 4 g, 4 g).
        """
        sharp = query * KEENER * self.sharpness() * query.shape[2] ** 0.5  # the op divides by the root of the width
        inside = marks.inside[:, :, None, None]
        learns = torch.is_grad_enabled() and (query.requires_grad or marks.places.requires_grad)
        # Without gradients no logits are kept; in half precision a sharp match would be off by a fifth.
        with torch.set_grad_enabled(learns), torch.autocast(query.device.type, enabled=False):
            share = dense_attention(sharp[:, :, None], marks.places[:, :, None], inside)[:, :, 0, 0]
        side = isqrt(query.shape[1])  # a whole number also while a network is recorded
        slope, offset = self.trust
        return (slope * share.clamp(1 - SURE, SURE).logit() + offset).unflatten(1, (side, side))[:, None]


def draw_places(
    places: Tensor, parts: Tensor, generator: torch.Generator, *, queries: int = 160, others: int = 4, keys: int = 1024
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Places to match between the images of one task.

    Rare parts are asked for more often than their size: by the root of it.

    Args:
        places: Descriptors, (n, P, D).
        parts: Of these, (n, P), on the CPU; negative where they do not count.
        generator: Of the draw.
        queries: Q, places of each image that are matched, at most.
        others: Images that they are matched to, at most.
        keys: Places of each of those, at most.

    Returns:
        What `matching_loss` takes: (n, Q, D), (n, Q), (n, T, D) and (n, T), T = `others` times `keys`.
    """
    count, total = parts.shape
    drawn = []
    for own, described in zip(parts, places, strict=True):
        often = torch.bincount(own + 1).float()
        weight = torch.where(own < 0, 0.0, often[own + 1].rsqrt()) + 1e-12
        at = torch.multinomial(weight, min(queries, total), generator=generator)
        drawn.append((described[at], own[at].to(places.device)))
    seen = []
    for image in range(count):
        rest = [other for other in range(count) if other != image]
        chosen = torch.randperm(len(rest), generator=generator)[:others].tolist()
        cells = torch.randperm(total, generator=generator)[:keys]
        flat = torch.cat([rest[other] * total + cells for other in chosen])
        seen.append((places.flatten(0, 1)[flat], parts.flatten()[flat].to(places.device)))
    (query, own), (key, part) = ((torch.stack(column) for column in zip(*each, strict=True)) for each in (drawn, seen))
    return query, own, key, part


def matching_loss(matcher: Matcher, query: Tensor, own: Tensor, places: Tensor, parts: Tensor) -> Tensor:
    """How unlikely a match finds a place of the same part: negative logarithm of the share of those, in nats.

    Args:
        matcher: Knows the sharpness.
        query: Descriptors, (B, Q, D).
        own: Part of each, (B, Q); negative where it does not count.
        places: Descriptors of the other images, (B, T, D).
        parts: Of these, (B, T); a negative one is not looked at.

    Returns:
        Mean over the places whose part the other images show; 0 where there is none.
    """
    logits = (matcher.sharpness() * query @ places.mT).masked_fill((parts < 0)[:, None], -torch.inf)
    same = (own[..., None] == parts[:, None]) & (own >= 0)[..., None]
    counts = same.any(2)
    alike = logits.masked_fill(~same, -torch.inf)[counts].logsumexp(1)
    return (logits[counts].logsumexp(1) - alike).sum() / counts.sum().clamp(min=1)
