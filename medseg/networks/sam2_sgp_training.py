"""What SAM2-SGP is trained with, as released and as it works here (2506.19658)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.losses import tversky_index
from medseg.networks.sam2_sgp import Segmented

LEAST = 0.01  # share of an image from which on a structure weighs as much as the rest


def released_loss(
    logits: Tensor, target: Tensor, epoch: int, *, start: float = 0.5, decay: float = 0.95, pos_weight: float = 2.0
) -> Tensor:
    """Binary cross entropy of the result, growing with the epochs from `1 - start` to all of its weight.

    The released code also names a term on the pseudo mask, but throws it away.

    Args:
        logits: Any shape.
        target: 0 or 1, alike.
        epoch: From 0.
        start: What is held back in the first epoch.
        decay: Of that, per epoch.
        pos_weight: How often a pixel of the structure counts.

    Returns:
        Scalar in nats.
    """
    weight = torch.tensor(pos_weight, dtype=logits.dtype, device=logits.device)
    entropy = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), pos_weight=weight)
    return (1 - start * decay**epoch) * entropy


def guided_loss(found: Segmented, target: Tensor, epoch: int, *, start: float = 0.5, decay: float = 0.95) -> Tensor:
    """Dice and entropy of the result, and of the pseudo mask with the weight that the released loss holds back.

    Without the second part nothing tells the first decoder what to draw. Every image counts alike, and in its entropy
    so do the structure and the rest: where a structure covers a hundredth, a new decoder learns to draw nothing.

    Args:
        found: What the network says.
        target: 0 or 1, (B, 1, side, side).
        epoch: From 0.
        start: Weight of the pseudo mask in the first epoch.
        decay: Of that, per epoch.
    """
    coarse = F.adaptive_avg_pool2d(target.float(), (found.pseudo.shape[-2], found.pseudo.shape[-1]))
    return _each_image(found.logits, target.float()) + start * decay**epoch * _each_image(found.pseudo, coarse)


def _each_image(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice and entropy, half of it of what is inside; the mean over images (B, 1, H, W), targets 0 to 1."""
    share = target.mean((1, 2, 3), keepdim=True)
    inside, outside = (0.5 / part.clamp(min=LEAST) for part in (share, 1 - share))
    entropy = F.binary_cross_entropy_with_logits(logits.float(), target, outside, pos_weight=inside / outside)
    pairs = zip(logits.float().sigmoid(), target, strict=True)
    return entropy + 1 - torch.stack([tversky_index(x, t) for x, t in pairs]).mean()


def overlap(logits: Tensor, target: Tensor, *, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
    """Intersection over union and Dice of what lies above a threshold, averaged over the batch.

    Args:
        logits: (B, ...).
        target: Boolean, alike.
        threshold: Logit that a pixel of the structure exceeds; 0.5 in the released code.

    Returns:
        Two scalars from 0 to 1; 1 where both masks are empty.
    """
    mask, target = (logits > threshold).flatten(1), target.flatten(1)
    common, sizes = (mask & target).sum(1).float(), (mask.sum(1) + target.sum(1)).float()
    iou = (common + 1e-6) / (sizes - common + 1e-6)
    return iou.mean(), ((2 * common + 1e-4) / (sizes + 1e-4)).mean()
