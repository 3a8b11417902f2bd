"""DB-SAM's convolution branch, channel attention and the blocks that fuse both branches (2410.04172, section 2).

B images, H W sides of the token grid, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ChannelNorm


class DropPath(nn.Module):
    """Leave out a residual branch for whole images, in training; what stays is scaled up to the same mean.

    Args:
        chance: Of being left out.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same."""
        if not self.training or not self.chance:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.chance
        return x * kept / (1 - self.chance)


class Reduce(nn.Module):
    """Image on a smaller grid.

    Args:
        factor: Pixels per pixel of the result.
        antialias: Whether to smooth first.
    """

    def __init__(self, factor: int, *, antialias: bool) -> None:
        super().__init__()
        self.factor, self.antialias = factor, antialias

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, rows, columns) to (B, 3, rows / factor, columns / factor)."""
        size = (x.shape[2] // self.factor, x.shape[3] // self.factor)
        return F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=self.antialias)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel: Side of the convolution, odd.
        stride: Its step.
        plain: Convolution alone.
        momentum: Of the batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        plain: bool = False,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn = None if plain else nn.BatchNorm2d(out_channels, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, rows, columns) to (B, C_out, rows / stride, columns / stride)."""
        return self.conv(x) if self.bn is None else F.relu(self.bn(self.conv(x)))


STRIDES = {1: (2, 2, 2), 2: (2, 2, 1), 3: (2, 1, 1), 4: (1, 1, 1)}  # of the 3x3 convolutions: all end on one grid


class SpatialPrior(nn.Module):
    """The image through one small convolution network per level, all on the token grid.

    Args:
        dim: C of the results.
        levels: Which of the levels 1 to 4 are there.
        widths: Channels inside.
        pyramid: Factor by which each of the four levels reduces the image first.
        antialias: Whether it smooths then.
        momentum: Of the batch norms.

    Raises:
        ValueError: A level is none of 1 to 4.
    """

    def __init__(
        self,
        dim: int,
        levels: Sequence[int],
        widths: Sequence[int] = (128, 256, 512),
        *,
        pyramid: Sequence[int] = (2, 4, 8, 16),
        antialias: bool = True,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        if not set(levels) <= STRIDES.keys():
            raise ValueError(f"levels must be of {', '.join(map(str, STRIDES))}, got {tuple(levels)}")
        self.levels = tuple(levels)
        for level in self.levels:
            parts: list[nn.Module] = [Reduce(pyramid[level - 1], antialias=antialias)]
            read = 3
            for width, stride in zip(widths, STRIDES[level], strict=True):
                parts += [
                    ConvNorm(read, width, 3, stride=stride, momentum=momentum),
                    ConvNorm(width, width, 1, momentum=momentum),
                ]
                read = width
            parts += [ConvNorm(read, dim, 1, plain=True), ChannelNorm(dim)]
            self.add_module(f"lcb{level}", nn.Sequential(*parts))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, rows, columns) to one (B, H, W, C) per level."""
        return [self.get_submodule(f"lcb{level}")(x).permute(0, 2, 3, 1) for level in self.levels]


class SqueezeExcite(nn.Module):
    """Weigh each channel by what all channels are on average (Hu et al. 2018).

    Args:
        dim: C.
        inner: Channels inside.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, inner, kernel_size=1, bias=False)
        self.fc2 = nn.Conv2d(inner, dim, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x * self.fc2(F.gelu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class ChannelAttention(nn.Module):
    """Depth-wise convolution and channel weights, added to the tokens (section 2.2).

    Args:
        dim: C.
        expand_ratio: Inner channels per channel.
        se_ratio: Channels inside the weighing per inner channel, rounded to a multiple of 8.
    """

    def __init__(self, dim: int, *, expand_ratio: float = 1.0, se_ratio: float = 0.25) -> None:
        super().__init__()
        inner = int(expand_ratio * dim)
        self.pre_norm = ChannelNorm(dim)
        self.conv_dw = nn.Conv2d(dim, inner, kernel_size=3, padding=1, groups=dim, bias=False)
        self.se = SqueezeExcite(inner, max(8, int(se_ratio * inner + 4) // 8 * 8))
        self.conv_pw = nn.Conv2d(inner, dim, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return x + self.conv_pw(self.se(F.gelu(self.conv_dw(self.pre_norm(x)))))


class FeedForward(nn.Module):
    """Two linear maps around an exact GELU.

    Args:
        dim: C.
        inner: Channels inside.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


