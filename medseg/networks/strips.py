"""Layers that look a few rows far, run strip by strip: what lies between stays in cache and never stands as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from medseg_kernels.dispatch import is_recorded
from medseg_kernels.memory import empty_large

_NUMBERS = 2**22  # that the widest map of one strip may have: 16 MB, which the allocator takes from touched memory


def in_strips(layers: Callable[[Tensor], Tensor], x: Tensor, *, reach: int, widest: int, channels: int) -> Tensor:
    """What `layers(x)` gives, on a CPU without gradients strip by strip.

    Args:
        layers: (B, C, h, W) to (B, channels, h, W), for any number of rows h; normalised by fixed statistics. A row of
            the result may depend on `reach` rows above and below it; beyond the border each layer must see zeros.
        x: (B, C, H, W).
        reach: Rows.
        widest: Channels of the widest map between.
        channels: Of the result.

    Returns:
        (B, channels, H, W) in the dtype of `x`.
    """
    height = x.shape[2]
    count = -(-x.shape[0] * widest * height * x.shape[3] // _NUMBERS)
    busy = torch.is_grad_enabled() or is_recorded() or torch.is_autocast_enabled("cpu")
    if x.device.type != "cpu" or busy or count < 2:
        return layers(x)
    out = empty_large((x.shape[0], channels, height, x.shape[3]), x)
    rows = -(-height // count)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        above = max(0, first - reach)
        found = layers(x[:, :, above : last + reach])
        out[:, :, first:last] = found[:, :, first - above : last - above]
    return out
