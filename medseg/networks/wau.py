"""Window Attention Upsample in a residual U-Net (Li, Cai, Gao, Hu: "More than Encoder", arXiv 2106.10637).

The up-sampling step of a decoder is an attention: queries come from the fine lateral feature, keys and values from
the coarse deep one, within windows that cover the same place. B batch, d spatial rank, S fine and s coarse grid,
r = S / s, C_l lateral and C_d deep channels, E = h * c embedding of h heads, M window side on the coarse grid.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from medseg.networks.blocks import (
    ChannelNorm,
    InstanceNorm,
    ResidualBlock,
    conv,
    conv_transpose,
    interpolate_to,
)
from medseg.networks.grey_values import GreyValuePosterior
from medseg_kernels.window_attention import window_attention

Upsample = Literal["transpose-conv", "linear", "wau"]


def relative_cells(window: int, ratio: int) -> Tensor:
    """Row of the position table for each (query, key) of one axis, (r*M, M), in [0, r*M + r*(M-1)).

    The distance between the cell centres is i + 1/2 - r*(j + 1/2) fine cells; the row counts it from the smallest.
    """
    queries, keys = torch.arange(ratio * window), ratio * torch.arange(window)
    return queries[:, None] - keys[None, :] + ratio * (window - 1)


class AttentionDecoder(nn.Module):
    """Bring a deep feature to the lateral grid by attention alone (the paper's AD).

    Args:
        deep_channels: C_d.
        lateral_channels: C_l; also the channels of the result.
        ratio: r per axis, fine cells per coarse cell.
        window: M, on every axis of the coarse grid.
        embed_channels: E; C_l if not given.
        heads: h; must divide E.
        shift: Move both window grids by half a window.
        relative_bias: Learn a bias on the logits from the distance of query and key.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self,
        deep_channels: int,
        lateral_channels: int,
        *,
        ratio: Sequence[int],
        window: int,
        embed_channels: int | None = None,
        heads: int = 4,
        shift: bool = False,
        relative_bias: bool = True,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        embed = embed_channels or lateral_channels
        if embed % heads:
            raise ValueError(f"heads must divide the embedding of {embed} channels, got {heads}")
        cell = conv(spatial_dims)
        self.heads, self.window, self.ratio, self.shift = heads, (window,) * spatial_dims, tuple(ratio), shift
        self.norm_deep, self.norm_lateral = ChannelNorm(deep_channels), ChannelNorm(lateral_channels)
        self.query = nn.Sequential(*_depthwise_then_pointwise(cell, lateral_channels, embed))
        self.key_value = nn.Sequential(*_depthwise_then_pointwise(cell, deep_channels, 2 * embed))
        self.bias = _PositionBias(heads, self.window, self.ratio) if relative_bias else None
        self.project = cell(embed, lateral_channels, kernel_size=1)
        self.mlp = nn.Sequential(
            ChannelNorm(lateral_channels),
            cell(lateral_channels, 2 * lateral_channels, kernel_size=1),
            nn.GELU(),
            cell(2 * lateral_channels, lateral_channels, kernel_size=1),
        )

    def forward(self, deep: Tensor, lateral: Tensor) -> Tensor:
        """(B, C_d, *s) and (B, C_l, *S) to (B, C_l, *S)."""
        deep = self.norm_deep(deep)
        q = self._tokens(self.query(self.norm_lateral(lateral)))
        k, v = (self._tokens(x) for x in self.key_value(deep).chunk(2, dim=1))
        found = tuple(fine // coarse for fine, coarse in zip(q.shape[1:-2], k.shape[1:-2], strict=True))
        whole = all(r * n == size for r, n, size in zip(found, k.shape[1:-2], q.shape[1:-2], strict=True))
        if found != self.ratio or not whole:
            raise ValueError(
                f"the lateral grid must be {self.ratio} times the deep grid, "
                f"got {tuple(lateral.shape[2:])} over {tuple(deep.shape[2:])}"
            )
        bias = self.bias() if self.bias is not None else None
        attended = window_attention(q, k, v, self.window, bias=bias, shift=self.shift)
        out = self.project(attended.flatten(-2).movedim(-1, 1))
        return out + self.mlp(out)

    def _tokens(self, x: Tensor) -> Tensor:
        """(B, E, *grid) to (B, *grid, h, c)."""
        return x.movedim(1, -1).unflatten(-1, (self.heads, -1))


class _PositionBias(nn.Module):
    """A learned table of offsets, read out for every pair of a window."""

    def __init__(self, heads: int, window: Sequence[int], ratio: Sequence[int]) -> None:
        super().__init__()
        rows = [r * m + r * (m - 1) for m, r in zip(window, ratio, strict=True)]
        self.table = nn.Parameter(torch.zeros(heads, *rows).normal_(std=0.02))
        for axis, (m, r) in enumerate(zip(window, ratio, strict=True)):
            self.register_buffer(f"cells_{axis}", relative_cells(m, r), persistent=False)

    def forward(self) -> Tensor:
        """(h, queries of a window, keys of a window)."""
        bias = self.table
        rank = bias.dim() - 1
        for axis in range(rank):
            cells = self.get_buffer(f"cells_{axis}")
            bias = bias.index_select(1, cells.flatten()).unflatten(1, cells.shape).movedim((1, 2), (-2, -1))
        # (h, q_1, k_1, ..., q_d, k_d): queries of all axes first, then keys
        order = [0, *range(1, 2 * rank + 1, 2), *range(2, 2 * rank + 1, 2)]
        return bias.permute(order).flatten(rank + 1).flatten(1, rank)


def _depthwise_then_pointwise(cell: type[nn.Conv2d] | type[nn.Conv3d], channels: int, out: int) -> list[nn.Module]:
    return [cell(channels, channels, kernel_size=3, padding=1, groups=channels), cell(channels, out, kernel_size=1)]


class WindowAttentionUpsample(nn.Module):
    """Up-sampling block for any decoder with lateral connections: attention plus linear residual (the paper's AU).

    Args:
        deep_channels: C_d.
        lateral_channels: C_l; also the channels of the result.
        ratio: r per axis.
        spatial_dims: 2 or 3.
        window: M; 8 in 2D and 4 in 3D if not given.
        embed_channels: E; C_l if not given.
        heads: h.
        shift: Move both window grids by half a window.
        relative_bias: Learn a bias on the logits from the distance of query and key.
    """

    def __init__(
        self,
        deep_channels: int,
        lateral_channels: int,
        *,
        ratio: Sequence[int] = (2, 2, 2),
        spatial_dims: int = 3,
        window: int | None = None,
        embed_channels: int | None = None,
        heads: int = 4,
        shift: bool = False,
        relative_bias: bool = True,
    ) -> None:
        super().__init__()
        self.decoder = AttentionDecoder(
            deep_channels,
            lateral_channels,
            ratio=ratio,
            window=window or {2: 8, 3: 4}[spatial_dims],
            embed_channels=embed_channels,
            heads=heads,
            shift=shift,
            relative_bias=relative_bias,
            spatial_dims=spatial_dims,
        )
        self.residual = conv(spatial_dims)(deep_channels, lateral_channels, kernel_size=1)

    def forward(self, deep: Tensor, lateral: Tensor) -> Tensor:
        """(B, C_d, *s) and (B, C_l, *S) to (B, C_l, *S)."""
        return self.decoder(deep, lateral) + interpolate_to(self.residual(deep), tuple(lateral.shape[2:]))


class LinearUpsample(nn.Module):
    """Point-wise convolution, then linear interpolation to the lateral grid."""

    def __init__(self, deep_channels: int, lateral_channels: int, *, spatial_dims: int = 3) -> None:
        super().__init__()
        self.project = conv(spatial_dims)(deep_channels, lateral_channels, kernel_size=1)

    def forward(self, deep: Tensor, lateral: Tensor) -> Tensor:
        """(B, C_d, *s) and (B, C_l, *S) to (B, C_l, *S)."""
        return interpolate_to(self.project(deep), tuple(lateral.shape[2:]))


class TransposedUpsample(nn.Module):
    """Transposed convolution with kernel and stride `ratio`; the lateral feature only fixes the grid."""

    def __init__(
        self, deep_channels: int, lateral_channels: int, *, ratio: Sequence[int], spatial_dims: int = 3
    ) -> None:
        super().__init__()
        self.expand = conv_transpose(spatial_dims)(
            deep_channels, lateral_channels, kernel_size=tuple(ratio), stride=tuple(ratio)
        )

    def forward(self, deep: Tensor, lateral: Tensor) -> Tensor:
        """(B, C_d, *s) and (B, C_l, *S) to (B, C_l, *S)."""
        return self.expand(deep, output_size=list(lateral.shape[2:]))


def build_upsample(
    kind: Upsample,
    deep_channels: int,
    lateral_channels: int,
    *,
    ratio: Sequence[int],
    spatial_dims: int = 3,
    shift: bool = False,
    heads: int = 4,
    window: int | None = None,
) -> nn.Module:
    """The block that `forward(deep, lateral)` brings a deep feature to the lateral grid and channels.

    Raises:
        ValueError: `kind` is none of the three.
    """
    match kind:
        case "wau":
            return WindowAttentionUpsample(
                deep_channels,
                lateral_channels,
                ratio=ratio,
                spatial_dims=spatial_dims,
                shift=shift,
                heads=heads,
                window=window,
            )
        case "linear":
            return LinearUpsample(deep_channels, lateral_channels, spatial_dims=spatial_dims)
        case "transpose-conv":
            return TransposedUpsample(deep_channels, lateral_channels, ratio=ratio, spatial_dims=spatial_dims)
    raise ValueError(f"upsample must be transpose-conv, linear or wau, got {kind!r}")


class WAUNet(nn.Module):
    """Residual U-Net whose decoder up-samples by window attention, stage by stage as configured.

    Args:
        in_channels: Channels of the image.
        out_channels: Channels of the prediction, at the resolution of the image.
        channels: C of each level, finest first; each further level halves the grid.
        upsample: One kind for every decoder stage, or one per stage, deepest first.
        stem: Side of the cell in which the image enters, 1 or even; 2 works on a grid of half the resolution and still
            predicts every voxel, at about an eighth of the cost.
        shift: Shift the windows of every second attention stage.
        heads: h of the attention stages.
        window: M of the attention stages; 8 in 2D and 4 in 3D if not given.
        posterior: Sharpen that many classes by the grey values of the image (`GreyValuePosterior`), which must have
            one channel; 0 leaves the scores as they are. Ours, not of the paper; nothing to train.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int] = (32, 64, 96, 128, 160),
        upsample: Upsample | list[Upsample] | tuple[Upsample, ...] = "wau",
        stem: int = 1,
        shift: bool = True,
        heads: int = 4,
        window: int | None = None,
        posterior: int = 0,
        spatial_dims: int = 3,
    ) -> None:
        super().__init__()
        stages = len(channels) - 1
        kinds: list[Upsample] = list(upsample) if isinstance(upsample, list | tuple) else [upsample] * stages
        if len(kinds) != stages:
            raise ValueError(f"upsample must name one kind or {stages}, one per decoder stage, got {len(kinds)}")
        self.multiple = stem * 2**stages
        self.stem = _stem(in_channels, channels[0], stem, spatial_dims)
        self.encoder = nn.ModuleList([ResidualBlock(channels[0], channels[0], spatial_dims=spatial_dims)])
        for above, below in pairwise(channels):
            self.encoder.append(ResidualBlock(above, below, stride=2, spatial_dims=spatial_dims))
        self.upsample, self.decoder = nn.ModuleList(), nn.ModuleList()
        for stage, (kind, (deep, lateral)) in enumerate(zip(kinds, pairwise(reversed(channels)), strict=True)):
            options = {"ratio": (2,) * spatial_dims, "spatial_dims": spatial_dims, "heads": heads, "window": window}
            self.upsample.append(build_upsample(kind, deep, lateral, shift=shift and stage % 2 == 1, **options))
            self.decoder.append(ResidualBlock(2 * lateral, lateral, spatial_dims=spatial_dims))
        self.head = conv_transpose(spatial_dims)(channels[0], out_channels, kernel_size=stem, stride=stem)
        self.posterior = GreyValuePosterior(posterior) if posterior else None

    def features(self, image: Tensor) -> Tensor:
        """(B, C_in, *grid) to the last decoder feature, (B, channels[0], *(grid / stem)).

        Raises:
            ValueError: A side of the grid is no multiple of `multiple`.
        """
        return deque(self.decoded(image), maxlen=1)[0]  # a list of all of them would hold them in memory

    def decoded(self, image: Tensor) -> Iterator[Tensor]:
        """(B, C_in, *grid) to the features of all levels on the way up, the deepest of the encoder first.

        Raises:
            ValueError: A side of the grid is no multiple of `multiple`.
        """
        if any(side % self.multiple for side in image.shape[2:]):
            raise ValueError(f"every side must be a multiple of {self.multiple}, got {tuple(image.shape[2:])}")
        x = self.stem(image)
        laterals = []
        for block in self.encoder:
            x = block(x)
            laterals.append(x)
        x = laterals.pop()
        yield x
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            lateral = laterals.pop()
            x = block(torch.cat((upsample(x, lateral), lateral), dim=1))
            yield x

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, *grid) to logits (B, C_out, *grid)."""
        logits = self.head(self.features(image))
        return logits if self.posterior is None else self.posterior(logits, image)

    def logits_at(self, features: Tensor, phase: Sequence[int]) -> Tensor:
        """Logits of every `stem`-th voxel only, (B, C_out, *(grid / stem)): those that start at `phase` of each axis.

        A training step that looks at two of the eight phases of a volume sees every cell at a quarter of the cost.
        """
        weight, bias = self.head.weight[(..., *phase)].mT, self.head.get_parameter("bias")
        return torch.einsum("oc,bc...->bo...", weight, features) + bias.view(-1, *[1] * len(phase))


def _stem(in_channels: int, channels: int, side: int, spatial_dims: int) -> nn.Module:
    """Into cells of `side` voxels; the kernel overlaps its neighbours so that no edge falls between two cells."""
    if side != 1 and side % 2:
        raise ValueError(f"stem must be 1 or even, got {side}")
    kernel, pad = (3, 1) if side == 1 else (2 * side, side // 2)
    return nn.Sequential(
        conv(spatial_dims)(in_channels, channels, kernel_size=kernel, stride=side, padding=pad, bias=False),
        InstanceNorm(channels),
        nn.LeakyReLU(0.01),
    )
