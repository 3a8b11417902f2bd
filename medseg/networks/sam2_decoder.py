"""SAM 2's mask decoder: Segment Anything's, with finer features of the image and a score for an absent object.

B images, g sides of the token grid, N = g * g, C channels. A decoder draws four masks, the first for prompts that
leave no doubt.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam_decoder import MaskDecoder, draw
from medseg.networks.sam_transformer import Head

STABLE = (0.05, 0.98)  # margin of logits around the border, and overlap above which the first mask is kept


class Drawing(NamedTuple):
    """What the decoder makes of an embedding.

    Args:
        masks: Logits, (B, 4, 4 g, 4 g).
        iou: Estimated overlap of each mask with the truth, (B, 4).
        presence: Logit that there is an object at all, (B, 1).
        tokens: The four mask tokens after the transformer, (B, 4, C).
        cells: The image after the transformer, (B, N, C).
        feature: What the masks are read from, (B, C / 8, 4 g, 4 g).
    """

    masks: Tensor
    iou: Tensor
    presence: Tensor
    tokens: Tensor
    cells: Tensor
    feature: Tensor

    def single(self, *, training: bool, stable: tuple[float, float] = STABLE) -> tuple[Tensor, Tensor]:
        """The one mask to go on with, (B, 1, 4 g, 4 g), and its estimated overlap, (B, 1).

        In training the first. Otherwise the best of the others where the first is unstable: where moving its border by
        a small margin of logits changes its size.
        """
        if training:
            return self.masks[:, :1], self.iou[:, :1]
        margin, enough = stable
        first = self.masks[:, 0].flatten(1)
        core, reach = (first > margin).sum(1), (first > -margin).sum(1)
        keep = torch.where(reach > 0, core / reach.clamp(min=1), 1.0) >= enough
        which = torch.where(keep, 0, 1 + self.iou[:, 1:].argmax(1))
        at = torch.arange(len(which), device=which.device)
        return self.masks[at, which][:, None], self.iou[at, which][:, None]

    def relation(self) -> Tensor:
        """How much each mask token meets each place of the image, (B, 4, N)."""
        return self.tokens @ self.cells.mT


def head_mlp(dim: int, inner: int) -> nn.Module:
    """The MLP of SAM 2's decoder, under its names."""
    return Head(dim, inner, dim)


class Sam2MaskDecoder(MaskDecoder):
    """Embedding, finer features and prompts to four masks.

    Args:
        channels: C, a multiple of 8.
        num_heads: Heads of the transformer.
        mlp_dim: Inner channels of its MLPs.
        iou_hidden: Inner channels of the head that estimates overlap.
    """

    def __init__(self, channels: int = 256, *, num_heads: int = 8, mlp_dim: int = 2048, iou_hidden: int = 256) -> None:
        options = {"num_heads": num_heads, "mlp_dim": mlp_dim, "iou_head_hidden_dim": iou_hidden}
        super().__init__(channels, **options, mlp=head_mlp)
        self.obj_score_token = nn.Embedding(1, channels)
        self.pred_obj_score_head = Head(channels, channels, channels, 1)
        self.conv_s0 = nn.Conv2d(channels, channels // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(channels, channels // 4, kernel_size=1)

    def drawing(  # its base class takes no finer features
        self, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor, finer: tuple[Tensor, Tensor]
    ) -> Drawing:
        """Draw all four masks.

        Args:
            embedding: (B, C, g, g).
            places: Code of its places, (1, C, g, g).
            sparse: Tokens of the prompts, (B or 1, T, C).
            dense: Feature of the prompts, (B or 1, C, g, g).
            finer: Features (B, C / 8, 4 g, 4 g) and (B, C / 4, 2 g, 2 g).
        """
        own = torch.cat((self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight))
        count = len(embedding)
        tokens = torch.cat((own.expand(count, -1, -1), sparse.expand(count, -1, -1)), dim=1)
        tokens, cells = self.transformer(embedding + dense, places, tokens)
        feature = self._feature(cells.mT.unflatten(2, embedding.shape[2:]), finer)
        masks = tokens[:, 2 : 2 + len(self.mask_tokens.weight)]
        logits = draw([mlp(masks[:, i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], feature)
        iou = self.iou_prediction_head(tokens[:, 1]).sigmoid()
        return Drawing(logits, iou, self.pred_obj_score_head(tokens[:, 0]), masks, cells, feature)

    def _feature(self, image: Tensor, finer: tuple[Tensor, Tensor]) -> Tensor:
        """(B, C, g, g) and the finer features to (B, C / 8, 4 g, 4 g)."""
        first, norm, _, second, _ = self.output_upscaling
        middle = F.gelu(norm(first(image) + finer[1]))
        return F.gelu(second(middle) + finer[0])
