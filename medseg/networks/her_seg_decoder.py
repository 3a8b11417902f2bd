"""HER-Seg's ME-Decoder and the prompt encoder in front of it (2504.06205).

The decoder keeps the weights of a two-way transformer but never projects the image: with a handful of tokens it is
cheaper to carry the queries back through the key projection, and to project what the softmax has averaged, than to
project thousands of cells. Both forms are the same function; only the rounding differs.

B batch, N = h * w image cells, T tokens, C channels, E inner width of an attention, H heads, D = E / H head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ChannelNorm

Pool = Callable[[Tensor], Tensor]
POOLS = (5, 9, 13)  # sides of the meta-pooling group (fig. 4)


class PromptEncoder(nn.Module):
    """Prompts and positions as vectors, under the key names of Segment Anything's prompt encoder.

    HER-Seg works without prompts or with boxes; the weights for points and masks are carried along so that published
    checkpoints load whole.

    Args:
        channels: C; even.
        mask_channels: Channels inside the branch for masks; a multiple of 4.
    """

    def __init__(self, channels: int = 256, mask_channels: int = 16) -> None:
        super().__init__()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, channels) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, channels)
        self.no_mask_embed = nn.Embedding(1, channels)
        narrow = mask_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, narrow, kernel_size=2, stride=2),
            ChannelNorm(narrow),
            nn.GELU(),
            nn.Conv2d(narrow, mask_channels, kernel_size=2, stride=2),
            ChannelNorm(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, channels, kernel_size=1),
        )
        self.pe_layer = FourierPosition(channels)

    def no_mask(self) -> Tensor:
        """What is added to every image cell where no mask is given, (1, C, 1, 1)."""
        return self.no_mask_embed.weight[..., None, None]

    def boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes (B, n, 4) as x0, y0, x1, y1 in pixels of an image of `size` (height, width) to tokens (B, 2 n, C)."""
        corners = (boxes.unflatten(2, (2, 2)) + 0.5) / boxes.new_tensor((size[1], size[0]))  # pixel centres
        kinds = torch.cat([self.point_embeddings[corner].get_parameter("weight") for corner in (2, 3)])
        return (self.pe_layer(corners) + kinds).flatten(1, 2)


class FourierPosition(nn.Module):
    """Sines and cosines of positions along random directions.

    Args:
        channels: C; even.
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2))

    def forward(self, positions: Tensor) -> Tensor:
        """Positions (..., 2) as x, y from 0 to 1 to (..., C)."""
        angle = 2 * pi * (2 * positions - 1) @ self.positional_encoding_gaussian_matrix
        return torch.cat((angle.sin(), angle.cos()), dim=-1)

    def grid(self, grid: tuple[int, int]) -> Tensor:
        """Code of each cell centre of a grid of `grid` rows and columns, (1, C, h, w)."""
        matrix = self.positional_encoding_gaussian_matrix
        y, x = ((torch.arange(side, device=matrix.device, dtype=matrix.dtype) + 0.5) / side for side in grid)
        return self(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)).movedim(2, 0)[None]


class Attention(nn.Module):
    """Multi-head attention whose inner width may differ from C, in three orders of computation.

    Args:
        channels: C.
        num_heads: H; must divide E.
        inner: E.
    """

    def __init__(self, channels: int, num_heads: int, inner: int) -> None:
        super().__init__()
        if inner % num_heads:
            raise ValueError(f"num_heads must divide the inner width, got {num_heads} heads for {inner} channels")
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, channels)
        self.scale = (inner // num_heads) ** -0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Few to few, as written: queries (B, T, C), keys and values (B, T, C) to (B, T, C)."""
        q, k, v = (self._split(project(x)) for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2))

    def from_cells(self, tokens: Tensor, keys: Tensor, cells: Tensor) -> Tensor:
        """Few queries, many keys: tokens (B, T, C), keys and values (B, N, C) to (B, T, C).

        q (K W_k + b)^T = (q W_k^T) K^T + const, and the constant leaves the softmax as it is; its rows add up to one,
        so the value bias passes through.
        """
        q = self._split(self.q_proj(tokens)) @ self._by_head(self.k_proj.weight)  # (B, H, T, C)
        seen = F.scaled_dot_product_attention(q.flatten(1, 2), keys, cells, scale=self.scale)  # (B, H * T, C)
        values = seen.unflatten(1, q.shape[1:3]) @ self._by_head(self.v_proj.weight).mT  # (B, H, T, D)
        return self.out_proj(values.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def to_cells(self, cells: Tensor, keys: Tensor, tokens: Tensor) -> Tensor:
        """Many queries, few keys: cells (B, N, C), keys and values (B, T, C) to (B, N, C).

        The query bias meets each key differently, so it stays, as one number per head and key.
        """
        k = self._split(self.k_proj(keys))  # (B, H, T, D)
        bias = k @ self.q_proj.bias.view(self.num_heads, -1, 1)  # (B, H, T, 1)
        values = self._split(self.v_proj(tokens)) @ self.out_proj.weight.unflatten(1, (self.num_heads, -1)).movedim(
            0, 2
        )
        logits = cells @ (k @ self._by_head(self.q_proj.weight)).flatten(1, 2).mT + bias.flatten(1)[:, None]
        weights = (logits * self.scale).unflatten(2, (self.num_heads, -1)).softmax(-1)
        return weights.flatten(2) @ values.flatten(1, 2) + self.out_proj.bias

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _by_head(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.num_heads, -1))  # (H, D, C)


class TokenMlp(nn.Module):
    """Two linear maps around a ReLU.

    Args:
        channels: C.
        inner: Channels between the maps.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(channels, inner)
        self.lin2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, T, C)."""
        return self.lin2(F.relu(self.lin1(x)))


