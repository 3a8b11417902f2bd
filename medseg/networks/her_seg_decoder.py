"""HER-Seg's ME-Decoder: a two-way transformer whose cross attention never projects the image (2504.06205).

Transformer and prompt encoder are Segment Anything's, in `sam_transformer.py` and `sam_decoder.py`. B batch,
N = h * w image cells, T tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam_decoder import Upscaling
from medseg.networks.sam_transformer import Head, TwoWayBlock, TwoWayTransformer

POOLS = (5, 9, 13)  # sides of the meta-pooling group (fig. 4)


def meta_pooled(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, C) on a grid of rows and columns, plus how far the averages over squares around each cell are from it."""
    x = cells.mT.unflatten(2, grid)
    averages = [F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False) for side in POOLS]
    return (x + sum(averages) - len(POOLS) * x).flatten(2).mT


class MaskDecoder(nn.Module):
    """Image feature and prompt tokens to masks at four times the grid (section 3.3).

    All masks are drawn from the first token; the other own tokens only take part in attention.

    Args:
        channels: C; a multiple of 8.
        num_heads: Heads of the transformer.
        mlp_dim: Inner channels of its MLPs.
        num_masks: Own mask tokens, and as many masks.
        depth: Layers of the transformer.
        meta_pool: Add averages over growing squares to what attention reads as values; the paper draws it, but the
            published weights were trained without.
    """

    def __init__(
        self,
        channels: int = 256,
        num_heads: int = 8,
        mlp_dim: int = 256,
        *,
        num_masks: int = 3,
        depth: int = 2,
        meta_pool: bool = False,
    ) -> None:
        super().__init__()
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(num_masks, channels)
        blocks = [TwoWayBlock(channels, num_heads, mlp_dim, first=index == 0) for index in range(depth)]
        self.transformer = TwoWayTransformer(blocks, channels, num_heads, pool=meta_pooled if meta_pool else None)
        self.output_upscaling = Upscaling(channels)
        self.output_hypernetworks_mlps = nn.ModuleList(
            Head(channels, channels, channels, channels // 8) for _ in range(num_masks)
        )

    def forward(
        self, image: Tensor, position: Tensor, prompts: Tensor | None = None, *, masks: int | None = None
    ) -> Tensor:
        """Logits of the first `masks` masks, or of all.

        Args:
            image: Image feature with the dense prompt added, (B, C, h, w).
            position: Position code of its cells, (1, C, h, w).
            prompts: Tokens of the prompts, (B or 1, T, C).
            masks: How many to compute; a mask that is not asked for costs nothing.

        Returns:
            (B, masks, 4 h, 4 w).
        """
        tokens, cells = self.attend(image, position, prompts)
        kernels = [mlp(tokens[:, 0]) for mlp in self.output_hypernetworks_mlps[:masks]]
        return self.output_upscaling.masks(cells, image.shape[2:], kernels)

    def attend(self, image: Tensor, position: Tensor, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C), own ones first, and cells (B, N, C) after the transformer; arguments as in `forward`."""
        tokens = torch.cat((self.iou_token.weight, self.mask_tokens.weight)).expand(image.shape[0], -1, -1)
        if prompts is not None:
            tokens = torch.cat((tokens, prompts.expand(image.shape[0], -1, -1)), dim=1)
        return self.transformer(image, position, tokens)
