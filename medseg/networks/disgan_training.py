"""What DISGAN needs beside its networks: features to compare by, losses, their noise, the published patch assembly.

B batch, C channels, D H W voxels. Source: 2308.12084, section 3, and the released training code.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BasicBlock(nn.Module):
    """Two convolutions with batch norm beside a straight path, in three dimensions (He et al. 2016).

    Args:
        in_channels: C of the input.
        out_channels: C of the output; a pointwise convolution fits the straight path where it differs.
        stride: Step of the first convolution.
        dilation: Of both convolutions.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        around = {"kernel_size": 3, "padding": dilation, "dilation": dilation, "bias": False}
        self.conv1 = nn.Conv3d(in_channels, out_channels, stride=stride, **around)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, **around)
        self.bn2 = nn.BatchNorm3d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            fit = nn.Conv3d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(fit, nn.BatchNorm3d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, D, H, W) to (B, C_out, D / stride, H / stride, W / stride)."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(inner + (x if self.downsample is None else self.downsample(x)))


class FeatureExtractor(nn.Module):
    """ResNet-10 for volumes, dilated in its last two stages; the names are those of the MedicalNet weights.

    It is frozen and kept in evaluation mode: batch statistics would couple the two volumes that are compared.

    Args:
        channels: C of the volume.
        filters: Channels of the first stage; they double from stage to stage.
    """

    def __init__(self, channels: int = 1, filters: int = 64) -> None:
        super().__init__()
        f = filters
        self.conv1 = nn.Conv3d(channels, f, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(f)
        self.layer1 = nn.Sequential(BasicBlock(f, f))
        self.layer2 = nn.Sequential(BasicBlock(f, 2 * f, stride=2))
        self.layer3 = nn.Sequential(BasicBlock(2 * f, 4 * f, dilation=2))
        self.layer4 = nn.Sequential(BasicBlock(4 * f, 8 * f, dilation=4))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FeatureExtractor:
        """Stay in evaluation mode whatever the model around it does."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, 8 filters, ceil(D / 8), ceil(H / 8), ceil(W / 8))."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool3d(x, kernel_size=3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def adversarial_loss(pred_fake: Tensor, pred_real: Tensor) -> Tensor:
    """How far generated voxels are from looking more real than the batch's real ones (relativistic average).

    Args:
        pred_fake: Logits of generated volumes, (B, 1, D, H, W), B at least 2: the other side is averaged over B alone.
        pred_real: Logits of real volumes, alike; no gradient flows through them.

    Returns:
        Scalar, nats.
    """
    relative = pred_fake - pred_real.detach().mean(0, keepdim=True)
    return F.binary_cross_entropy_with_logits(relative, torch.ones_like(relative))


def generator_loss(
    restored: Tensor,
    truth: Tensor,
    pred_fake: Tensor,
    pred_real: Tensor,
    features: tuple[Tensor, Tensor] | None = None,
    *,
    content: float = 1.0,
    adversarial: float = 5e-3,
    feature: float = 1e-2,
) -> Tensor:
    """What the generator minimises: mean absolute error, adversarial part, difference of features.

    Args:
        restored: (B, C, D, H, W).
        truth: Alike.
        pred_fake: Logits of the restored volumes with noise, (B, 1, D, H, W).
        pred_real: Logits of the true volumes with the same noise; no gradient flows through them.
        features: Features of `restored` and of `truth`; without them that part is 0, as it should be for an untrained
            extractor.
        content: Weight of the mean absolute error.
        adversarial: Weight of the adversarial part.
        feature: Weight of the difference of features.

    Returns:
        Scalar.
    """
    loss = content * F.l1_loss(restored, truth) + adversarial * adversarial_loss(pred_fake, pred_real)
    return loss if features is None else loss + feature * F.l1_loss(*features)


def discriminator_loss(pred_real: Tensor, pred_fake: Tensor) -> Tensor:
    """What the discriminator minimises: real above the mean of generated, generated below the mean of real.

    Args:
        pred_real: Logits of real volumes, (B, 1, D, H, W), B at least 2.
        pred_fake: Logits of generated volumes, alike; detach the volumes before they are judged.

    Returns:
        Scalar, nats, the mean of both halves.
    """
    real = pred_real - pred_fake.mean(0, keepdim=True)
    fake = pred_fake - pred_real.mean(0, keepdim=True)
    halves = (
        F.binary_cross_entropy_with_logits(real, torch.ones_like(real)),
        F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake)),
    )
    return (halves[0] + halves[1]) / 2


def noise_level(epoch: int, epochs: int) -> float:
    """Deviation of the noise that real and generated volumes get before they are judged: 1 at first, 0 at the end."""
    return max(0.0, 1 - epoch / epochs)


def every_second_voxel(x: Tensor) -> Tensor:
    """(..., D, H, W) reduced as in the published training: no blur, so fine structure is aliased."""
    return x[..., ::2, ::2, ::2]


def patches_overwritten(
    volume: Tensor, restore: Callable[[Tensor], Tensor], *, side: int = 64, step: int = 16
) -> Tensor:
    """Restore a volume as the released code does: reduced patch by patch, later patches over earlier ones.

    For comparison with published pictures only: the seams show. An odd axis loses its last plane and stays short.

    Args:
        volume: (D, H, W), at the resolution that the result will have.
        restore: (1, 1, side / 2, side / 2, side / 2) to (1, 1, side, side, side).
        side: Of the cubic patches, even.
        step: Voxels from one patch to the next.

    Returns:
        (D, H, W), each side rounded down to an even number.
    """
    volume = volume[tuple(slice(n - n % 2) for n in volume.shape)]
    padded = [side + max(0, -(-(n - side) // step)) * step for n in volume.shape]
    before = [(wide - n) // 2 for wide, n in zip(padded, volume.shape, strict=True)]
    pad = [x for wide, n, first in zip(padded, volume.shape, before, strict=True) for x in (first, wide - n - first)]
    framed = F.pad(volume, [x for pair in zip(pad[-2::-2], pad[::-2], strict=True) for x in pair])
    out = torch.zeros_like(framed)
    for corner in product(*(range(0, wide - side + 1, step) for wide in padded)):
        cube = tuple(slice(first, first + side) for first in corner)
        out[cube] = restore(every_second_voxel(framed[cube])[None, None])[0, 0]
    return out[tuple(slice(first, first + n) for first, n in zip(before, volume.shape, strict=True))]
