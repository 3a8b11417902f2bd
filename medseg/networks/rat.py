"""RAT, the region attention transformer for image restoration (2407.09268).

A transformer layer attends twice: among all pixels of one region, wherever they lie, and inside small fixed windows,
which lets regions exchange. Regions come from outside, as a map of integer ids.

B batch, C channels, H W sides of the latent grid, h heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import ChannelNorm, interpolate_to
from medseg.regions import checked, downscale, pad_to_multiple
from medseg.weights import fill
from medseg_kernels import SegmentLayout, layout_from_labels, region_attention, window_attention
from medseg_kernels.dispatch import is_recorded


class RegionAttention(nn.Module):
    """Attend among the pixels that share a region id (section 2.2).

    Logits are scaled by the number of heads, h**-0.5, not by their width: published weights depend on it.

    Args:
        channels: C of the feature.
        num_heads: h; must divide C.
    """

    def __init__(self, channels: int, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.project_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor, regions: Tensor | SegmentLayout) -> Tensor:
        """(B, C, H, W) and region ids (B, H, W), or the layout made of them, to (B, C, H, W)."""
        q, k, v = self.qkv(x).flatten(2).mT.unflatten(2, (3, self.num_heads, -1)).unbind(2)  # (B, H * W, h, C / h)
        out = region_attention(q, k, v, regions, scale=self.num_heads**-0.5)
        return self.project_out(out.flatten(2).mT.unflatten(2, x.shape[2:]))


class WindowAttention(nn.Module):
    """Attend inside windows that do not overlap, with the scale of `RegionAttention`.

    Args:
        channels: C of the feature.
        num_heads: h; must divide C.
        window: Side in pixels; must divide H and W.
    """

    def __init__(self, channels: int, num_heads: int = 8, window: int = 4) -> None:
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if x.shape[2] % self.window or x.shape[3] % self.window:
            raise ValueError(f"height and width must be multiples of {self.window}, got {tuple(x.shape[2:])}")
        q, k, v = self.qkv(x.movedim(1, 3)).unflatten(3, (3, self.num_heads, -1)).unbind(3)  # (B, H, W, h, C / h)
        out = window_attention(q, k, v, (self.window, self.window), scale=self.num_heads**-0.5)
        return self.proj_out(out.flatten(3)).movedim(3, 1)


class Mlp(nn.Module):
    """Two pointwise convolutions around an exact GELU.

    Args:
        channels: C of the feature.
        ratio: Inner channels per channel.
    """

    def __init__(self, channels: int, ratio: int = 2) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, ratio * channels, kernel_size=1)
        self.fc2 = nn.Conv2d(ratio * channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    """Region attention, MLP, window attention, MLP, each added to what it read normalised (fig. 2).

    Args:
        channels: C of the feature.
        num_heads: Of both attentions.
        window: Side of the windows.
        mlp_ratio: Inner channels per channel of both MLPs.
    """

    def __init__(self, channels: int, num_heads: int = 8, window: int = 4, mlp_ratio: int = 2) -> None:
        super().__init__()
        self.norm_ra, self.norm_ra_mlp = ChannelNorm(channels), ChannelNorm(channels)
        self.norm_wa, self.norm_wa_mlp = ChannelNorm(channels), ChannelNorm(channels)
        self.ra = RegionAttention(channels, num_heads)
        self.wa = WindowAttention(channels, num_heads, window)
        self.mlp_ra, self.mlp_wa = Mlp(channels, mlp_ratio), Mlp(channels, mlp_ratio)
        self.lambda_ra = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.lambda_wa = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, regions: Tensor | SegmentLayout) -> Tensor:
        """(B, C, H, W) and region ids (B, H, W), or their layout, to (B, C, H, W)."""
        x = x + self.lambda_ra * self.ra(self.norm_ra(x), regions)
        x = x + self.mlp_ra(self.norm_ra_mlp(x))
        x = x + self.lambda_wa * self.wa(self.norm_wa(x))
        return x + self.mlp_wa(self.norm_wa_mlp(x))


class Group(nn.Module):
    """Some layers and a convolution, added to their input; the layers share one layout of the regions.

    Args:
        channels: C of the feature.
        num_heads: Of all attentions.
        window: Side of the windows.
        depth: Number of layers.
    """

    def __init__(self, channels: int, num_heads: int = 8, window: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(channels, num_heads, window) for _ in range(depth))
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor, regions: Tensor | SegmentLayout) -> Tensor:
        """(B, C, H, W) and region ids (B, H, W), or their layout, to (B, C, H, W)."""
        deep = x
        for layer in self.layers:
            deep = layer(deep, regions)
        return x + self.conv(deep)


class ConvBlock(nn.Module):
    """Gated convolutions with a channel attention that is not squashed, then gated pointwise ones (NAF style).

    Args:
        channels: C of the feature.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.conv1 = nn.Conv2d(channels, wide, kernel_size=1)
        self.conv2 = nn.Conv2d(wide, wide, kernel_size=3, padding=1, groups=wide)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, kernel_size=1))
        self.conv3 = nn.Conv2d(channels, channels, kernel_size=1)
        self.conv4 = nn.Conv2d(channels, wide, kernel_size=1)
        self.conv5 = nn.Conv2d(channels, channels, kernel_size=1)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        u = self._gate(self.conv2(self.conv1(self.norm1(x))))
        x = x + self.beta * self.conv3(u * self.sca(u))
        return x + self.gamma * self.conv5(self._gate(self.conv4(self.norm2(x))))

    @staticmethod
    def _gate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return first * second


