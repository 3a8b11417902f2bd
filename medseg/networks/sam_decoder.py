"""Segment Anything's prompt encoder and mask decoder, under their published key names (2304.02643, section A).

P prompts, n points of a prompt, T tokens, C channels, H W sides of the embedding's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ChannelNorm
from medseg.networks.sam_transformer import Head, TwoWayBlock, TwoWayTransformer, relu_mlp
from medseg_kernels.dense import Activation, dense


class PlaceCode(nn.Module):
    """Sines and cosines of random projections of a place (Tancik et al. 2020).

    Args:
        channels: C, even.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2))

    def forward(self, places: Tensor) -> Tensor:
        """Places (x, y) in [0, 1], (..., 2), to (..., C)."""
        angle = 2 * pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat((angle.sin(), angle.cos()), dim=-1)

    def of_grid(self, grid: tuple[int, int]) -> Tensor:
        """Code of the centres of all cells, (H, W, C).

        An angle is a sum of one for the row and one for the column, so only those have to be looked up.
        """
        across, along = self.positional_encoding_gaussian_matrix  # what x and what y is multiplied with
        centres = [(2 * torch.arange(side, device=along.device) + 1) / side - 1 for side in grid]
        rows, columns = 2 * pi * centres[0][:, None, None] * along, 2 * pi * centres[1][:, None] * across
        sine = torch.addcmul(rows.sin() * columns.cos(), rows.cos(), columns.sin())
        cosine = torch.addcmul(rows.cos() * columns.cos(), rows.sin(), columns.sin(), value=-1)
        return torch.cat((sine, cosine), dim=-1)


