"""How FSG-Net is taught and judged: loss over three outputs, wave of learning rates, padding, scores of vessels."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from medseg.losses import dice_and_binary_entropy


def supervision_loss(outputs: Sequence[Tensor], target: Tensor) -> Tensor:
    """Mean over the outputs of cross entropy plus Dice loss.

    Args:
        outputs: Logits, (B, C, H, W) each.
        target: 0 or 1, same shape.

    Returns:
        Scalar.
    """
    return torch.stack([dice_and_binary_entropy(output, target, from_logits=True) for output in outputs]).mean()


def learning_rate_wave(step: int, steps: int, *, warmup: int, cycles: float) -> float:
    """Factor on the base rate: a straight rise from 0, then a cosine that returns to 1 every cycle.

    Args:
        step: Optimisation step, from 0.
        steps: Of the whole training.
        warmup: Steps of the rise.
        cycles: Waves in the rest.

    Returns:
        0 to 1.
    """
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1 + cos(2 * pi * cycles * progress)))


def pad_to_centre(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Zeros around an image, the odd one below and to the right; meant for values before normalisation.

    Args:
        image: (..., H, W).
        size: Height and width wanted.

    Returns:
        (..., *size).

    Raises:
        ValueError: The image is larger.
    """
    rows, columns = size[0] - image.shape[-2], size[1] - image.shape[-1]
    if rows < 0 or columns < 0:
        raise ValueError(f"size must be at least {tuple(image.shape[-2:])}, got {size}")
    return F.pad(image, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])


def vessel_scores(
    probability: NDArray[np.floating], target: NDArray[np.generic], *, threshold: float = 0.5
) -> dict[str, float]:
    """How well probabilities find a mask, pixel by pixel.

    Args:
        probability: 0 to 1, any shape; leave out what lies outside the field of view.
        target: 0 or 1, same shape.
        threshold: A pixel is found where its probability is above.

    Returns:
        `accuracy`, `sensitivity`, `specificity`, `f1`, `iou` and `mcc`, 0 where they are not defined, and `auc`, the
        area under the ROC curve of the probabilities (nan if the mask is empty or full). The published code takes its
        area from thresholded, separately sorted vectors, which says nothing about the order of pixels.
    """
    found, truth = (probability > threshold).ravel(), np.asarray(target).astype(bool).ravel()
    true_positive, false_positive = float((found & truth).sum()), float((found & ~truth).sum())
    false_negative = float((~found & truth).sum())
    true_negative = found.size - true_positive - false_positive - false_negative
    right, wrong = true_positive * true_negative, false_positive * false_negative
    marginals = (true_positive + false_positive) * (true_positive + false_negative)
    marginals *= (true_negative + false_positive) * (true_negative + false_negative)
    return {
        "accuracy": (true_positive + true_negative) / found.size,
        "sensitivity": _ratio(true_positive, true_positive + false_negative),
        "specificity": _ratio(true_negative, true_negative + false_positive),
        "f1": _ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        "iou": _ratio(true_positive, true_positive + false_positive + false_negative),
        "mcc": _ratio(right - wrong, marginals**0.5),
        "auc": _area_under_roc(probability.ravel(), truth),
    }


def _ratio(above: float, below: float) -> float:
    return above / below if below else 0.0


def _area_under_roc(probability: NDArray[np.floating], truth: NDArray[np.bool_]) -> float:
    """Share of pairs of one pixel inside and one outside in which the inner one scores higher; ties count half."""
    inside = int(truth.sum())
    outside = truth.size - inside
    if not inside or not outside:
        return float("nan")
    return float((rankdata(probability)[truth].sum() - inside * (inside + 1) / 2) / (inside * outside))