def squeeze(dim: int, reduction: int) -> nn.Sequential:
    """Through a narrow layer and back, (..., C) to (..., C): the logits of a gate."""
    inner = dim // reduction
    return nn.Sequential(
        nn.Linear(dim, inner, bias=False), nn.SiLU(), nn.LayerNorm(inner), nn.Linear(inner, dim, bias=False)
    )


class Fusion(nn.Module):
    """Mix of tokens and convolution maps, then a feed-forward part; subclasses say how to mix.

    Args:
        dim: C.
        ffn_ratio: Inner channels of the feed-forward part per channel.
        drop_path: What its result passes in training.
    """

    def __init__(self, dim: int, *, ffn_ratio: float = 4.0, drop_path: nn.Module | None = None) -> None:
        super().__init__()
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, int(ffn_ratio * dim))
        self.drop_path = drop_path or nn.Identity()

    def forward(self, tokens: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Tokens (B, H, W, C) and maps alike to (B, H, W, C)."""
        mixed = self.mix(tokens, maps)
        return mixed + self.drop_path(self.ffn(self.ffn_norm(mixed)))

    def mix(self, tokens: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, H, W, C) from tokens and maps alike."""
        raise NotImplementedError


class PointwiseGate(Fusion):
    """One gate per cell and channel, opened by both sides (fig. 2, fusion); it lets the one map through.

    Args:
        dim: C.
        reduction: C per inner channel of the gates.
        options: Those of `Fusion`.
    """

    def __init__(self, dim: int, *, reduction: int = 12, **options: Any) -> None:
        super().__init__(dim, **options)
        self.fc_spatial = squeeze(dim, reduction)
        self.fc_channel = squeeze(dim, reduction)

    def mix(self, tokens: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, H, W, C) from tokens and one map alike."""
        (other,) = maps
        return tokens.lerp(other, (self.fc_spatial(other) + self.fc_channel(tokens)).sigmoid())


class SpatialChannelGate(Fusion):
    """A gate per cell, opened by the map, and one per channel, opened by the mean of the tokens, added up.

    Args:
        dim: C.
        reduction: C per inner channel of the gates.
        options: Those of `Fusion`.
    """

    def __init__(self, dim: int, *, reduction: int = 12, **options: Any) -> None:
        super().__init__(dim, **options)
        self.fc_spatial = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1, bias=False))
        self.fc_channel = squeeze(dim, reduction)

    def mix(self, tokens: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, H, W, C) from tokens and one map alike."""
        (other,) = maps
        average = tokens.mean((1, 2), keepdim=True)
        return tokens.lerp(other, (self.fc_spatial(other) + self.fc_channel(average)).sigmoid())


class MultiLevelGate(Fusion):
    """Softmax over the tokens and all maps, per cell and channel.

    Args:
        dim: C.
        inputs: Maps it is built for; it may get fewer.
        reduction: C per inner channel of the gates.
        options: Those of `Fusion`.
    """

    def __init__(self, dim: int, *, inputs: int, reduction: int = 12, **options: Any) -> None:
        super().__init__(dim, **options)
        self.conv_fc = nn.ModuleList(squeeze(dim, reduction) for _ in range(inputs))
        self.vit_fc = squeeze(dim, reduction)

    def mix(self, tokens: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """(B, H, W, C) from tokens and maps alike."""
        logits = [gate(x) for gate, x in zip(self.conv_fc, maps, strict=False)]
        shares = torch.stack([*logits, self.vit_fc(tokens)]).softmax(0)
        return (shares * torch.stack([*maps, tokens])).sum(0)


FUSIONS: dict[str, type[Fusion]] = {
    "DANE3": PointwiseGate,
    "DANE": SpatialChannelGate,
    "MultiConvFeatsDANE": MultiLevelGate,
}
