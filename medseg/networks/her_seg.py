"""HER-Seg, segmentation of large images with attention in linear time (2504.06205).

B batch, N = height * width tokens, C channels, h heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_kernels import linear_attention


class RotaryTable(nn.Module):
    """Cosine and sine by which each token turns its channel pairs; the first half of the pairs by row, then by column.

    The table spans all channels, not those of one head. It is saved as in the published checkpoints, (height, width,
    C / 2, 2), and made anew for a grid of another size.

    Args:
        grid: Rows and columns of tokens.
        channels: C; a multiple of 4.
    """

    rotations: Tensor

    def __init__(self, grid: tuple[int, int], channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"channels must be a multiple of 4, half for rows and half for columns, got {channels}")
        self.channels = channels
        self.register_buffer("rotations", self._table(grid))

    def forward(self, grid: tuple[int, int]) -> Tensor:
        """(N, C / 2, 2) for a grid of `grid` rows and columns."""
        table = self.rotations
        if grid != tuple(table.shape[:2]):
            table = self._table(grid).to(table)
        return table.flatten(0, 1)

    def _table(self, grid: tuple[int, int]) -> Tensor:
        pairs = self.channels // 4  # per axis
        speed = 10_000 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        rows, columns = (torch.arange(size, dtype=torch.float64)[:, None] * speed for size in grid)
        shape = (*grid, pairs)
        angle = torch.cat((rows[:, None].expand(shape), columns[None].expand(shape)), dim=-1)
        return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


class DualGatedLinearAttention(nn.Module):
    """Linear attention between a gate on the values and a gate on the output (section 3.2).

    The names of the bottleneck are the published ones, although `up_proj` narrows and `down_proj` widens.

    Args:
        dim: C.
        num_heads: h; must divide C.
        grid: Rows and columns of tokens the position table is made for.
        bias: Whether the projection to queries and keys has one.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], *, bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.grid = num_heads, grid
        self.qk = nn.Linear(dim, 2 * dim, bias=bias)
        self.up_proj = nn.Linear(dim, dim // 4)
        self.down_proj = nn.Linear(dim // 4, dim)
        self.lepe = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.rope = RotaryTable(grid, dim)

    def forward(self, x: Tensor, gate: Tensor | None = None, grid: tuple[int, int] | None = None) -> Tensor:
        """Normalised tokens (B, N, C), and the output gate before its SiLU, alike, to (B, N, C)."""
        grid = grid or self.grid
        q, k = self.qk(x).chunk(2, dim=2)
        v = self.values(x)
        local = self.lepe(v.mT.unflatten(2, grid)).flatten(2).mT
        return linear_attention(q, k, v, self.num_heads, rope=self.rope(grid), add=local, gate=gate)

    def values(self, x: Tensor) -> Tensor:
        """Values (B, N, C), passed through the gated bottleneck."""
        return self.down_proj(F.silu(self.up_proj(x)))


class Mlp(nn.Module):
    """Two linear maps around an exact GELU.

    Args:
        dim: C.
        inner: Channels between the maps.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Encoder block: gated attention and MLP, each added to what it read normalised (fig. 3).

    Args:
        dim: C.
        num_heads: h.
        grid: Rows and columns of tokens.
        mlp_ratio: Inner channels of the MLP per channel.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], *, mlp_ratio: float = 2.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.act_proj = nn.Linear(dim, dim)
        self.attn = DualGatedLinearAttention(dim, num_heads, grid)
        self.out_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C); the gate reads the normalised tokens."""
        tokens = self.norm1(x)
        x = x + self.out_proj(self.attn(tokens, gate=self.act_proj(tokens)))
        return x + self.mlp(self.norm2(x))
