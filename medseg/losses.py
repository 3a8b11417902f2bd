"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dice_and_cross_entropy(logits: Tensor, target: Tensor, *, ignore: int = 255, smooth: float = 1.0) -> Tensor:
    """Soft Dice averaged over the classes that occur, plus cross entropy averaged over the voxels.

    Args:
        logits: (C, N), floating point.
        target: Class per voxel, (N,), integer; `ignore` where a voxel counts for nothing.
        ignore: That value.
        smooth: Voxels added above and below the Dice fraction, so that an absent class gives no gradient burst.

    Returns:
        Scalar, the mean of 1 - Dice plus the cross entropy in nats; 0 where every voxel is ignored.
    """
    known = target != ignore
    if not bool(known.any()):
        return logits.sum() * 0
    logits, target = logits.float()[:, known], target[known].long()
    log_p = logits.log_softmax(0)
    entropy = F.nll_loss(log_p.T, target)
    p, truth = log_p.exp(), F.one_hot(target, logits.shape[0]).T.to(log_p.dtype)
    size = truth.sum(1)
    dice = (2 * (p * truth).sum(1) + smooth) / (p.sum(1) + size + smooth)
    return entropy + (1 - dice[size > 0]).mean()


def side_entropy(logit: Tensor, side: Tensor, *, ignore: int = 255) -> Tensor:
    """Binary cross entropy of left (1) against right (0).

    Args:
        logit: (N,), positive for left.
        side: (N,), 1, 0 or `ignore`.
        ignore: Value of voxels without a side.

    Returns:
        Scalar in nats; 0 where no voxel has a side.
    """
    known = side != ignore
    if not bool(known.any()):
        return logit.sum() * 0
    return F.binary_cross_entropy_with_logits(logit[known].float(), side[known].to(torch.float32))
