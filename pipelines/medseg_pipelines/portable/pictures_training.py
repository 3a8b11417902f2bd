"""Data and loss to train a network that segments pictures further with MONAI's own trainer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import MapTransform
from torch import Tensor, nn

from medseg.errors import InputRefused
from medseg.io.pictures import read_mask, read_picture
from medseg.losses import dice_and_binary_entropy
from medseg_pipelines.picture_preparation import prepare_picture, resized
from medseg_pipelines.portable.pictures import preparation_from
from medseg_pipelines.portable.volumes import plain_tensor


class LoadMaskedd(MapTransform):
    """Read a picture and its mask, and bring both to the size that the network sees.

    Args:
        preparation: Fields of `PicturePreparation`.
    """

    def __init__(self, *, preparation: Mapping[str, Any]) -> None:
        super().__init__(("image", "label"))
        self.preparation = preparation_from(preparation)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Paths at `image` and `label` become (C, h, w) and (1, h, w), 0 or 1, both float32.

        Raises:
            InputRefused: A file is damaged, or the two differ in size.
        """
        picture, mask = read_picture(Path(data["image"])), read_mask(Path(data["label"]))
        if mask.shape != picture.size:
            raise InputRefused("each picture and its mask must have one size, two files do not; crop or scale one")
        seen = prepare_picture(picture, self.preparation)
        target = resized(mask[None].astype(np.float32), seen.inside.shape) > 0.5
        return {**data, "image": torch.from_numpy(seen.planes), "label": torch.from_numpy(target.astype(np.float32))}


class MaskLoss(nn.Module):
    """Dice and cross entropy of a mask."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, 1, h, w) logits and 0 or 1, same shape, to a scalar."""
        return dice_and_binary_entropy(plain_tensor(prediction), plain_tensor(target), from_logits=True)