class RAT(nn.Module):
    """Restore an image in the light of its regions: what is wrong with it, added to it (fig. 2).

    Args:
        in_channels: Channels of the image.
        width: C of the finest level; each further one has twice as many.
        encoder_depths: `ConvBlock`s of each level on the way down.
        decoder_depths: On the way up, coarsest first; as many levels.
        middle_depth: Attention layers; whole groups of `group_depth` are built, as in the published code.
        group_depth: Layers of a group.
        num_heads: h of all attentions.
        window: Side of the windows in latent pixels.
        scale: How much larger the restored image is than the input.
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        width: int = 64,
        encoder_depths: Sequence[int] = (2, 2),
        decoder_depths: Sequence[int] = (2, 2),
        middle_depth: int = 12,
        group_depth: int = 3,
        num_heads: int = 8,
        window: int = 4,
        scale: int = 1,
    ) -> None:
        super().__init__()
        levels = len(encoder_depths)
        if len(decoder_depths) != levels:
            raise ValueError(f"decoder_depths must name {levels} levels like encoder_depths, got {len(decoder_depths)}")
        self.stride, self.window, self.scale = 2**levels, window, scale
        self.intro = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.encoders, self.downs = nn.ModuleList(), nn.ModuleList()
        for level, depth in enumerate(encoder_depths):
            channels = width * 2**level
            self.encoders.append(nn.Sequential(*[ConvBlock(channels) for _ in range(depth)]))
            self.downs.append(nn.Conv2d(channels, 2 * channels, kernel_size=2, stride=2))
        groups = middle_depth // group_depth
        latent = width * self.stride
        self.middle_blks = nn.ModuleList(Group(latent, num_heads, window, group_depth) for _ in range(groups))
        self.ups, self.decoders = nn.ModuleList(), nn.ModuleList()
        for level, depth in enumerate(decoder_depths):
            channels = latent // 2**level
            widen = nn.Conv2d(channels, 2 * channels, kernel_size=1, bias=False)
            self.ups.append(nn.Sequential(widen, nn.PixelShuffle(2)))
            self.decoders.append(nn.Sequential(*[ConvBlock(channels // 2) for _ in range(depth)]))
        self.ending = nn.Conv2d(width, in_channels, kernel_size=3, padding=1)

    @property
    def multiple(self) -> int:
        """What the sides of the (enlarged) image must be multiples of, in pixels."""
        return self.stride * self.window

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(B, C_in, H, W) to the latent feature and the skip features, finest first."""
        x, skips = self.intro(image), []
        for blocks, down in zip(self.encoders, self.downs, strict=True):
            skips.append(blocks(x))
            x = down(skips[-1])
        return x, skips

    def attend(self, latent: Tensor, regions: Tensor) -> Tensor:
        """Latent feature (B, C, h, w) and region ids at full size (B, H, W) to a feature of the same shape.

        All layers share one layout of the regions, which is made here.
        """
        small = downscale(regions if is_recorded() else checked(regions), self.stride)
        layout = small if is_recorded() else layout_from_labels(small)
        x = latent
        for group in self.middle_blks:
            x = group(x, layout)
        return latent + x

    def forward(self, image: Tensor, regions: Tensor) -> Tensor:
        """The restored image; values are not clamped.

        Args:
            image: (B, C_in, H, W); (H, W) times `scale` must be multiples of `multiple`.
            regions: Region ids, whole numbers from 0 on, (B, scale H, scale W).

        Returns:
            (B, C_in, scale H, scale W).

        Raises:
            ValueError: A size does not fit, or an id is negative or no whole number.
        """
        size = (self.scale * image.shape[2], self.scale * image.shape[3])
        if size[0] % self.multiple or size[1] % self.multiple:
            raise ValueError(f"height and width must be multiples of {self.multiple} pixels, got {size}; see restore")
        if tuple(regions.shape) != (image.shape[0], *size):
            raise ValueError(f"regions must be {(image.shape[0], *size)}, got {tuple(regions.shape)}")
        base = interpolate_to(image, size) if self.scale > 1 else image
        latent, skips = self.encode(base)
        x = self.attend(latent, regions)
        for up, blocks, skip in zip(self.ups, self.decoders, reversed(skips), strict=True):
            x = blocks(up(x) + skip)
        return self.ending(x) + base


def restore(network: RAT, image: Tensor, regions: Tensor) -> Tensor:
    """Restore an image of any size: mirror it and its regions below and to the right, and cut the result.

    Args:
        network: In evaluation mode.
        image: (B, C_in, H, W), or slices of a volume as B.
        regions: Region ids (B, scale H, scale W), or (scale H, scale W) if all slices share them.

    Returns:
        (B, C_in, scale H, scale W).
    """
    height, width = image.shape[2:]
    if regions.ndim == 2:
        regions = regions.expand(image.shape[0], -1, -1)
    step = network.multiple // gcd(network.multiple, network.scale)
    image = pad_to_multiple(image, step)
    found = network(image, pad_to_multiple(regions, step * network.scale))
    return found[..., : network.scale * height, : network.scale * width]


def load_published(network: RAT, state: Mapping[str, Tensor]) -> None:
    """Fill a network with a published checkpoint, with or without the `module.` of multi-GPU runs.

    Raises:
        ModelMissing: The names or shapes are not the network's.
    """
    fill(network, {name.removeprefix("module."): x for name, x in state.items()})
