"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.regions import region_mean


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


def tversky_index(
    probability: Tensor,
    target: Tensor,
    *,
    false_positive: float = 0.5,
    false_negative: float = 0.5,
    smooth: float = 0.5,
) -> Tensor:
    """Overlap of probabilities with a mask, summed over everything given; Dice if not told otherwise.

    Args:
        probability: 0 to 1, any shape.
        target: 0 or 1, same shape.
        false_positive: What probability outside the mask counts in the denominator; 1 and 1 give the Jaccard index.
        false_negative: What lacks inside the mask counts.
        smooth: Added above and below the fraction; 0.5 here is the 1 of a Dice written with twice the overlap.

    Returns:
        Scalar, 0 to 1.
    """
    overlap = (probability * target).sum()
    wrong = false_positive * (probability.sum() - overlap) + false_negative * (target.sum() - overlap)
    return (overlap + smooth) / (overlap + wrong + smooth)


def focal_entropy(
    prediction: Tensor, target: Tensor, *, alpha: float = 0.8, gamma: float = 2.0, from_logits: bool = False
) -> Tensor:
    """Mean binary cross entropy E as alpha (1 - exp(-E))^gamma E: it weighs the whole batch, not its pixels.

    Args:
        prediction: Probabilities, or logits if `from_logits`; any shape.
        target: 0 or 1, same shape.
        alpha: Factor.
        gamma: How much a small entropy is made smaller.
        from_logits: Whether `prediction` stands before the sigmoid.

    Returns:
        Scalar in nats.
    """
    entropy = _binary_entropy(prediction, target, from_logits)
    return alpha * (1 - (-entropy).exp()) ** gamma * entropy


def dice_and_focal(
    prediction: Tensor,
    target: Tensor,
    *,
    dice_weight: float = 0.8,
    alpha: float = 0.8,
    gamma: float = 2.0,
    from_logits: bool = True,
    each_sample: bool = False,
) -> Tensor:
    """HER-Seg's training loss: `dice_weight` (1 - Dice) and the rest of the weight on `focal_entropy`.

    Args:
        prediction: (B, ...), logits, or probabilities if not `from_logits`.
        target: 0 or 1, same shape.
        dice_weight: 0 to 1.
        alpha: Of the focal term.
        gamma: Of the focal term.
        from_logits: Whether `prediction` stands before the sigmoid.
        each_sample: Take both terms per sample and average them; the published code takes the batch as one.

    Returns:
        Scalar.
    """
    options = {"alpha": alpha, "gamma": gamma, "from_logits": from_logits}
    if each_sample:
        pairs = zip(prediction, target, strict=True)
        return torch.stack([dice_and_focal(x, t, dice_weight=dice_weight, **options) for x, t in pairs]).mean()
    dice = tversky_index(_probability(prediction, from_logits), target.float())
    return dice_weight * (1 - dice) + (1 - dice_weight) * focal_entropy(prediction, target, **options)


def dice_and_binary_entropy(prediction: Tensor, target: Tensor, *, from_logits: bool = False) -> Tensor:
    """FSG-Net's training loss of one output: mean binary cross entropy plus 1 - Dice, the batch taken as one.

    Args:
        prediction: Probabilities, or logits if `from_logits`; any shape.
        target: 0 or 1, same shape.
        from_logits: Whether `prediction` stands before the sigmoid.

    Returns:
        Scalar.
    """
    dice = tversky_index(_probability(prediction, from_logits), target.float())
    return _binary_entropy(prediction, target, from_logits) + 1 - dice


def _probability(prediction: Tensor, from_logits: bool) -> Tensor:
    return prediction.float().sigmoid() if from_logits else prediction.float()


def _binary_entropy(prediction: Tensor, target: Tensor, from_logits: bool) -> Tensor:
    """Mean over everything in nats, in float32."""
    loss = F.binary_cross_entropy_with_logits if from_logits else F.binary_cross_entropy
    return loss(prediction.float(), target.float())


def focal_region_loss(prediction: Tensor, target: Tensor, regions: Tensor, *, beta: float = 1e-3) -> Tensor:
    """RAT's training loss: absolute error, weighed up in regions where it is large.

    A region's weight is its mean error over pixels and channels, divided by the largest of the whole batch; no gradient
    flows through it. Where nothing is wrong the loss is 0 (published: not a number).

    Args:
        prediction: (B, C, H, W).
        target: Same shape.
        regions: Region ids at full resolution, (B, H, W).
        beta: How much heavier the worst region counts; 1e-3 in the published training.

    Returns:
        Scalar, in units of the images.
    """
    error = (prediction - target).abs()
    mean = region_mean(error.detach().mean(1), regions)
    weight = mean / mean.max().clamp(min=torch.finfo(mean.dtype).tiny)
    return (error * (1 + beta * weight[:, None])).mean()


def charbonnier_loss(prediction: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + eps^2): an absolute error that is smooth at 0.

    Args:
        prediction: Any shape.
        target: Same shape.
        eps: Where the curve turns from round to straight, in units of the images.

    Returns:
        Scalar.
    """
    return ((prediction - target).square() + eps**2).sqrt().mean()
