"""SAM2-SGP's second decoder: it draws the final mask at full size, guided by the pseudo mask (2506.19658, PMA).

In the released code the gate made from the pseudo mask is a softmax over one channel, so exactly one: the embedding is
doubled, whatever the pseudo mask says. `released` computes that without the dead branch (four fifths of all published
parameters). `gated` lets the pseudo mask steer as the paper describes: places inside it count double, others once, and
tokens look there first.

B images, g sides of the token grid, N = g * g, T tokens, C channels, h heads.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ChannelNorm
from medseg.networks.sam2_decoder import head_mlp
from medseg.networks.sam_decoder import Upscaling, draw
from medseg.networks.sam_transformer import DecoderAttention, Head, TwoWayBlock, TwoWayTransformer, added

Guidance = Literal["released", "gated"]
FLOOR = 1e-3  # of the share of a cell that the pseudo mask covers, in front of the logarithm


class MaskWeightedAttention(DecoderAttention):
    """Attention whose weights may be multiplied by a mask behind the softmax; they then no longer add up to one."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        to: Tensor | None = None,
    ) -> Tensor:
        """As its base class, with a bias (B, h, Nk) or a mask (B, Nq, Nk)."""
        if mask is None:
            return super().forward(q, k, v, bias, to=to)
        q, k, v = self._projected(q, k, v)
        weights = (q @ k.mT * q.shape[3] ** -0.5).softmax(-1) * mask[:, None]
        return added(self.out_proj((weights @ v).transpose(1, 2).flatten(2)), to)


class GuidedBlock(TwoWayBlock):
    """A two-way block in another order: tokens read the image first, then each other (H-SAM, 2403.18271).

    Args:
        channels: C.
        num_heads: h.
        mlp_dim: Inner channels of the MLP.
        first: The tokens are then replaced by their self attention.
    """

    def __init__(self, channels: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        options = {"mlp": head_mlp, "cross": MaskWeightedAttention, "downsample": 1}
        super().__init__(channels, num_heads, mlp_dim, first=first, **options)
        self.drop = nn.Dropout(0.2)

    def guided(
        self, tokens: Tensor, image: Tensor, code: Tensor, places: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C) and image (B, N, C), their codes, and a bias per head and place (B, h, N), renewed."""
        read = self.cross_attn_token_to_image(tokens + code, image + places, image, bias)
        tokens = self.among(self.norm2(tokens + self.drop(read)), code)
        tokens = self.norm3(tokens + self.mlp(tokens))
        return tokens, self.norm4(image + self.cross_attn_image_to_token(image + places, tokens + code, tokens))


class GuidedTransformer(TwoWayTransformer):
    """Guided blocks, then a last look of the tokens at the image.

    Args:
        depth: Blocks.
        channels: C.
        num_heads: h.
        mlp_dim: Inner channels of the MLPs.
    """

    def __init__(self, depth: int, channels: int, num_heads: int, mlp_dim: int) -> None:
        blocks = [GuidedBlock(channels, num_heads, mlp_dim, first=index == 0) for index in range(depth)]
        super().__init__(blocks, channels, num_heads)

    def guided(self, image: Tensor, places: Tensor, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Image (B, C, g, g), places (1, C, g, g), tokens (B, T, C) and a bias (B, h, N) to tokens and (B, N, C)."""
        code, image, places = tokens, image.flatten(2).mT, places.flatten(2).mT
        for layer in self.layers:
            tokens, image = cast(GuidedBlock, layer).guided(tokens, image, code, places, bias)
        return self.last_look(tokens, code, image + places, image), image


class FinalMasks(NamedTuple):
    """What the second decoder draws.

    Args:
        logits: (B, masks, 16 g, 16 g); the first is the result.
        iou: Estimated overlap of each of the four, (B, 4); nothing trains it in the released code.
    """

    logits: Tensor
    iou: Tensor


class SecondDecoder(nn.Module):
    """Conditioned embedding, box and pseudo mask to the final mask.

    Args:
        channels: C, a multiple of 16.
        guidance: `released` or `gated`.
        num_heads: h.
        mlp_dim: Inner channels of the transformer's MLPs.
        iou_hidden: Inner channels of the head that estimates overlap.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        guidance: Guidance = "gated",
        num_heads: int = 8,
        mlp_dim: int = 2048,
        iou_hidden: int = 256,
    ) -> None:
        super().__init__()
        if guidance not in ("released", "gated"):
            raise ValueError(f"guidance must be released or gated, got {guidance!r}")
        masks, narrow = 4, channels // 16
        self.transformer2 = GuidedTransformer(2, channels, num_heads, mlp_dim)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.output_upscaling = Upscaling(channels)
        self.skip_connect = nn.Sequential(
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            ChannelNorm(channels // 8),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 8, narrow, kernel_size=2, stride=2),
            ChannelNorm(narrow),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps2 = nn.ModuleList(Head(*[channels] * 5, narrow) for _ in range(masks))
        self.iou_prediction_head = Head(channels, iou_hidden, iou_hidden, masks)
        self.mask_slope = nn.Parameter(torch.zeros(num_heads)) if guidance == "gated" else None

    def forward(
        self,
        embedding: Tensor,
        places: Tensor,
        prompts: tuple[Tensor, Tensor],
        pseudo: Tensor,
        feature: Tensor,
        *,
        masks: int = 1,
    ) -> FinalMasks:
        """Draw the first `masks` masks.

        Args:
            embedding: What has read the memories, (B, C, g, g).
            places: Code of its places, (1, C, g, g).
            prompts: Tokens of the box, (B, T, C), and dense feature, (B or 1, C, g, g).
            pseudo: Logits of the pseudo mask, (B, 1, 4 g, 4 g).
            feature: What the first decoder read its masks from, (B, C / 8, 4 g, 4 g).
            masks: A mask that is not asked for costs nothing.
        """
        sparse, dense = prompts
        own = self.mask_tokens.weight.expand(len(embedding), -1, -1)
        weight, bias = self.guide(pseudo)
        tokens = torch.cat((own, sparse), dim=1)
        tokens, cells = self.transformer2.guided((embedding + dense) * weight, places, tokens, bias)
        coarse = self.output_upscaling(cells.mT.unflatten(2, embedding.shape[2:]))
        fine = self.skip_connect(torch.cat((coarse, feature), dim=1))
        kernels = [self.output_hypernetworks_mlps2[i](tokens[:, i]) for i in range(masks)]
        return FinalMasks(draw(kernels, fine), self.iou_prediction_head(tokens[:, 0]))

    def guide(self, pseudo: Tensor) -> tuple[Tensor | float, Tensor | None]:
        """What the pseudo mask (B, 1, 4 g, 4 g) does: a weight (B, 1, g, g) on the embedding, a bias (B, h, N)."""
        if self.mask_slope is None:
            return 2.0, None
        share = F.avg_pool2d(pseudo.sigmoid(), kernel_size=4)
        bias = (share + FLOOR).log().flatten(2) * self.mask_slope[:, None]
        return 1 + share, bias
