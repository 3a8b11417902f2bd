"""FSG-Net, vessel segmentation whose decoder is led by full-scale features (2501.18921).

B batch, C channels, h w coarse sides, H W fine sides.
"""

from __future__ import annotations

from torch import Tensor, nn

from medseg_kernels import guided_filter


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
