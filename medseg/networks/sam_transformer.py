"""Segment Anything's two-way transformer: a few tokens and an image that read each other (2304.02643, section A).

SAM, SAM 2, SAM2-SGP and HER-Seg draw their masks with it. Its tokens are few and the image's many, so its cross
attention never projects the image: the projections are moved to the tokens' side, which is exact and leaves less than
half of the work.

P prompts, T tokens, N = H W image tokens, C channels, h heads, E channels inside an attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import linear
from medseg_kernels.dense import Activation, dense, uses_onednn

Pool = Callable[..., Tensor]  # image cells (P, N, C), perhaps with their grid, to the same


class Mlp(nn.Module):
    """Two linear maps around an activation.

    Args:
        dim: C.
        inner: Channels between the maps.
        activation: Exact GELU in the image encoder, ReLU in the decoder.
    """

    def __init__(self, dim: int, inner: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.lin1 = nn.Linear(dim, inner)
        self.lin2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return linear(self.lin2, linear(self.lin1, x, self.activation))


class Head(nn.Module):
    """Linear maps with an activation between them.

    Args:
        sizes: Channels in front of each map, and behind the last.
        activation: Between the maps.
    """

    def __init__(self, *sizes: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.activation: Activation = activation
        self.layers = nn.ModuleList(nn.Linear(read, out) for read, out in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """(..., first size) to (..., last size)."""
        for index, layer in enumerate(self.layers, start=1):
            bend = self.activation if index < len(self.layers) else "none"
            x = linear(cast(nn.Linear, layer), x, bend)
        return x


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

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *, to: Tensor | None = None
    ) -> Tensor:
        """Attend, and add the result to something.

        Args:
            q: Queries, (P, Nq, C).
            k: Keys, (P, Nk, C).
            v: Values, alike.
            bias: Of each head and key, (P, h, Nk).
            to: What the result is added to, (P, Nq, C).

        Returns:
            (P, Nq, C).
        """
        rows = self.num_heads * min(q.shape[1], k.shape[1])
        if rows < self.inner and q.shape[1] < k.shape[1]:
            return added(self._few_queries(q, k, v, bias), to)
        if rows < self.inner and q.shape[1] > k.shape[1] and bias is None:
            return self._few_keys(q, k, v, to)
        q, k, v = self._projected(q, k, v)
        mask = None if bias is None else bias[:, :, None].expand(-1, -1, q.shape[2], -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return added(self.out_proj(out.transpose(1, 2).flatten(2)), to)

    def _few_queries(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """(q Wk) k^T instead of q (k Wk)^T, and (A v) Wv instead of A (v Wv).

        The key bias adds the same to all logits of a query, so softmax drops it; the weights of a query sum to one,
        so the value bias is added once.
        """
        queries = self._scaled(q) @ self._by_head(self.k_proj.weight)  # (P, h, T, C)
        logits = _products(queries.flatten(1, 2), k)  # (P, h T, N)
        if bias is not None:
            logits = (logits.unflatten(1, (self.num_heads, -1)) + bias[:, :, None]).flatten(1, 2)
        weights = logits.softmax(-1)
        seen = (weights @ v).unflatten(1, (self.num_heads, -1))  # (P, h, T, C)
        out = seen @ self._by_head(self.v_proj.weight).mT  # (P, h, T, E / h)
        return self.out_proj(out.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def _few_keys(self, q: Tensor, k: Tensor, v: Tensor, to: Tensor | None) -> Tensor:
        """(k Wq) q^T instead of k (q Wq)^T, and A (v Wo) instead of (A v) Wo.

        The query bias met by a key is one number per head and key; the output bias goes in equal parts to the values
        of all heads, since the weights of each add up to one.
        """
        heads = self.num_heads
        scale = (self.inner // heads) ** -0.5
        keys = self._heads(self.k_proj(k)) * scale  # (P, h, T, E / h)
        toward = (keys @ self._by_head(self.q_proj.weight)).flatten(1, 2)  # (P, h T, C)
        bias = (keys @ self.q_proj.bias.view(heads, -1, 1)).flatten(1, 2)  # (P, h T, 1)
        logits = _products(toward, q) + bias
        weights = logits.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)  # (P, h T, N): short rows are slow to sum
        outward = self.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # (h, E / h, C)
        values = (self._heads(self.v_proj(v)) @ outward).flatten(1, 2) + self.out_proj.bias / heads  # (P, h T, C)
        return weights.mT @ values if to is None else torch.baddbmm(to, weights.mT, values)

    def _projected(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every projection where its name says, (P, h, tokens, E / h) each."""
        return self._heads(self.q_proj(q)), self._heads(self.k_proj(k)), self._heads(self.v_proj(v))

    def _heads(self, x: Tensor) -> Tensor:
        """(P, tokens, E) to (P, h, tokens, E / h)."""
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _scaled(self, q: Tensor) -> Tensor:
        return self._heads(self.q_proj(q)) * (self.inner // self.num_heads) ** -0.5

    def _by_head(self, weight: Tensor) -> Tensor:
        """(E, C) to (h, E / h, C)."""
        return weight.unflatten(0, (self.num_heads, -1))


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Products of all rows of (P, n, C) with all rows of (P, m, C), prompt by prompt: (P, n, m)."""
    if not uses_onednn(a, b):
        return a @ b.mT
    return torch.stack([dense(rows, columns) for rows, columns in zip(a, b, strict=True)])


def added(x: Tensor, to: Tensor | None) -> Tensor:
    """`x`, or its sum with `to`."""
    return x if to is None else to + x


def relu_mlp(dim: int, inner: int) -> nn.Module:
    """The MLP of SAM's decoder, under its names."""
    return Mlp(dim, inner, "relu")


class TwoWayBlock(nn.Module):
    """Tokens attend to each other, to the image, pass an MLP; then the image attends to the tokens.

    Args:
        channels: C.
        num_heads: h.
        mlp_dim: Inner channels of the MLP.
        first: The tokens are then their own position code, and replaced by their self attention.
        mlp: Makes the MLP, whose names differ among networks.
        cross: Class of the two attentions between tokens and image.
        downsample: C / E of those two.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_dim: int,
        *,
        first: bool,
        mlp: Callable[[int, int], nn.Module] = relu_mlp,
        cross: type[DecoderAttention] = DecoderAttention,
        downsample: int = 2,
    ) -> None:
        super().__init__()
        self.first = first
        self.self_attn = DecoderAttention(channels, num_heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = cross(channels, num_heads, downsample=downsample)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = mlp(channels, mlp_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = cross(channels, num_heads, downsample=downsample)

    def forward(
        self, tokens: Tensor, image: Tensor, code: Tensor, places: Tensor, pool: Pool | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step of both sides.

        Args:
            tokens: (P, T, C).
            image: (P, N, C).
            code: What marks the places of the tokens, alike.
            places: What marks those of the image, (P or 1, N, C).
            pool: What values and straight path read in place of the image; the image itself if not given.

        Returns:
            Tokens and image, renewed.
        """
        tokens = self.among(tokens, code)
        keys, image = image + places, image if pool is None else pool(image)
        tokens = self.norm2(self.cross_attn_token_to_image(tokens + code, keys, image, to=tokens))
        tokens = self.norm3(tokens + self.mlp(tokens))
        if pool is not None:
            keys, image = image + places, pool(image)
        return tokens, self.norm4(self.cross_attn_image_to_token(keys, tokens + code, tokens, to=image))

    def among(self, tokens: Tensor, code: Tensor) -> Tensor:
        """Tokens (P, T, C) and their code, alike, after their look at each other."""
        if self.first:
            return self.norm1(self.self_attn(tokens, tokens, tokens))
        marked = tokens + code
        return self.norm1(tokens + self.self_attn(marked, marked, tokens))


class TwoWayTransformer(nn.Module):
    """Two-way blocks, then a last look of the tokens at the image.

    Args:
        blocks: One after the other.
        channels: C.
        num_heads: h of the last look.
        pool: What values and straight paths read in place of the image; the image itself if not given.
    """

    def __init__(
        self, blocks: Sequence[TwoWayBlock], channels: int, num_heads: int, *, pool: Pool | None = None
    ) -> None:
        super().__init__()
        self.pool = pool
        self.layers = nn.ModuleList(blocks)
        self.final_attn_token_to_image = DecoderAttention(channels, num_heads, downsample=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, image: Tensor, places: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Image (P, C, H, W), its places (1, C, H, W), tokens (P, T, C) to tokens and image, (P, N, C), renewed."""
        code, grid = tokens, (image.shape[2], image.shape[3])
        pool = None if self.pool is None else partial(self.pool, grid=grid)
        image, places = image.flatten(2).mT, places.flatten(2).mT
        for layer in self.layers:
            tokens, image = layer(tokens, image, code, places, pool)
        keys, values = image + places, image if pool is None else pool(image)
        return self.last_look(tokens, code, keys, values), values

    def last_look(self, tokens: Tensor, code: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Tokens (P, T, C) with their code, alike, after they read keys and values, (P, N, C)."""
        return self.norm_final_attn(tokens + self.final_attn_token_to_image(tokens + code, keys, values))