class PromptEncoder(nn.Module):
    """Points and boxes as tokens, a mask as a feature on the embedding's grid.

    Args:
        channels: C.
        patch: Pixels per cell of the embedding's grid.
        mask_channels: Inner channels of the mask's encoder; a multiple of 4.
    """

    def __init__(self, channels: int = 256, patch: int = 16, mask_channels: int = 16) -> None:
        super().__init__()
        self.patch = patch
        self.pe_layer = PlaceCode(channels)
        # Background, foreground, upper left and lower right corner of a box.
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, mask_channels // 4, kernel_size=2, stride=2),
            ChannelNorm(mask_channels // 4),
            nn.GELU(),
            nn.Conv2d(mask_channels // 4, mask_channels, kernel_size=2, stride=2),
            ChannelNorm(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, channels, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, channels)

    def forward(
        self,
        grid: tuple[int, int],
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts of the same make-up.

        Args:
            grid: H and W of the embedding.
            points: Pixels (x, y), (P, n, 2), and 1 foreground, 0 background, -1 nothing, (P, n).
            boxes: Pixels (x0, y0, x1, y1), (P, 4), or several of a prompt, (P, n, 4).
            masks: Logits, (P, 1, 4 H, 4 W).

        Returns:
            Tokens (P, T, C), without any prompt (1, 0, C), and the dense feature, (P or 1, C, H, W).
        """
        tokens = []
        if points is not None:
            tokens.append(self._points(*points, grid, padded=boxes is None))
        if boxes is not None:
            kinds = torch.cat([self.get_parameter(f"point_embeddings.{index}.weight") for index in (2, 3)])
            corners = self._places(boxes.unflatten(-1, (2, 2)), grid) + kinds  # (P, 2, C) or (P, n, 2, C)
            tokens.append(corners.flatten(1, -2))
        nothing = self.no_mask_embed.weight
        sparse = torch.cat(tokens, dim=1) if tokens else nothing.new_zeros(1, 0, nothing.shape[1])
        dense = nothing[:, :, None, None].expand(1, -1, *grid) if masks is None else self.mask_downscaling(masks)
        return sparse, dense

    def dense_pe(self, grid: tuple[int, int]) -> Tensor:
        """Code of each cell's centre, (1, C, H, W)."""
        return self.pe_layer.of_grid(grid).permute(2, 0, 1)[None]

    def _points(self, places: Tensor, labels: Tensor, grid: tuple[int, int], *, padded: bool) -> Tensor:
        """(P, n, C), or (P, n + 1, C) with the empty point that stands for an absent box."""
        if padded:
            places, labels = F.pad(places, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=-1)
        kinds = [self.not_a_point_embed, self.point_embeddings[0], self.point_embeddings[1]]
        own = torch.cat([kind.weight for kind in kinds])[labels.long() + 1]
        return torch.where((labels >= 0)[..., None], self._places(places, grid), 0.0) + own

    def _places(self, places: Tensor, grid: tuple[int, int]) -> Tensor:
        """Code of pixel centres (x, y), (..., 2) to (..., C)."""
        size = torch.tensor([self.patch * side for side in reversed(grid)], dtype=places.dtype, device=places.device)
        return self.pe_layer((places + 0.5) / size)


class Upscaling(nn.Sequential):
    """From an embedding (B, C, H, W) to the feature that masks are read from, (B, C / 8, 4 H, 4 W).

    Args:
        channels: C, a multiple of 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            ChannelNorm(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )

    def masks(self, cells: Tensor, grid: Sequence[int], kernels: Sequence[Tensor]) -> Tensor:
        """What `draw` makes of the feature, without forming it.

        Every cell gives its 4 x 4 pixels on its own, so they stay with their cell, channels last, until only masks are
        left to be put in order.

        Args:
            cells: Embedding, (B, H W, C).
            grid: H and W.
            kernels: One per mask, (B, C / 8) each.

        Returns:
            (B, masks, 4 H, 4 W).
        """
        first, norm, _, second, _ = self
        middle = F.gelu(cast(ChannelNorm, norm).cells(_quartered(first, cells)))  # (B, N, 4, C / 4)
        fine = _quartered(second, middle, "gelu").flatten(1, 3)  # (B, 16 N, C / 8)
        logits = fine @ torch.stack(list(kernels), dim=2)
        parts = logits.unflatten(1, (*grid, 2, 2, 2, 2))  # (B, H, W, i, j, k, l, masks), i and k along H
        return parts.permute(0, 7, 1, 3, 5, 2, 4, 6).flatten(5, 7).flatten(2, 4)


def _quartered(layer: nn.Module, x: Tensor, activation: Activation = "none") -> Tensor:
    """A transposed convolution of side and stride 2 on every cell by itself, (..., C) to (..., 4, D), row by row."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")  # (C, D, 2, 2) and (D,)
    out = dense(x, weight.permute(2, 3, 1, 0).flatten(0, 2), bias.repeat(4), activation)
    return out.unflatten(-1, (4, -1))


def draw(kernels: Sequence[Tensor], feature: Tensor) -> Tensor:
    """Masks (B, masks, H, W): the feature (B, C, H, W) weighted by one kernel (B, C) per mask."""
    return (torch.stack(list(kernels), dim=1) @ feature.flatten(2)).unflatten(2, feature.shape[2:])


class MaskDecoder(nn.Module):
    """Embedding and prompt tokens to masks and to an estimate of how good each is.

    Args:
        channels: C, a multiple of 8.
        depth: Blocks of the two-way transformer.
        num_heads: h.
        mlp_dim: Inner channels of its MLPs.
        iou_head_depth: Linear maps of the quality head.
        iou_head_hidden_dim: Its inner channels.
        mlp: Makes the MLPs of the transformer.
    """

    def __init__(
        self,
        channels: int = 256,
        *,
        depth: int = 2,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        iou_head_depth: int = 3,
        iou_head_hidden_dim: int = 256,
        mlp: Callable[[int, int], nn.Module] = relu_mlp,
    ) -> None:
        super().__init__()
        masks = 4  # one for unambiguous prompts, three for others
        blocks = [TwoWayBlock(channels, num_heads, mlp_dim, first=index == 0, mlp=mlp) for index in range(depth)]
        self.transformer = TwoWayTransformer(blocks, channels, num_heads)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.output_upscaling = Upscaling(channels)
        self.output_hypernetworks_mlps = nn.ModuleList(
            Head(channels, channels, channels, channels // 8) for _ in range(masks)
        )
        self.iou_prediction_head = Head(channels, *[iou_head_hidden_dim] * (iou_head_depth - 1), masks)

    def forward(
        self, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor, *, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Embedding (1 or P, C, H, W), its place code (1, C, H, W), prompts (P, T, C) and (P or 1, C, H, W).

        Returns:
            Logits (P, masks, 4 H, 4 W) and estimated overlaps (P, masks), with three masks or one.
        """
        tokens, image = self._look(embedding, places, sparse, dense)
        chosen = range(1, len(self.mask_tokens.weight)) if multimask else range(1)
        return self._draw(tokens, image, chosen), self._overlaps(tokens, chosen)

    def above(
        self, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor, least: float
    ) -> tuple[Tensor, Tensor]:
        """Of three masks per prompt those whose estimated overlap is above `least`, alike; others cost no drawing.

        Returns:
            Logits (K, 4 H, 4 W) and estimated overlaps (K,), in the order of the prompts.
        """
        tokens, image = self._look(embedding, places, sparse, dense)
        chosen = range(1, len(self.mask_tokens.weight))
        overlaps = self._overlaps(tokens, chosen)
        good = overlaps > least
        some = good.any(1)
        return self._draw(tokens[some], image[some], chosen)[good[some]], overlaps[good]

    def _look(self, embedding: Tensor, places: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Own tokens and prompts, (P, T, C), and image, (P, C, H, W), after they read each other."""
        own = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        prompts = max(len(embedding), len(sparse), len(dense))
        tokens = torch.cat((own.expand(prompts, -1, -1), sparse.expand(prompts, -1, -1)), dim=1)
        image = (embedding + dense).expand(prompts, -1, -1, -1)
        tokens, image = self.transformer(image, places, tokens)
        return tokens, image.mT.unflatten(2, embedding.shape[2:])

    def _overlaps(self, tokens: Tensor, chosen: range) -> Tensor:
        """Estimated overlap of each chosen mask with the truth, (P, masks)."""
        return self.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]

    def _draw(self, tokens: Tensor, image: Tensor, chosen: range) -> Tensor:
        """Logits of the chosen masks, (P, masks, 4 H, 4 W)."""
        kernels = [self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen]
        return self.output_upscaling.masks(image.flatten(2).mT, image.shape[2:], kernels)
