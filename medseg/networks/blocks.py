"""Layers that two or more networks share. B batch, C channels, then the grid: H, W for images, D, H, W for volumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg_kernels.dense import Activation, activate, dense, dense_add, uses_onednn


def conv(spatial_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """Convolution class for images (2) or volumes (3)."""
    return {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]


def conv_transpose(spatial_dims: int) -> Callable[..., nn.ConvTranspose2d | nn.ConvTranspose3d]:
    """Transposed convolution class for images (2) or volumes (3)."""
    return {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[spatial_dims]


def linear(layer: nn.Linear, x: Tensor, activation: Activation = "none") -> Tensor:
    """A layer, and what bends its result, by the fastest way: (..., C) to (..., D)."""
    return dense(x, layer.weight, layer.bias, activation)


def linear_add(layer: nn.Linear, x: Tensor, to: Tensor) -> Tensor:
    """`to` (..., D) plus what a layer makes of (..., C), by the fastest way."""
    return dense_add(x, layer.weight, layer.bias, to)


class ChannelNorm(nn.Module):
    """Normalise the channels of each cell on their own (layer norm over C).

    Args:
        channels: C of the feature.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) to (B, C, *grid)."""
        return self.cells(x.movedim(1, -1)).movedim(-1, 1)

    def cells(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class InstanceNorm(nn.Module):
    """Normalise each channel of each item over its grid, with a learned scale and offset.

    Written as a group norm of one channel a group: the same numbers as the library's instance norm, but the memory
    layout is kept and, in bfloat16 on a CPU, the backward pass is three times faster.

    Args:
        channels: C of the feature.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *grid) to (B, C, *grid); the moments are taken in float32."""
        return F.group_norm(x, x.shape[1], self.weight, self.bias, self.eps)


class ResidualBlock(nn.Module):
    """Two normalised 3-tap convolutions beside a straight path (He et al. 2016, post-activation form).

    Args:
        in_channels: C of the input.
        out_channels: C of the output; a point-wise convolution fits the straight path where they differ.
        stride: Step of the first convolution, 1 or 2.
        spatial_dims: 2 for images, 3 for volumes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, spatial_dims: int = 3) -> None:
        super().__init__()
        cell = conv(spatial_dims)
        self.conv1 = cell(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = InstanceNorm(out_channels)
        self.conv2 = cell(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = InstanceNorm(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.straight = (
            nn.Identity() if same else cell(in_channels, out_channels, kernel_size=stride, stride=stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, *grid) to (B, C_out, *(grid / stride))."""
        inner = F.leaky_relu(self.norm1(self.conv1(x)), 0.01)
        return F.leaky_relu(self.norm2(self.conv2(inner)) + self.straight(x), 0.01)


def interpolate_to(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """(B, C, *) resampled linearly to `grid`, cell centres kept (`align_corners=False`)."""
    mode: Literal["bilinear", "trilinear"] = "bilinear" if len(grid) == 2 else "trilinear"
    return F.interpolate(x, size=grid, mode=mode, align_corners=False)


def conv_norm(x: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    """Convolve and batch-normalise; in evaluation as one convolution, so that no feature stands in memory twice.

    Args:
        x: (B, C_in, H, W).
        convolution: An `nn.Conv2d`, zero padded, with or without bias.
        norm: The `nn.BatchNorm2d` of its output.

    Returns:
        (B, C_out, H', W').

    Raises:
        TypeError: One of the layers is something else.
    """
    if norm.training or (isinstance(norm, nn.BatchNorm2d) and norm.running_mean is None):
        return norm(convolution(x))
    weight, bias = folded(convolution, norm)
    stride, padding, groups = (getattr(convolution, name) for name in ("stride", "padding", "groups"))
    return F.conv2d(x, weight, bias, stride, padding, groups=groups)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Tensor:
    """A convolution that looks at one pixel at a time; on a CPU one product of all pixels, with channels last.

    Args:
        x: (B, C, H, W).
        weight: (D, C, 1, 1).
        bias: (D,).
        activation: What ends it.

    Returns:
        (B, D, H, W), in any order in memory.
    """
    if uses_onednn(x, weight, bias):
        return dense(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias, activation).permute(0, 3, 1, 2)
    return activate(F.conv2d(x, weight, bias), activation)


class Pointwise(nn.Conv2d):
    """`pointwise` as a layer, under the names of a convolution.

    Args:
        in_channels: C.
        out_channels: D.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that the base class gives it
        """(B, C, H, W) to (B, D, H, W)."""
        return pointwise(input, self.weight, self.bias)


def folded(convolution: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that a convolution and the batch norm of its output are in evaluation.

    Raises:
        TypeError: One of the layers is something else than `nn.Conv2d` and `nn.BatchNorm2d`.
        ValueError: The norm keeps no statistics.
    """
    if not (isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        raise TypeError(f"layers must be Conv2d and BatchNorm2d, got {type(convolution)} and {type(norm)}")
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise ValueError("norm must keep running statistics to be folded into a convolution")
    slope = norm.weight * (var + norm.eps).rsqrt()
    offset = -mean if convolution.bias is None else convolution.bias - mean
    return convolution.weight * slope[:, None, None, None], norm.bias + offset * slope
