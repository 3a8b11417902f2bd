"""Data and loss to train a network that segments pictures further with MONAI's own trainer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.errors import InputRefused
from medseg.instances import instance_targets
from medseg.io.pictures import read_ids, read_mask, read_picture
from medseg.losses import dice_and_binary_entropy
from medseg_pipelines.picture_preparation import prepare_picture, resized
from medseg_pipelines.portable.pictures import preparation_from
from medseg_pipelines.portable.volumes import plain_tensor


class LoadMaskedd(MapTransform):
    """Read a picture and its mask, and bring both to the size that the network sees.

    Args:
        preparation: Fields of `PicturePreparation`.
        masks: "half": bright from half of the brightest value; "values": the ids of `labels`; "things": one number per
            thing, which become things and their cores (`medseg.instances`).
        labels: K ids in the order of the network's outputs, for "values".
    """

    def __init__(
        self,
        *,
        preparation: Mapping[str, Any],
        masks: Literal["half", "values", "things"] = "half",
        labels: Sequence[int] = (),
    ) -> None:
        super().__init__(("image", "label"))
        self.preparation, self.masks, self.labels = preparation_from(preparation), masks, labels

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Paths at `image` and `label` become (C, h, w) and (K, h, w), 0 or 1, both float32.

        Raises:
            InputRefused: A file is damaged, or the two differ in size.
        """
        picture, masks = read_picture(Path(data["image"])), self._masks(Path(data["label"]))
        if masks.shape[1:] != picture.size:
            raise InputRefused("each picture and its mask must have one size, two files do not; crop or scale one")
        seen = prepare_picture(picture, self.preparation)
        target = resized(masks.astype(np.float32), seen.inside.shape) > 0.5
        return {**data, "image": torch.from_numpy(seen.planes), "label": torch.from_numpy(target.astype(np.float32))}

    def _masks(self, path: Path) -> NDArray[Any]:
        """(K, H, W), 0 or 1."""
        if self.masks == "half":
            return read_mask(path)[None]
        ids = read_ids(path)
        return instance_targets(ids) if self.masks == "things" else np.stack([ids == label for label in self.labels])


class MaskLoss(nn.Module):
    """Dice and cross entropy of masks, each with a Dice of its own."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, K, h, w) logits and 0 or 1, same shape, to a scalar."""
        pairs = zip(plain_tensor(prediction).unbind(1), plain_tensor(target).unbind(1), strict=True)
        return torch.stack([dice_and_binary_entropy(found, true, from_logits=True) for found, true in pairs]).mean()
