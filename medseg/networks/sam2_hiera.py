"""SAM 2's image encoder: Hiera, a vision transformer in four stages, and a feature pyramid (2408.00714, 2306.00989).

Most blocks attend within windows. The first block of a stage halves the grid by pooling its queries, still in the
windows of the stage before; a few blocks of the third stage attend over the whole grid.

B images, H W sides of a block's token grid, C channels, h heads, D = C / h head width, M window side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam_transformer import Head
from medseg_kernels import window_attention
from medseg_kernels.dense import dense, uses_onednn
from medseg_kernels.dense_attention import dense_attention

ROWS = 16  # of the grid at a time, where nothing else sets a number


@dataclass(frozen=True, kw_only=True)
class HieraConfig:
    """Sizes of a Hiera.

    Args:
        embed_dim: C of the first stage; it doubles with each.
        num_heads: h of the first stage; it doubles with each.
        stages: Blocks per stage.
        global_blocks: Blocks that attend over the whole grid, counted through all stages.
        windows: M per stage.
        pos_grid: Sides of the learned position table, which is resized to the grid of the image.
    """

    embed_dim: int = 96
    num_heads: int = 1
    stages: tuple[int, ...] = (1, 2, 7, 2)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    windows: tuple[int, ...] = (8, 4, 14, 7)
    pos_grid: tuple[int, int] = (7, 7)

    @property
    def widths(self) -> list[int]:
        """C of each stage."""
        return [self.embed_dim << stage for stage in range(len(self.stages))]


class HieraAttention(nn.Module):
    """Multi-head attention within windows, whose queries may be pooled.

    The published code fills the grid up to whole windows with zeros before it projects, so that filled places are keys
    that hold the projection's bias. Here they stay inside the attention.

    Args:
        dim: Channels of the input.
        dim_out: C of the output.
        num_heads: h; must divide C.
        window: M; 0 attends over the whole grid.
        pool: Keep every second query per axis, the largest of each 2 x 2 cells.
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, *, window: int, pool: bool) -> None:
        super().__init__()
        self.num_heads, self.window, self.pool = num_heads, window, pool
        self.qkv: nn.Module = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) to (B, H, W, C), or (B, H // 2, W // 2, C) where queries are pooled."""
        heads = (self.num_heads, -1)
        qkv = dense(x, self.qkv.weight, self.qkv.bias) if isinstance(self.qkv, nn.Linear) else self.qkv(x)
        q, k, v = (part.unflatten(3, heads) for part in qkv.chunk(3, dim=3))  # (B, H, W, h, D) each
        if self.pool:
            q = halved(q.flatten(3)).unflatten(3, heads)
        return dense(self._attend(q, k, v).flatten(3), self.proj.weight, self.proj.bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values (B, H, W, h, D) to the queries' shape."""
        heads = (self.num_heads, -1)
        if not self.window:
            return dense_attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)).unflatten(1, q.shape[1:3])
        _, pad_k, pad_v = self.bias().unflatten(0, (3, *heads)).unbind()
        stride = (2, 2) if self.pool else None
        window = (self.window, self.window)
        return window_attention(q, k, v, window, stride=stride, pad_k=pad_k, pad_v=pad_v)

    def bias(self) -> Tensor:
        """What the projection makes of zeros, (3 C,)."""
        return self.qkv.get_parameter("bias")


def halved(x: Tensor) -> Tensor:
    """The largest of each 2 x 2 cells, (B, H, W, C) to (B, H // 2, W // 2, C); a last odd row or column is dropped."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), kernel_size=2).permute(0, 2, 3, 1)


class HieraBlock(nn.Module):
    """Attention and MLP, each added to what it read; where the width grows, the straight path is projected as well.

    Windows never look outside their rows. Without gradients a CPU therefore takes one row of windows after the other
    through the whole block, and nothing in between leaves the cache.

    Args:
        dim: Channels of the input.
        dim_out: C of the output.
        num_heads: h.
        window: M of the attention; 0 attends over the whole grid.
        pool: Halve the grid.
    """

    def __init__(self, dim: int, dim_out: int, num_heads: int, *, window: int, pool: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = HieraAttention(dim, dim_out, num_heads, window=window, pool=pool)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = Head(dim_out, 4 * dim_out, dim_out, activation="gelu")
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C_in) to (B, H, W, C), or to half the sides."""
        if not uses_onednn(x):
            return self._mixed(self._attended(x))
        if self.attn.window:
            return by_rows(lambda rows: self._mixed(self._attended(rows)), x, self.attn.window)
        return by_rows(self._mixed, self._attended(x), ROWS)

    def _attended(self, x: Tensor) -> Tensor:
        """The first half of the block."""
        normed = self.norm1(x)
        if self.proj is not None:
            x = dense(normed, self.proj.weight, self.proj.bias)
        if self.attn.pool:
            x = halved(x)
        return x + self.attn(normed)

    def _mixed(self, x: Tensor) -> Tensor:
        """The second half."""
        return x + self.mlp(self.norm2(x))


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """What a function that never looks outside `rows` rows of an image makes of (B, H, ...), a few rows at a time."""
    return torch.cat([torch.cat([function(part) for part in image.split(rows, dim=1)], dim=1) for image in x.split(1)])


