"""SAM 2's memory: frames with their masks become memories, and a new frame attends to them (2408.00714).

Memories are narrow (64 of 256 channels). Values are projected after the attention, which is exact and saves a third of
the work; keys of memories that serve many frames are projected and turned once.

B images, N = g * g tokens of a frame, T memory tokens, C channels, m memory channels, h heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ChannelNorm, linear
from medseg.networks.sam2_hiera import by_rows
from medseg_kernels import rotate
from medseg_kernels.dense import uses_onednn
from medseg_kernels.dense_attention import dense_attention

TOKENS = 1024  # at a time through an MLP on a CPU
POSITION_WEIGHT = 0.1  # of the sine table that is added to a frame before it attends


@lru_cache(maxsize=8)
def axial_rotations(side: int, width: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine by which the channel pairs of a square frame turn: the first half by column, then by row.

    Args:
        side: g, tokens along each axis.
        width: D; a multiple of 4.
        theta: Base of the frequencies.

    Returns:
        Two tensors (g * g, D / 2), tokens row by row; shared, so not to be written to.
    """
    with torch.inference_mode(mode=False):  # a run may come first, a training later: both read the same tensors
        speed = theta ** -(torch.arange(0, width, 4, dtype=torch.float64) / width)
        at = torch.arange(side * side)
        angle = torch.cat(((at % side)[:, None] * speed, (at // side)[:, None] * speed), dim=1)
        return angle.cos().float(), angle.sin().float()


@lru_cache(maxsize=8)
def sine_places(grid: tuple[int, int], channels: int) -> Tensor:
    """Fixed code of each place: sines and cosines of its row, then of its column, (1, C, H, W); shared."""
    half = channels // 2
    with torch.inference_mode(mode=False):  # as above
        slow = 10_000.0 ** (2 * torch.div(torch.arange(half), 2, rounding_mode="floor").double() / half)
        parts = []
        for size in grid:
            place = 2 * torch.pi * torch.arange(1, size + 1, dtype=torch.float64) / (size + 1e-6)
            angle = place[:, None] / slow
            parts.append(torch.where(torch.arange(half) % 2 == 0, angle.sin(), angle.cos()).float())
        rows, columns = parts
        square = torch.cat((rows[:, None].expand(-1, grid[1], -1), columns.expand(grid[0], -1, -1)), dim=2)
        return square.permute(2, 0, 1)[None]


class RoPEAttention(nn.Module):
    """Attention of a frame to itself or to a memory bank, queries and keys turned by their places.

    Args:
        embedding_dim: C, channels of queries and of the output.
        num_heads: h; must divide C.
        kv_in_dim: Channels of keys and values before their projection; C if not given.
        rope_theta: Base of the frequencies.
        dropout: Share of weights that are dropped in training.
    """

    def __init__(
        self,
        embedding_dim: int,
        num_heads: int,
        *,
        kv_in_dim: int | None = None,
        rope_theta: float = 10_000.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.theta, self.dropout = num_heads, rope_theta, dropout
        kv_in_dim = kv_in_dim or embedding_dim
        self.q_proj = nn.Linear(embedding_dim, embedding_dim)
        self.k_proj = nn.Linear(kv_in_dim, embedding_dim)
        self.v_proj = nn.Linear(kv_in_dim, embedding_dim)
        self.out_proj = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, unrotated: int = 0) -> Tensor:
        """Attend from one square frame to whole frames and, behind them, `unrotated` keys without a place.

        (B, N, C), (B, T, C_kv) and (B, T, C_kv) to (B, N, C).
        """
        return self.look(q, self.keys(k, q.shape[1], unrotated=unrotated), v)

    def keys(self, k: Tensor, tokens: int, *, unrotated: int = 0) -> Tensor:
        """Keys of whole frames of `tokens` and `unrotated` more, (B, T, C_kv), projected and turned, (B, T, h, D)."""
        cos, sin = self.rotations(tokens, k.device)
        keys = linear(self.k_proj, k).unflatten(2, (self.num_heads, -1))
        return rotate(keys, cos, sin, unrotated=unrotated)

    def look(self, q: Tensor, keys: Tensor, v: Tensor) -> Tensor:
        """Attend from one square frame (B, N, C) to what `keys` made, with values (B, T, C_kv), to (B, N, C)."""
        heads = (self.num_heads, -1)
        cos, sin = self.rotations(q.shape[1], q.device)
        queries = linear(self.q_proj, q).unflatten(2, heads)
        if self.training and self.dropout:  # dropped weights do not add up to one: values must be projected first
            turned, values = rotate(queries, cos, sin), self.v_proj(v).unflatten(2, heads)
            parts = (x.transpose(1, 2) for x in (turned, keys, values))
            out = F.scaled_dot_product_attention(*parts, dropout_p=self.dropout).transpose(1, 2)
            return self.out_proj(out.flatten(2))
        queries = rotate(queries, cos, sin)
        if v.shape[2] >= queries.shape[3]:
            values = linear(self.v_proj, v).unflatten(2, heads)
            return linear(self.out_proj, dense_attention(queries, keys, values).flatten(2))
        # Weights of a query add up to one, so the projection can wait until the narrow memory is summed.
        summed = dense_attention(queries, keys, v[:, :, None].expand(-1, -1, self.num_heads, -1))  # (B, N, h, C_kv)
        values = torch.einsum("bnhc,hdc->bnhd", summed, self.v_proj.weight.unflatten(0, heads)).flatten(2)
        return linear(self.out_proj, values + self.v_proj.bias)

    def rotations(self, tokens: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Cosine and sine for a square frame of `tokens`, (N, D / 2) each."""
        side = isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"a frame must be square, got {tokens} tokens")
        cos, sin = axial_rotations(side, self.q_proj.out_features // self.num_heads, self.theta)
        return cos.to(device), sin.to(device)


class Memories(NamedTuple):
    """Memories in the form that serves any number of frames.

    Args:
        tokens: What is read, (B, T, m).
        keys: What each layer compares with, (B, T, h, D) each.
    """

    tokens: Tensor
    keys: list[Tensor]

    @staticmethod
    def joined(parts: Sequence[Memories]) -> Memories:
        """Several memories of the same images, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        keys = [torch.cat(layer, dim=1) for layer in zip(*(part.keys for part in parts), strict=True)]
        return Memories(torch.cat([part.tokens for part in parts], dim=1), keys)

    def chosen(self, which: Tensor) -> Memories:
        """From one memory per pool entry, (S, N, ...), the K of each image, `which` (B, K), to (B, K N, ...)."""
        return Memories(self.tokens[which].flatten(1, 2), [keys[which].flatten(1, 2) for keys in self.keys])


class MemoryAttentionLayer(nn.Module):
    """A frame looks at itself, then at the memories, then passes an MLP; each is added to what it read normalised.

    Args:
        channels: C.
        memory_channels: m.
        inner: Channels inside the MLP.
        dropout: Share of each that is dropped in training.
    """

    def __init__(self, channels: int, memory_channels: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = RoPEAttention(channels, 1, dropout=dropout)
        self.cross_attn_image = RoPEAttention(channels, 1, kv_in_dim=memory_channels, dropout=dropout)
        self.linear1 = nn.Linear(channels, inner)
        self.linear2 = nn.Linear(inner, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, N, C), and keys (B, T, 1, D) and values (B, T, m) of the memories, to (B, N, C)."""
        own = self.norm1(x)
        x = x + self.drop(self.self_attn(own, own, own))
        x = x + self.drop(self.cross_attn_image.look(self.norm2(x), keys, values))
        if uses_onednn(x):
            return by_rows(self._mixed, x, TOKENS)
        return self._mixed(x)

    def _mixed(self, x: Tensor) -> Tensor:
        """The MLP, and the tokens it is added to."""
        inner = self.drop(linear(self.linear1, self.norm3(x), "relu"))
        return x + self.drop(linear(self.linear2, inner))


class MemoryAttention(nn.Module):
    """A frame conditioned on memories.

    Args:
        channels: C.
        memory_channels: m.
        layers: How often.
        inner: Channels inside the MLPs.
        dropout: Share that is dropped in training.
    """

    def __init__(
        self,
        channels: int = 256,
        memory_channels: int = 64,
        *,
        layers: int = 4,
        inner: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MemoryAttentionLayer(channels, memory_channels, inner, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, places: Tensor, memories: Memories) -> Tensor:
        """Tokens of a square frame (B, N, C), the code of their places (B or 1, N, C), and memories, to (B, N, C)."""
        x = x + POSITION_WEIGHT * places
        for layer, keys in zip(self.layers, memories.keys, strict=True):
            x = layer(x, keys, memories.tokens)
        return self.norm(x)

    def remember(self, memory: Tensor, places: Tensor, tokens: int, *, unrotated: int = 0) -> Memories:
        """Memory tokens (B, T, m) and the code of their places (B or 1, T, m), prepared for all layers.

        Args:
            memory: Whole frames and, behind them, `unrotated` tokens without a place.
            places: Added to what becomes the keys, not to the values.
            tokens: N of a frame.
            unrotated: Trailing tokens.
        """
        marked = memory + places
        readers = (cast(MemoryAttentionLayer, layer).cross_attn_image for layer in self.layers)
        keys = [reader.keys(marked, tokens, unrotated=unrotated) for reader in readers]
        return Memories(memory, keys)


class MaskDownsampler(nn.Module):
    """A mask at the size of the image to a feature on the embedding's grid: a 16th of each side.

    Args:
        channels: C of the feature.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for width in (1, 4, 16, 64):
            steps.append(nn.Conv2d(width, 4 * width, kernel_size=3, stride=2, padding=1))
            steps += [ChannelNorm(4 * width), nn.GELU()]
        self.encoder = nn.Sequential(*steps, nn.Conv2d(256, channels, kernel_size=1))

    def forward(self, mask: Tensor) -> Tensor:
        """(B, 1, 16 g, 16 g) to (B, C, g, g)."""
        return self.encoder(mask)


class FuserBlock(nn.Module):
    """Mix neighbours channel by channel, then channels cell by cell; added with a learned weight per channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = ChannelNorm(channels)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, g, g) to (B, C, g, g)."""
        inner = F.gelu(self.pwconv1(self.norm(self.dwconv(x)).permute(0, 2, 3, 1)))
        return x + (self.gamma * self.pwconv2(inner)).permute(0, 3, 1, 2)


class Fuser(nn.Module):
    """Two blocks, under the published name.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(FuserBlock(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, g, g) to (B, C, g, g)."""
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """A frame's feature and its mask to a memory.

    Args:
        channels: C.
        memory_channels: m.
    """

    def __init__(self, channels: int = 256, memory_channels: int = 64) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(channels)
        self.pix_feat_proj = nn.Conv2d(channels, channels, kernel_size=1)
        self.fuser = Fuser(channels)
        self.out_proj = nn.Conv2d(channels, memory_channels, kernel_size=1)

    def forward(self, feature: Tensor, logits: Tensor) -> Tensor:
        """Feature (B, C, g, g) and mask logits at the size of the image, (B, 1, 16 g, 16 g), to (B, m, g, g)."""
        mask = 20 * logits.sigmoid() - 10
        return self.out_proj(self.fuser(self.pix_feat_proj(feature) + self.mask_downsampler(mask)))
