"""Data and loss to train a network that segments further with MONAI's own trainer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import MapTransform
from torch import Tensor, nn

from medseg.io import read
from medseg.losses import dice_and_cross_entropy, side_entropy
from medseg_pipelines.portable.volumes import plain_tensor, require_one_grid
from medseg_pipelines.preparation import prepare

IGNORE = 255  # class or side of a voxel that counts for nothing


class LoadLabelledd(MapTransform):
    """Read an image and its label map, and bring both to the grid that the network sees.

    Args:
        table: Label ids per class on the right and on the left of the patient; other ids count for nothing.
        preparation: Arguments of `prepare`.
    """

    def __init__(self, *, table: Sequence[Sequence[int]], **preparation: Any) -> None:
        super().__init__(("image", "label"))
        self.table, self.preparation = table, preparation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Paths at `image` and `label` become (1, X, Y, Z) float32 and (2, X, Y, Z) class and side, uint8.

        Raises:
            InputRefused: A file is damaged, or the two lie on different grids.
        """
        image, labels = read(data["image"]), read(data["label"], kind="labels")
        require_one_grid(image.grid.equals(labels.grid, tolerance=1e-3))
        seen, chain = prepare(image, **self.preparation)
        target = class_and_side(chain.apply(labels).voxels, self.table)
        return {**data, "image": torch.from_numpy(seen.voxels[None]), "label": torch.from_numpy(target)}


class LabelLoss(nn.Module):
    """Dice and cross entropy of the classes, and entropy of the side where there is one.

    Args:
        classes: Outputs of the network that are classes.
        sided: Whether one more output is the side.
        side_weight: Of its entropy.
    """

    def __init__(self, *, classes: int, sided: bool, side_weight: float = 0.5) -> None:
        super().__init__()
        self.classes, self.sided, self.side_weight = classes, sided, side_weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, K, *grid) scores and (B, 2, *grid) class and side to a scalar."""
        loss = prediction.new_zeros(())
        for scores, truth in zip(plain_tensor(prediction).flatten(2), plain_tensor(target).flatten(2), strict=True):
            loss = loss + dice_and_cross_entropy(scores[: self.classes], truth[0], ignore=IGNORE)
            if self.sided:
                loss = loss + self.side_weight * side_entropy(scores[self.classes], truth[1], ignore=IGNORE)
        return loss / len(prediction)


def class_and_side(labels: np.ndarray, table: Sequence[Sequence[int]]) -> np.ndarray:
    """Label ids (X, Y, Z) to class and side (1 for left, 0 for right), (2, X, Y, Z) uint8; `IGNORE` for neither."""
    found = np.full((2, *labels.shape), IGNORE, np.uint8)
    for number, (right, left) in enumerate(table):
        found[0][(labels == right) | (labels == left)] = number
        if right != left:
            found[1][labels == right], found[1][labels == left] = 0, 1
    return found