class PatchEmbed(nn.Module):
    """One token per 4 x 4 pixels, from overlapping patches.

    Args:
        dim: C of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=7, stride=4, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 4 H, 4 W) to (B, H, W, C)."""
        return self.proj(x).permute(0, 2, 3, 1)


class Hiera(nn.Module):
    """The trunk: blocks of four stages (2306.00989).

    Args:
        config: Sizes.
    """

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        dim, side = config.embed_dim, config.windows[0]
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *config.pos_grid))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, dim, side, side))
        self.blocks = nn.ModuleList()
        self.ends: list[int] = []  # last block of each stage
        for stage, depth in enumerate(config.stages):
            for index in range(depth):
                new = stage > 0 and index == 0
                window = config.windows[stage - new]  # the pooling block keeps the windows of the stage before
                if len(self.blocks) in config.global_blocks:
                    window = 0
                width, heads = config.widths[stage], config.num_heads << stage
                self.blocks.append(HieraBlock(dim, width, heads, window=window, pool=new))
                dim = width
            self.ends.append(len(self.blocks) - 1)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_window, std=0.02)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, rows, columns) to the tokens behind each stage, (B, H, W, C), H and W a quarter, an eighth, ..."""
        x = self.patch_embed(image)
        x = x + self.places((x.shape[1], x.shape[2]))
        found = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ends:
                found.append(x)
        return found

    def places(self, grid: tuple[int, int]) -> Tensor:
        """What marks each place: a coarse table resized to the grid, and a fine one repeated over it, (1, H, W, C)."""
        side = self.pos_embed_window.shape[2]
        times = [-(-size // side) for size in grid]
        fine = self.pos_embed_window.permute(0, 2, 3, 1).repeat(1, *times, 1)[:, : grid[0], : grid[1]]
        rows, columns = (
            resizing(small, size, self.pos_embed) for small, size in zip(self.pos_embed.shape[2:], grid, strict=True)
        )
        return torch.einsum("yr,zcrs,xs->zyxc", rows, self.pos_embed, columns) + fine


def resizing(small: int, size: int, like: Tensor) -> Tensor:
    """What bicubic resizing of one axis does, as a matrix (size, small): all axes at once cost far more."""
    unit = torch.eye(small, dtype=like.dtype, device=like.device)[None, None]
    return F.interpolate(unit, (size, small), mode="bicubic")[0, 0]


class Lateral(nn.Module):
    """One level of the neck, under its published name.

    Args:
        dim: Channels of the stage.
        out: Channels of the level.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out, kernel_size=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) to (B, out, H, W)."""
        return dense(tokens, self.conv.weight.flatten(1), self.conv.bias).permute(0, 3, 1, 2)


class Neck(nn.Module):
    """Stages to levels of one width; the third level also takes in the fourth, which is then dropped.

    Args:
        widths: Channels of the stages.
        out: Channels of the levels.
    """

    def __init__(self, widths: Sequence[int], out: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Lateral(width, out) for width in reversed(widths))

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Tokens of four stages, (B, H, W, C) each, to three levels (B, out, H, W), the finest first."""
        return [*(self.lateral(number)(stages[number]) for number in range(2)), self.deep(stages)]

    def lateral(self, number: int) -> Lateral:
        """What makes a level of the tokens of its own stage; published files count from the coarsest."""
        return cast(Lateral, self.convs[len(self.convs) - 1 - number])

    def deep(self, stages: Sequence[Tensor]) -> Tensor:
        """Level 2."""
        coarse = F.interpolate(self.lateral(3)(stages[3]), scale_factor=2.0, mode="nearest")
        return self.lateral(2)(stages[2]) + coarse


class ImageEncoder(nn.Module):
    """Trunk and neck.

    Args:
        config: Sizes of the trunk.
        channels: Channels of the levels.
    """

    def __init__(self, config: HieraConfig, channels: int = 256) -> None:
        super().__init__()
        self.trunk = Hiera(config)
        self.neck = Neck(config.widths, channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, rows, columns), sides multiples of 32, to levels of a quarter, an eighth and a 16th of the sides.

        Raises:
            ValueError: A side is no multiple of 32.
        """
        return self.neck(self.stages(image))

    def stages(self, image: Tensor) -> list[Tensor]:
        """Tokens of the four stages, for an image as in `forward`."""
        if image.shape[2] % 32 or image.shape[3] % 32:
            raise ValueError(f"height and width must be multiples of 32 pixels, got {tuple(image.shape[2:])}")
        return self.trunk(image)
