"""FSG-Net, vessel segmentation whose decoder is led by full-scale features (2501.18921).

The encoder looks at the image anew on every scale. On the way up a guide is handed down from level to level, and a
filter led by attention carries the deep feature over to it. Point-wise convolutions commute with bilinear resizing, so
they run on whichever side is smaller; published weights give the same maps.

B batch, C channels, c base width, h w coarse sides, H W fine sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.blocks import conv_norm, folded, pointwise
from medseg.networks.strips import in_strips
from medseg.networks.wau import WAUNet
from medseg.weights import fill
from medseg_kernels import guided_filter

SMALLEST = 48  # pixels: an eighth of it is the least the filter's window leaves room in


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, *) resampled bilinearly to `size`, corner pixels kept in the corners."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=True)


class GuidedFilter(nn.Module):
    """Carry a decoder feature to the size of its guide, led by attention (section 3.3).

    Args:
        radius: Of the windows, in coarse pixels.
        eps: What smooths flat windows.
        batch_coupled: Normalise the attention over the whole batch, as in the published training; otherwise a sample's
            result does not depend on its neighbours.
    """

    def __init__(self, radius: int = 2, eps: float = 1e-2, *, batch_coupled: bool = False) -> None:
        super().__init__()
        self.radius, self.eps, self.batch_coupled = radius, eps, batch_coupled

    def forward(self, low_x: Tensor, low_y: Tensor, high_x: Tensor, attention: Tensor) -> Tensor:
        """Coarse guide and feature (B, C, h, w), fine guide (B, C, H, W), attention (B, 1, h, w) to (B, C, H, W)."""
        return guided_filter(low_x, low_y, high_x, attention, self.radius, self.eps, self.batch_coupled)


class DropBlock(nn.Module):
    """In training, zero squares of a feature, each channel on its own, and grow the rest to keep its sum.

    Args:
        side: Of the squares; odd.
        keep: Named probability in the published code, where it lowers the density of squares.
    """

    def __init__(self, side: int = 7, keep: float = 0.5) -> None:
        super().__init__()
        self.side, self.keep = side, keep

    def density(self, width: int) -> float:
        """Share of the places at which a square is drawn, for a feature of `width` columns, however many rows.

        Raises:
            ValueError: No square fits.
        """
        if width < self.side:
            raise ValueError(f"training needs features of at least {self.side} columns, got {width}: larger patches")
        return (1 - self.keep) / self.side**2 * width**2 / (width - self.side + 1) ** 2

    def forward(self, x: Tensor, seeds: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C, H, W); `seeds`, (B, C, H - side + 1, W - side + 1), are 1 in the middle of squares."""
        if not self.training or self.keep >= 1:
            return x
        border = self.side // 2
        if seeds is None:
            density = self.density(x.shape[3])
            seeds = torch.bernoulli(
                x.new_full((*x.shape[:2], x.shape[2] - 2 * border, x.shape[3] - 2 * border), density)
            )
        kept = 1 - F.max_pool2d(F.pad(seeds, [border] * 4), self.side, stride=1, padding=border)
        return x * kept * (kept.numel() / kept.sum().clamp(min=1))  # published: not a number where nothing is kept


class MConv(nn.Module):
    """Convolution, batch norm, ReLU.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: Odd; the grid is kept.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.conv = nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        convolution, norm, _ = self.conv
        return F.relu_(conv_norm(x, convolution, norm))


class Fusion(nn.Module):
    """Point-wise `MConv` of a skip feature and the guide of the level below, joined.

    Args:
        skip_channels: C of the skip feature.
        guide_channels: C of the guide.
        out_channels: C of the new guide.
    """

    def __init__(self, skip_channels: int, guide_channels: int, out_channels: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(skip_channels + guide_channels, out_channels, kernel_size=1)
        self.conv = nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU())

    def forward(self, skip: Tensor, guide: Tensor) -> Tensor:
        """(B, C_s, H, W) and (B, C_g, h, w) to (B, C_out, H, W)."""
        convolution, norm, _ = self.conv
        plain = convolution.get_parameter("weight"), convolution.get_parameter("bias")
        weight, bias = plain if norm.training else folded(convolution, norm)
        for_skip, for_guide = weight.split((skip.shape[1], guide.shape[1]), dim=1)
        coarse = resize(pointwise(guide, for_guide, None), skip.shape[2:])
        widest, channels = max(weight.shape[:2]), weight.shape[0]
        fine = in_strips(lambda x: pointwise(x, for_skip, bias), skip, reach=0, widest=widest, channels=channels)
        joined = fine.add_(coarse)
        return F.relu_(norm(joined) if norm.training else joined)


class ConvNext(nn.Module):
    """Depth-wise convolution and a point-wise bottleneck, scaled and added; batch norm and ReLU inside (section 3.2).

    Args:
        channels: C.
        kernel_size: Of the depth-wise convolution, odd.
        keep: Of its `DropBlock`.
    """

    def __init__(self, channels: int, kernel_size: int = 3, keep: float = 0.5) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * channels, kernel_size=1)
        self.conv2 = nn.Conv2d(4 * channels, channels, kernel_size=1)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))  # the block starts as its straight path
        self.drop = DropBlock(keep=keep)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self.training:
            return self._whole(x)
        channels = x.shape[1]
        return in_strips(self._whole, x, reach=self.dwconv.kernel_size[0] // 2, widest=4 * channels, channels=channels)

    def _whole(self, x: Tensor) -> Tensor:
        wide = pointwise(conv_norm(x, self.dwconv, self.norm), self.conv1.weight, self.conv1.bias, "relu")
        bias = self.conv2.get_parameter("bias") * self.gamma
        return x + self.drop(pointwise(wide, self.conv2.weight * self.gamma[:, None, None, None], bias))


class ResidualConv(nn.Module):
    """Two normalised convolutions beside a third one.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv_block = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        )
        self.conv_skip = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        if self.training:
            return self._whole(x)
        return in_strips(self._whole, x, reach=2, widest=x.shape[1], channels=self.out_channels)

    def _whole(self, x: Tensor) -> Tensor:
        norm, _, first, inner_norm, _, second = self.conv_block
        straight, straight_norm = self.conv_skip
        inner = F.relu_(conv_norm(F.relu_(norm(x)), first, inner_norm))
        return second(inner) + conv_norm(x, straight, straight_norm)


