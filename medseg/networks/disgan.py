"""DISGAN, super-resolution of brain MRI that also cleans noise, with a wavelet discriminator (2308.12084).

A residual-in-residual generator doubles each side of a volume. In training a U-Net judges the result voxel by voxel;
its encoder sees wavelet bands beside its own features. Only the generator is needed to restore a volume.

B batch, C channels, D H W voxels, f filters. Bands are ordered aaa, aad, ada, add, daa, dad, dda, ddd: approximation
or detail along D, H and W. The key names are the published ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.acquisition import lanczos_weights
from medseg.wavelets import even
from medseg_kernels import haar3d_project

SLOPE = 0.01  # of every leaky ReLU in the generator and in the dense blocks of both networks
ENCODER_SLOPE = 0.2  # of those between the discriminator's encoder stages; its decoder has plain ReLU
SHARE = 0.2  # of what a residual branch adds
SLAB = 16  # planes that the layers behind the trunk take at a time where nothing is kept for gradients
_HALO = 2  # planes that those layers read beyond, whatever the number of doublings: one per convolution before each
LOBES = 8  # acquired voxels to each side that interpolation reads: what was cut off in k-space asks for a long sinc


class WaveletUnit(nn.Module):
    """Haar transform and one pointwise convolution each for the approximation and for the details (fig. 3).

    Args:
        in_channels: C of the volume.
        out_channels: Channels of both results.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1x1_low = nn.Conv3d(in_channels, out_channels, kernel_size=1)
        self.conv1x1_high = nn.Conv3d(7 * in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, D, H, W) to low and high, (B, out, ceil(D / 2), ceil(H / 2), ceil(W / 2)) each."""
        low, high = self.conv1x1_low, self.conv1x1_high
        return haar3d_project(even(x), low.weight, low.bias, high.weight, high.bias)


class DenseBlock(nn.Module):
    """Five convolutions, each reading all features before it; a fifth of the last is added to the input.

    Published checkpoints hold each tensor twice, below `b1` to `b5` and below `blocks`; either is read, one is saved.

    Args:
        filters: f, channels of the input and of each convolution.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.filters = filters
        self.b1, self.b2, self.b3, self.b4, self.b5 = (
            nn.Sequential(nn.Conv3d(number * filters, filters, kernel_size=3, padding=1)) for number in range(1, 6)
        )
        self.register_load_state_dict_pre_hook(_read_one_of_two)

    def forward(self, x: Tensor) -> Tensor:
        """(B, f, D, H, W) to the same."""
        inner = (self.b1, self.b2, self.b3, self.b4)
        if torch.is_grad_enabled():
            features = x
            for layer in inner:
                features = torch.cat((features, F.leaky_relu(layer(features), SLOPE)), dim=1)
            return x + SHARE * self.b5(features)
        # Nothing is kept for gradients: one buffer holds what the convolutions read and takes what they write.
        f = self.filters
        features = x.new_empty(len(x), 5 * f, *x.shape[2:])
        features[:, :f] = x
        for number, layer in enumerate(inner, start=1):
            features[:, number * f : (number + 1) * f] = F.leaky_relu_(layer(features[:, : number * f]), SLOPE)
        return torch.add(x, self.b5(features), alpha=SHARE)


