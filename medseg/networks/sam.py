"""Segment Anything's parts, under the key names of its published checkpoints (2304.02643).

B batch, H W sides of the token grid, C channels, h heads, D = C / h head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_kernels import relative_attention


class Attention(nn.Module):
    """Multi-head attention over a grid, or its windows, with a learned bias by row and column offset.

    Args:
        dim: C.
        num_heads: h; must divide C.
        grid: Rows and columns of keys that the tables are made for; they are resized for others.
        qkv_bias: Whether the fused projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, dim // num_heads))

    def forward(self, x: Tensor, window: int | None = None) -> Tensor:
        """(B, H, W, C) to (B, H, W, C); `window` is the side of the windows, None attends over the whole grid."""
        q, k, v = self.qkv(x).unflatten(3, (3, self.num_heads, -1)).unbind(3)  # (B, H, W, h, D) each
        pad_k, pad_v = self._padding(k)
        out = relative_attention(q, k, v, self.rel_pos_h, self.rel_pos_w, window=window, pad_k=pad_k, pad_v=pad_v)
        return self.proj(out.flatten(3))

    def _padding(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value, (h, D), of zeros that SAM puts behind the grid before it projects: the bias alone."""
        if self.qkv.bias is None:
            nothing = k.new_zeros(k.shape[3:])
            return nothing, nothing
        _, pad_k, pad_v = self.qkv.bias.unflatten(0, (3, self.num_heads, -1)).unbind()
        return pad_k, pad_v


class Mlp(nn.Module):
    """Two linear maps around an exact GELU.

    Args:
        dim: C.
        inner: Channels between the maps.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, inner)
        self.lin2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.lin2(F.gelu(self.lin1(x)))


class Block(nn.Module):
    """Attention and MLP, each added to what it read normalised.

    Args:
        dim: C.
        num_heads: h.
        grid: What the tables of the attention are made for: the window, or the whole grid.
        window: Side of the windows; 0 attends over the whole grid.
        mlp_ratio: Inner channels of the MLP per channel.
        norm_eps: 1e-6 in SAM and MedSAM, 1e-5 in DB-SAM, on the same weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        *,
        window: int = 0,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.window = window or None
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, grid)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.attn(self.norm1(x), self.window)
        return x + self.mlp(self.norm2(x))