class SpatialGate(nn.Module):
    """Weigh each pixel by what the mean and the largest of its channels say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel_size=7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return x * self.conv(torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), dim=1)).sigmoid()


class CrossGate(nn.Module):
    """Attention of a guide and a deep feature for each other.

    Args:
        channels: C of both.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Sequential(nn.Conv2d(channels, channels, kernel_size=1), nn.BatchNorm2d(channels))
        self.phi = nn.Sequential(nn.Conv2d(channels, channels, kernel_size=1), nn.BatchNorm2d(channels))
        self.psi = nn.Sequential(nn.Conv2d(channels, 1, kernel_size=1), nn.BatchNorm2d(1))

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C, h, w) to weights (B, 1, H, W), 0 to 1."""
        theta, phi = conv_norm(x, *self.theta), resize(conv_norm(g, *self.phi), x.shape[2:])
        return conv_norm(F.relu_(theta + phi), *self.psi).sigmoid()


class UNetFeatures(nn.Module):
    """The decoder of a residual U-Net on all four levels: what the guided part takes in place of its own encoder.

    Args:
        in_channels: Channels of the image.
        base_channels: c.
        options: Of `WAUNet`, but for channels and rank.
    """

    def __init__(self, in_channels: int, base_channels: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        c = base_channels
        self.net = WAUNet(in_channels, 1, channels=(2 * c, 4 * c, 8 * c, 8 * c), spatial_dims=2, **options)
        del self.net.head  # the heads are those of FSG-Net
        self.multiple = self.net.multiple

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, C_in, H, W), sides multiples of `multiple`, to features of 2 c, 4 c, 8 c and 8 c channels."""
        return list(self.net.decoded(image))[::-1]