def _read_one_of_two(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Take the tensors below `blocks` where those below `b1` to `b5` are missing, and drop them where they agree."""
    for name in module.state_dict():
        block, rest = name.split(".", 1)
        twin = state.get(f"{prefix}blocks.{int(block[1:]) - 1}.{rest}")
        if twin is None:
            continue
        if not torch.equal(state.setdefault(prefix + name, twin), twin):
            raise ValueError(f"{prefix}{name} and its second registration below {prefix}blocks must be equal")
        del state[f"{prefix}blocks.{int(block[1:]) - 1}.{rest}"]


class ResidualDenseBlock(nn.Module):
    """Three dense blocks in a row; a fifth of the result is added to the input.

    Args:
        filters: f.
    """

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.dense_blocks = nn.Sequential(*(DenseBlock(filters) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, f, D, H, W) to the same."""
        return torch.add(x, self.dense_blocks(x), alpha=SHARE)


class RecordedConv(nn.Module):
    """A 3x3x3 convolution below `module`, where published checkpoints keep the norm of its weight as a record.

    The record never changes a result, so it is neither computed nor saved; a file may have it or not.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.module = nn.Conv3d(in_channels, out_channels, kernel_size=3, padding=1)
        self.register_load_state_dict_pre_hook(_drop_record)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, D, H, W) to (B, C_out, D, H, W)."""
        return self.module(x)


def _drop_record(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    state.pop(f"{prefix}module.weight_sv", None)


def shuffle(x: Tensor, scale: int = 2) -> Tensor:
    """Spread channels over space: (B, C scale^3, D, H, W) to (B, C, scale D, scale H, scale W).

    Channel ((c scale + i) scale + j) scale + k goes to offset (i, j, k) along D, H and W.
    """
    parts = x.unflatten(1, (-1, scale, scale, scale))  # (B, C, i, j, k, D, H, W)
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Shuffle(nn.Module):
    """`shuffle` by two, as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8 C, D, H, W) to (B, C, 2 D, 2 H, 2 W)."""
        return shuffle(x)


def doubled(x: Tensor) -> Tensor:
    """Lanczos interpolation of (B, C, D, H, W) to twice the voxels along each axis; the outer edges stay in place."""
    weights = lanczos_weights(2, lobes=LOBES).to(x)
    reach = weights.shape[1] // 2
    for axis in (2, 3, 4):
        shape, pad = [2, 1, 1, 1, 1], [0] * 6
        shape[axis] = weights.shape[1]
        pad[2 * (4 - axis)] = pad[2 * (4 - axis) + 1] = reach
        lines = F.conv3d(F.pad(x.flatten(0, 1)[:, None], pad, mode="replicate"), weights.view(shape))
        x = lines.unflatten(0, x.shape[:2]).movedim(2, axis + 1).flatten(axis, axis + 1)
    return x


class Generator(nn.Module):
    """Volume with each side doubled once per upsampling step, and less noise (fig. 2).

    Args:
        channels: C of the volume that goes in.
        filters: f; 64 as published, 32 costs a quarter.
        num_res_blocks: Residual dense blocks in the trunk, which takes nine tenths of the work.
        num_upsample: Doublings; 0 for a volume that was interpolated before.
        out_channels: C of the volume that comes out, by default the same.
        shortcut: Add a fifth of what the network gives to the interpolated input, so that it learns only what
            interpolation lacks. Ours; the published generator has to learn the whole image.
    """

    def __init__(
        self,
        channels: int = 1,
        filters: int = 64,
        *,
        num_res_blocks: int = 3,
        num_upsample: int = 1,
        out_channels: int | None = None,
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.scale = 2**num_upsample
        self.num_upsample, self.shortcut = num_upsample, shortcut
        self.out_channels = channels if out_channels is None else out_channels
        self.conv1 = RecordedConv(channels, filters)
        self.res_blocks1 = nn.Sequential(*(ResidualDenseBlock(filters) for _ in range(num_res_blocks)))
        self.conv2 = RecordedConv(filters, filters)
        steps = []
        for _ in range(num_upsample):
            wide = nn.Conv3d(filters, 8 * filters, kernel_size=3, padding=1)
            steps += [wide, nn.LeakyReLU(SLOPE, inplace=True), Shuffle()]
        self.upsampling = nn.Sequential(*steps)
        last = RecordedConv(filters, self.out_channels)
        self.conv3 = nn.Sequential(RecordedConv(filters, filters), nn.LeakyReLU(SLOPE, inplace=True), last)

    def forward(self, x: Tensor) -> Tensor:
        """Intensities as the recipe scales them, (B, C, D, H, W), to (B, C_out, scale D, scale H, scale W), alike."""
        if not self.shortcut:
            return self.branch(x)
        interpolated = x[:, : self.out_channels]
        for _ in range(self.num_upsample):
            interpolated = doubled(interpolated)
        return interpolated + SHARE * self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        """All but the shortcut: (B, C, D, H, W) to (B, C_out, scale D, scale H, scale W)."""
        shallow = self.conv1(x)
        deep = shallow + self.conv2(self.res_blocks1(shallow))
        return self._finished(deep)

    def _finished(self, deep: Tensor) -> Tensor:
        """The layers behind the trunk; slab by slab, since they hold most channels at the finest resolution."""
        depth = deep.shape[2]
        traced = torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage] torch's stubs
        if torch.is_grad_enabled() or traced or depth <= SLAB + 2 * _HALO:  # a trace keeps one depth
            return self.conv3(self.upsampling(deep))
        height, width = (side * self.scale for side in deep.shape[3:])
        out = deep.new_empty(len(deep), self.out_channels, depth * self.scale, height, width)
        for first in range(0, depth, SLAB):
            last, low = min(depth, first + SLAB), max(0, first - _HALO)
            part = self.conv3(self.upsampling(deep[:, :, low : last + _HALO]))
            out[:, :, first * self.scale : last * self.scale] = part[
                :, :, (first - low) * self.scale : (last - low) * self.scale
            ]
        return out


def down_block(name: str, in_channels: int, out_channels: int, *, norm: bool = True) -> nn.Sequential:
    """Stage of the discriminator's encoder: halve each side, dense block, batch norm.

    It reads what has already passed the leaky ReLU, because skips and wavelet units read that, too.
    """
    conv = nn.Conv3d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict({f"{name}_conv": nn.Sequential(conv, DenseBlock(out_channels))})
    if norm:
        parts[f"{name}_bn"] = nn.BatchNorm3d(out_channels)
    return nn.Sequential(parts)


def up_block(name: str, in_channels: int, out_channels: int, *, linear: bool = False) -> nn.Sequential:
    """Stage of the discriminator's decoder, behind the ReLU: double each side, dense block, batch norm.

    With `linear` the sides are doubled by interpolation, and the dense block stands before the change of channels.
    """
    if linear:
        resize = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        conv = nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False)
        inner = {f"{name}_linear": nn.Sequential(resize, DenseBlock(in_channels), conv)}
    else:
        conv = nn.ConvTranspose3d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)
        inner = {f"{name}_tconv": nn.Sequential(conv, DenseBlock(out_channels))}
    return nn.Sequential(OrderedDict[str, nn.Module]({**inner, f"{name}_bn": nn.BatchNorm3d(out_channels)}))


