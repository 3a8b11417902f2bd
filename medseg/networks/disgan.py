"""DISGAN, super-resolution of brain MRI with a wavelet discriminator (2308.12084).

B batch, C channels, D H W voxels. Bands are ordered aaa, aad, ada, add, daa, dad, dda, ddd: approximation or detail
along D, H and W.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from medseg_kernels import haar3d, haar3d_project, ihaar3d


def _even(x: Tensor) -> Tensor:
    """Give each odd axis one more plane of zeros at its end."""
    pad = [n for side in reversed(x.shape[2:]) for n in (0, side % 2)]
    return F.pad(x, pad) if any(pad) else x


def wavelet_bands(x: Tensor) -> Tensor:
    """Haar bands of volumes of any size: (B, C, D, H, W) to (B, 8, C, ceil(D / 2), ceil(H / 2), ceil(W / 2))."""
    return haar3d(_even(x)).unflatten(1, (8, x.shape[1]))


def from_wavelet_bands(bands: Tensor) -> Tensor:
    """Undo `wavelet_bands`: (B, 8, C, d, h, w) to (B, C, 2 d, 2 h, 2 w), added planes included."""
    return ihaar3d(bands.flatten(1, 2))


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
        return haar3d_project(_even(x), low.weight, low.bias, high.weight, high.bias)