class FSGNet(nn.Module):
    """Fine masks of thin structures in an image of any size from 48 pixels on.

    Args:
        in_channels: Channels of the image.
        out_channels: Masks to draw.
        depths: `ConvNext` blocks of each level, finest first.
        base_channels: c; levels have 2 c, 4 c, 8 c and 8 c channels.
        kernel_size: Of the encoder's blocks, odd.
        keep: How densely training drops squares of features; 0.5 is published, 1 drops none. See `DropBlock`.
        guided: False leaves the guided part out, the paper's ablation `FSGNet_noGRM`.
        batch_coupled: See `GuidedFilter`; True is the published training.
        backbone: What stands in for the encoder: a module from image (B, C_in, H, W) to four features of 2 c, 4 c, 8 c
            and 8 c channels on the grid and its half, quarter and eighth, rounded down; or the options of a `WAUNet`,
            as a recipe gives them (`upsample` says which kind of U-Net), whose decoder then gives these features.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        *,
        depths: Sequence[int] = (3, 3, 9, 3),
        base_channels: int = 64,
        kernel_size: int = 3,
        keep: float = 0.5,
        guided: bool = True,
        batch_coupled: bool = False,
        backbone: nn.Module | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        c, self.guided = base_channels, guided
        self.backbone = UNetFeatures(in_channels, c, backbone) if isinstance(backbone, Mapping) else backbone
        self.multiple = getattr(self.backbone, "multiple", 1)
        if backbone is None:
            self._build_encoder(in_channels, c, depths, kernel_size, keep)
        self.up_residual_conv3, self.up_residual_conv2 = ResidualConv(8 * c, 4 * c), ResidualConv(4 * c, 2 * c)
        self.up_residual_conv1 = ResidualConv(2 * c, c)
        for level, width in ((3, 4 * c), (2, 2 * c), (1, c)):
            self.add_module(f"output_layer{level}", nn.Sequential(nn.Conv2d(width, out_channels, kernel_size=1)))
        if guided:
            self.attn = SpatialGate()
            self.filter = GuidedFilter(batch_coupled=batch_coupled)
            for level, width, below in ((3, 8 * c, 8 * c), (2, 4 * c, 8 * c), (1, 2 * c, 4 * c)):
                self.add_module(f"attention_block{level}", CrossGate(width))
                self.add_module(f"conv_cat_{level}", Fusion(width, below, width))

    def _build_encoder(self, in_channels: int, c: int, depths: Sequence[int], kernel: int, keep: float) -> None:
        """Layers of the full-scale encoder, under their published names."""
        first = [ConvNext(c, kernel, keep) for _ in range(depths[0])]
        self.input_layer = nn.Sequential(MConv(in_channels, c, kernel), *first)
        self.input_skip = nn.Sequential(MConv(in_channels, c, kernel))
        for level, width in enumerate((c, 2 * c, 4 * c), start=1):
            self.add_module(f"conv{level}", MConv(in_channels, width))
            blocks = [ConvNext(2 * width, kernel, keep) for _ in range(depths[level])]
            down = nn.Conv2d(2 * width, 2 * width, kernel_size=2, stride=2)
            self.add_module(f"down_conv_{level + 1}", nn.Sequential(down, *blocks))

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B, C_in, H, W) to features of 2 c, 4 c, 8 c and 8 c channels, each on half the grid of the one before.

        Every level but the last reads the image itself again, resized straight from full size (fig. 2).
        """
        if self.backbone is not None:
            return list(self.backbone(image))
        x, features = self.input_layer(image) + self.input_skip(image), []
        for level in (1, 2, 3):
            size = [side // 2 ** (level - 1) for side in image.shape[2:]]
            anew = self.get_submodule(f"conv{level}")(resize(image, size))
            features.append(torch.cat((anew, x), dim=1))
            x = self.get_submodule(f"down_conv_{level + 1}")(features[-1])
        return [*features, x]

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What `encode` gives to the decoder features of c, 2 c and 4 c channels, finest first."""
        skips = list(features)
        del features  # a feature that was read makes room
        y = skips.pop()
        y = guide = self.attn(y) if self.guided else y
        found = []
        for level in (3, 2, 1):
            skip = skips.pop()
            size = skip.shape[2:]
            if self.guided:
                guide = self.get_submodule(f"conv_cat_{level}")(skip, guide)
                del skip
                coarse = resize(guide, y.shape[2:])
                attention = self.get_submodule(f"attention_block{level}")(coarse, y)
                y = self.filter(coarse, y, guide, attention)
            else:
                y = resize(y, size)
            y = self.get_submodule(f"up_residual_conv{level}")(y)
            found.insert(0, y)
        return found

    def supervised(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of all three decoder levels at the size of the image, for deep supervision.

        Args:
            image: (B, C_in, H, W), normalised; sides of at least 48 pixels.

        Returns:
            Fine, middle and coarse, each (B, out_channels, H, W); the fine one is the prediction.

        Raises:
            ValueError: The image is too small for the filter's windows.
        """
        y1, y2, y3 = self._decoded(image)
        size, coarse = image.shape[2:], self._head(3, y3)
        if not self.guided:  # the published ablation resizes twice, and its weights are used to that
            coarse = resize(coarse, y2.shape[2:])
        return self._head(1, y1), resize(self._head(2, y2), size), resize(coarse, size)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, H, W), sides of at least 48 pixels, to fine logits (B, out_channels, H, W)."""
        return self._head(1, self._decoded(image)[0])

    def _decoded(self, image: Tensor) -> list[Tensor]:
        if self.guided and min(image.shape[2:]) < SMALLEST:
            raise ValueError(f"height and width must be at least {SMALLEST} pixels, got {tuple(image.shape[2:])}")
        return self.decode(self.encode(image))

    def _head(self, level: int, y: Tensor) -> Tensor:
        return self.get_submodule(f"output_layer{level}")(y)


def load_published(network: FSGNet, state: Mapping[str, Tensor]) -> None:
    """Fill a network with a published checkpoint.

    Args:
        network: Its parameters keep their dtype.
        state: Parameters by their published names: bare, or under `FSGNet.`, or under `neunet.` as before May 2024,
            each with or without the `module.` of multi-GPU runs.

    Raises:
        ModelMissing: The names or shapes are not the network's.
    """
    fill(network, {_bare(name): x for name, x in state.items()})


def _bare(name: str) -> str:
    name = name.removeprefix("module.")
    for wrapper in ("FSGNet.", "FSGNet_noGRM.", "neunet."):
        name = name.removeprefix(wrapper)
    return name
