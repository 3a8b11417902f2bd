"""Segment Anything's prompt encoder and mask decoder, under their published key names (2304.02643, section A).

The decoder's tokens are few and the image's many, so its cross attention never projects the image: the projections
are moved to the tokens' side, which is exact and leaves less than half of the work.

P prompts, n points of a prompt, T tokens, N = H W image tokens, C channels, h heads, E channels inside an attention.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ChannelNorm


class Mlp(nn.Module):
    """Two linear maps around an activation.

    Args:
        dim: C.
        inner: Channels between the maps.
        activation: Exact GELU in the image encoder, ReLU in the decoder.
    """

    def __init__(self, dim: int, inner: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self.activation = activation
        self.lin1 = nn.Linear(dim, inner)
        self.lin2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.lin2(self.activation(self.lin1(x)))


class Head(nn.Module):
    """Linear maps with ReLU between them.

    Args:
        sizes: Channels in front of each map, and behind the last.
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(read, out) for read, out in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(..., first size) to (..., last size)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


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
            boxes: Pixels (x0, y0, x1, y1), (P, 4).
            masks: Logits, (P, 1, 4 H, 4 W).

        Returns:
            Tokens (P, T, C), without any prompt (1, 0, C), and the dense feature, (P or 1, C, H, W).
        """
        tokens = []
        if points is not None:
            tokens.append(self._points(*points, grid, padded=boxes is None))
        if boxes is not None:
            corners = torch.cat([self.get_parameter(f"point_embeddings.{index}.weight") for index in (2, 3)])
            tokens.append(self._places(boxes.unflatten(1, (2, 2)), grid) + corners)
        nothing = self.no_mask_embed.weight
        sparse = torch.cat(tokens, dim=1) if tokens else nothing.new_zeros(1, 0, nothing.shape[1])
        dense = nothing[:, :, None, None].expand(1, -1, *grid) if masks is None else self.mask_downscaling(masks)
        return sparse, dense

    def dense_pe(self, grid: tuple[int, int]) -> Tensor:
        """Code of each cell's centre, (1, C, H, W)."""
        device = self.no_mask_embed.weight.device
        y, x = ((torch.arange(size, device=device) + 0.5) / size for size in grid)
        places = torch.stack((x.expand(grid), y[:, None].expand(grid)), dim=-1)
        return self.pe_layer(places).permute(2, 0, 1)[None]

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