class Discriminator(nn.Module):
    """U-Net that tells voxel by voxel how real a volume looks (fig. 3).

    Args:
        channels: C of the volume.
        filters: n, channels at full resolution.
        wavelet_channels: Channels of low and of high of the wavelet units, from the finest; five.
        init_std: Deviation of the convolutions' first weights. Published: 1, which batch norm hides but the head does
            not.
    """

    def __init__(
        self,
        channels: int = 1,
        filters: int = 16,
        *,
        wavelet_channels: Sequence[int] = (1, 2, 4, 8, 16),
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        if len(wavelet_channels) != 5:
            raise ValueError(f"wavelet_channels must name five units, got {len(wavelet_channels)}")
        n = filters
        self.initial_conv = RecordedConv(channels, n)
        self.bn1 = nn.BatchNorm3d(n)
        widths = (n, 2 * n, 4 * n, 8 * n, 8 * n)  # of the encoder stages, low bands included
        first = nn.Conv3d(n, n - wavelet_channels[0], kernel_size=4, stride=2, padding=1, bias=False)
        self.layer1 = nn.Sequential(OrderedDict({"layer1": first}))
        for k in range(2, 6):
            own = widths[k - 1] - wavelet_channels[k - 1]
            self.add_module(f"layer{k}", down_block(f"layer{k}", widths[k - 2], own))
        self.layer6 = down_block("layer6", widths[4], 8 * n, norm=False)
        for k, (read, out) in enumerate(zip((channels, *widths), wavelet_channels, strict=False)):
            self.add_module(f"DWT_down_{k}", WaveletUnit(read, out))
        read = 8 * n
        for k, out in zip(range(6, 1, -1), (8 * n, 8 * n, 4 * n, 2 * n, n), strict=True):
            self.add_module(f"dlayer{k}", up_block(f"dlayer{k - 1}", read, out))
            read = out + widths[k - 2] + wavelet_channels[k - 2]
        self.dlayer1 = up_block("dlayer0", read, 2 * n, linear=True)
        self.tail_conv1 = nn.Conv3d(3 * n, 2 * n, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm3d(2 * n)
        self.tail_conv2 = nn.Conv3d(2 * n, 1, kernel_size=3, padding=1)
        self._initialise(init_std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W), every side a multiple of 64, to a logit per voxel, (B, 1, D, H, W), high for real.

        Raises:
            ValueError: A side is no multiple of 64.
        """
        if any(side % 64 for side in x.shape[2:]):
            raise ValueError(f"x must have sides that are multiples of 64, got {tuple(x.shape[2:])}")
        full = self.bn1(self.initial_conv(x))
        low, high = self.get_submodule("DWT_down_0")(x)  # of the raw volume
        stage = torch.cat((self.layer1(full), low), dim=1)
        skips = []
        for k in range(2, 7):
            stage = F.leaky_relu(stage, ENCODER_SLOPE)
            skips.append(torch.cat((stage, high), dim=1))
            deeper = self.get_submodule(f"layer{k}")(stage)
            if k < 6:
                low, high = self.get_submodule(f"DWT_down_{k - 1}")(stage)
                deeper = torch.cat((deeper, low), dim=1)
            stage = deeper
        for k in range(6, 1, -1):
            stage = torch.cat((self.get_submodule(f"dlayer{k}")(F.relu(stage)), skips.pop()), dim=1)
        stage = torch.cat((self.dlayer1(F.relu(stage)), full), dim=1)
        return self.tail_conv2(self.bn2(self.tail_conv1(stage)))

    def _initialise(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.normal_(module.weight, std=std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def checkpoint_parts(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Weights of `generator`, `discriminator` and `FE` (the feature extractor) in a published training checkpoint.

    Newer files keep all below `state_dict`, older ones each network below a key such as `Gnet_state_dict`. Only a
    leading `module.` (data parallel) is removed: inside a name it belongs there.

    Args:
        checkpoint: What the file holds, read with `weights_only`.

    Raises:
        ValueError: No weights of a generator are in it.
    """
    older = {"generator": "Gnet_state_dict", "discriminator": "Dnet_state_dict", "FE": "FE_state_dict"}
    parts: dict[str, dict[str, Tensor]] = {}
    whole = checkpoint.get("state_dict", {})
    for name, old in older.items():
        state = {key.removeprefix(f"{name}."): x for key, x in whole.items() if key.startswith(f"{name}.")}
        state = state or dict(checkpoint.get(old, {}))
        if state:
            parts[name] = {key.removeprefix("module."): x for key, x in state.items()}
    if "generator" not in parts:
        raise ValueError(f"checkpoint must hold generator weights below state_dict, got the keys {sorted(checkpoint)}")
    return parts