class TwoWayLayer(nn.Module):
    """Tokens look at each other, then at the image, and the image at the tokens (fig. 4).

    Args:
        channels: C.
        num_heads: H of all three attentions.
        mlp_dim: Inner channels of the MLP.
        first: The first layer attends among bare tokens and keeps no straight path.
    """

    def __init__(self, channels: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(channels, num_heads, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, num_heads, channels // 2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = TokenMlp(channels, mlp_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, num_heads, channels // 2)

    def forward(
        self, tokens: Tensor, initial: Tensor, cells: Tensor, position: Tensor, pool: Pool
    ) -> tuple[Tensor, Tensor]:
        """One step of both sides.

        Args:
            tokens: (B, T, C).
            initial: The tokens before the first layer, their stand-in for a position, (B, T, C).
            cells: Image cells, (B, N, C).
            position: Position code of the cells, (1, N, C).
            pool: What values and straight path read in place of the cells.

        Returns:
            Tokens (B, T, C) and cells (B, N, C).
        """
        if self.first:
            tokens = self.norm1(self.self_attn(tokens, tokens, tokens))
        else:
            q = tokens + initial
            tokens = self.norm1(tokens + self.self_attn(q, q, tokens))
        keys, cells = cells + position, pool(cells)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.from_cells(tokens + initial, keys, cells))
        tokens = self.norm3(tokens + self.mlp(tokens))
        keys, cells = cells + position, pool(cells)
        return tokens, self.norm4(cells + self.cross_attn_image_to_token.to_cells(keys, tokens + initial, tokens))


class TwoWayTransformer(nn.Module):
    """Some two-way layers and a last look at the image.

    Args:
        channels: C.
        num_heads: H.
        mlp_dim: Inner channels of the MLPs.
        depth: Number of layers.
        meta_pool: Add averages over growing squares to what attention reads as values; the paper draws it, but the
            published weights were trained without.
    """

    def __init__(
        self, channels: int = 256, num_heads: int = 8, mlp_dim: int = 256, *, depth: int = 2, meta_pool: bool = False
    ) -> None:
        super().__init__()
        self.meta_pool = meta_pool
        self.layers = nn.ModuleList(
            TwoWayLayer(channels, num_heads, mlp_dim, first=number == 0) for number in range(depth)
        )
        self.final_attn_token_to_image = Attention(channels, num_heads, channels // 2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, image: Tensor, position: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        """Image and its position code (B or 1, C, h, w), tokens (B, T, C), to tokens (B, T, C) and cells (B, N, C)."""
        pool = partial(meta_pooled, grid=(image.shape[2], image.shape[3])) if self.meta_pool else _same
        cells, position, tokens = image.flatten(2).mT, position.flatten(2).mT, initial
        for layer in self.layers:
            tokens, cells = layer(tokens, initial, cells, position, pool)
        keys, cells = cells + position, pool(cells)
        tokens = tokens + self.final_attn_token_to_image.from_cells(tokens + initial, keys, cells)
        return self.norm_final_attn(tokens), cells


def meta_pooled(cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N, C) on a grid of rows and columns, plus how far the averages over squares around each cell are from it."""
    x = cells.mT.unflatten(2, grid)
    averages = [F.avg_pool2d(x, side, stride=1, padding=side // 2, count_include_pad=False) for side in POOLS]
    return (x + sum(averages) - len(POOLS) * x).flatten(2).mT


def _same(cells: Tensor) -> Tensor:
    return cells


class HyperMlp(nn.Module):
    """Three linear maps with ReLUs between, from a token to the weights of one mask.

    Args:
        channels: C of the token.
        out_channels: Channels of the feature to be weighted.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        widths = (channels, channels, channels, out_channels)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to (B, out_channels)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class MaskDecoder(nn.Module):
    """Image feature and prompt tokens to masks at four times the grid (section 3.3).

    All masks are drawn from the first token; the other own tokens only take part in attention.

    Args:
        channels: C; a multiple of 8.
        num_heads: H of the transformer.
        mlp_dim: Inner channels of its MLPs.
        num_masks: Own mask tokens, and as many masks.
        depth: Layers of the transformer.
        meta_pool: See `TwoWayTransformer`.
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
        self.transformer = TwoWayTransformer(channels, num_heads, mlp_dim, depth=depth, meta_pool=meta_pool)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            ChannelNorm(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(HyperMlp(channels, channels // 8) for _ in range(num_masks))

    def forward(
        self, image: Tensor, position: Tensor, prompts: Tensor | None = None, *, masks: int | None = None
    ) -> Tensor:
        """Logits of the first `masks` masks, or of all.

        Args:
            image: Image feature with the dense prompt added, (B, C, h, w).
            position: Position code of its cells, (1, C, h, w).
            prompts: Tokens of the prompts, (B, T, C).
            masks: How many to compute; a mask that is not asked for costs nothing.

        Returns:
            (B, masks, 4 h, 4 w).
        """
        tokens, cells = self.attend(image, position, prompts)
        feature = self.output_upscaling(cells.mT.unflatten(2, image.shape[2:]))
        weights = torch.stack([mlp(tokens[:, 0]) for mlp in self.output_hypernetworks_mlps[:masks]], dim=1)
        return torch.einsum("bmc,bchw->bmhw", weights, feature)

    def attend(self, image: Tensor, position: Tensor, prompts: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C), own ones first, and cells (B, N, C) after the transformer; arguments as in `forward`."""
        tokens = torch.cat((self.iou_token.weight, self.mask_tokens.weight)).expand(image.shape[0], -1, -1)
        if prompts is not None:
            tokens = torch.cat((tokens, prompts), dim=1)
        return self.transformer(image, position, tokens)