class DecoderAttention(nn.Module):
    """Multi-head attention whose inner width may be smaller than the tokens'.

    Args:
        channels: C.
        num_heads: h; must divide E.
        downsample: C / E.
    """

    def __init__(self, channels: int, num_heads: int, *, downsample: int = 1) -> None:
        super().__init__()
        self.num_heads, self.inner = num_heads, channels // downsample
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(channels, self.inner) for _ in range(3))
        self.out_proj = nn.Linear(self.inner, channels)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (P, Nq, C), keys and values (P, Nk, C) to (P, Nq, C)."""
        rows = self.num_heads * min(q.shape[1], k.shape[1])
        if rows < self.inner and q.shape[1] < k.shape[1]:
            return self._few_queries(q, k, v)
        if rows < self.inner and q.shape[1] > k.shape[1]:
            return self._few_keys(q, k, v)
        q, k, v = (self._heads(proj(x)) for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def _few_queries(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(q Wk) k^T instead of q (k Wk)^T, and (A v) Wv instead of A (v Wv).

        The key bias adds the same to all logits of a query, so softmax drops it; the weights of a query sum to one,
        so the value bias is added once.
        """
        queries = self._scaled(q) @ self._by_head(self.k_proj.weight)  # (P, h, T, C)
        weights = (queries.flatten(1, 2) @ k.mT).softmax(-1)  # (P, h T, N)
        seen = (weights @ v).unflatten(1, (self.num_heads, -1))  # (P, h, T, C)
        out = seen @ self._by_head(self.v_proj.weight).mT  # (P, h, T, E / h)
        return self.out_proj(out.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def _few_keys(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (Wq k^T) instead of (q Wq) k^T, and A (v Wo) instead of (A v) Wo.

        The query bias met by a key is one number per head and key.
        """
        heads = self.num_heads
        scale = (self.inner // heads) ** -0.5
        keys = self._heads(self.k_proj(k)) * scale  # (P, h, T, E / h)
        toward = (keys @ self._by_head(self.q_proj.weight)).flatten(1, 2)  # (P, h T, C)
        bias = (keys @ self.q_proj.bias.view(heads, -1, 1)).flatten(1)  # (P, h T)
        logits = torch.baddbmm(bias[:, None], q, toward.mT)
        weights = logits.unflatten(2, (heads, -1)).softmax(-1).flatten(2)  # (P, N, h T)
        outward = self.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # (h, E / h, C)
        values = (self._heads(self.v_proj(v)) @ outward).flatten(1, 2)  # (P, h T, C)
        return torch.baddbmm(self.out_proj.bias, weights, values)

    def _heads(self, x: Tensor) -> Tensor:
        """(P, tokens, E) to (P, h, tokens, E / h)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _scaled(self, q: Tensor) -> Tensor:
        return self._heads(self.q_proj(q)) * (self.inner // self.num_heads) ** -0.5

    def _by_head(self, weight: Tensor) -> Tensor:
        """(E, C) to (h, E / h, C)."""
        return weight.unflatten(0, (self.num_heads, -1))


class TwoWayBlock(nn.Module):
    """Tokens attend to each other, to the image, pass an MLP; then the image attends to the tokens.

    Args:
        channels: C.
        num_heads: h.
        mlp_dim: Inner channels of the MLP.
        first: The tokens are then their own position code, and replaced by their self attention.
    """

    def __init__(self, channels: int, num_heads: int, mlp_dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = DecoderAttention(channels, num_heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = DecoderAttention(channels, num_heads, downsample=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Mlp(channels, mlp_dim, F.relu)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = DecoderAttention(channels, num_heads, downsample=2)

    def forward(self, tokens: Tensor, image: Tensor, code: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (P, T, C), image (P, N, C), and what marks their places, alike, to both, renewed."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            marked = tokens + code
            tokens = tokens + self.self_attn(marked, marked, tokens)
        tokens = self.norm1(tokens)
        keys = image + places
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + code, keys, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        return tokens, self.norm4(image + self.cross_attn_image_to_token(keys, tokens + code, tokens))


class TwoWayTransformer(nn.Module):
    """Two-way blocks, then a last look of the tokens at the image.

    Args:
        depth: Blocks.
        channels: C.
        num_heads: h.
        mlp_dim: Inner channels of the MLPs.
    """

    def __init__(self, depth: int, channels: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(channels, num_heads, mlp_dim, first=index == 0) for index in range(depth)
        )
        self.final_attn_token_to_image = DecoderAttention(channels, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, image: Tensor, places: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image (P, N, C), its places (1, N, C), tokens (P, T, C) to tokens and image, renewed."""
        code = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, code, places)
        tokens = tokens + self.final_attn_token_to_image(tokens + code, image + places, image)
        return self.norm_final_attn(tokens), image


class MaskDecoder(nn.Module):
    """Embedding and prompt tokens to masks and to an estimate of how good each is.

    Args:
        channels: C, a multiple of 8.
        depth: Blocks of the two-way transformer.
        num_heads: h.
        mlp_dim: Inner channels of its MLPs.
        iou_head_depth: Linear maps of the quality head.
        iou_head_hidden_dim: Its inner channels.
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
    ) -> None:
        super().__init__()
        masks = 4  # one for unambiguous prompts, three for others
        self.transformer = TwoWayTransformer(depth, channels, num_heads, mlp_dim)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(masks, channels)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(channels, channels // 4, kernel_size=2, stride=2),
            ChannelNorm(channels // 4),
            nn.GELU(),
            nn.ConvTranspose2d(channels // 4, channels // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
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
        own = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        prompts = max(len(embedding), len(sparse), len(dense))
        tokens = torch.cat((own.expand(prompts, -1, -1), sparse.expand(prompts, -1, -1)), dim=1)
        image = (embedding + dense).expand(prompts, -1, -1, -1)
        tokens, image = self.transformer(image.flatten(2).mT, places.flatten(2).mT, tokens)
        fine = self.output_upscaling(image.mT.unflatten(2, embedding.shape[2:]))  # (P, C / 8, 4 H, 4 W)
        chosen = range(1, len(self.mask_tokens.weight)) if multimask else range(1)
        kernels = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen], dim=1)
        logits = (kernels @ fine.flatten(2)).unflatten(2, fine.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]
