"""Our segmentation of pictures as MONAI parts. MONAI holds pictures with their columns first, (C, W, H)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.transform import MapTransform
from torch import Tensor, nn

from medseg.io.pictures import read_picture
from medseg.picture import Picture
from medseg_pipelines.engines import prepare as prepare_network
from medseg_pipelines.picture_preparation import prepare_picture, resized
from medseg_pipelines.picture_tiles import labelled, probabilities, tile_plan
from medseg_pipelines.portable.volumes import native_tensor, plain_tensor

if TYPE_CHECKING:
    from medseg_pipelines.sections import PictureInference, PicturePreparation


class LoadPictured(MapTransform):
    """Read pictures as `medseg infer` does.

    Args:
        keys: Whose values are paths; they become (C, W, H), one or three channels.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with a MetaTensor in place of each path.

        Raises:
            InputRefused: A file is damaged or no picture to work on.
            UsageError: There is no such file.
        """
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            pixels = read_picture(Path(loaded[key])).pixels
            meta = {"filename_or_obj": str(loaded[key]), "spatial_shape": np.asarray(pixels.shape[1::-1])}
            loaded[key] = MetaTensor(native_tensor(pixels.transpose(2, 1, 0)), meta=meta)
        return loaded


class PictureMasker(Inferer):
    """Segment pictures as they were read, as `medseg infer` does.

    Args:
        preparation: Fields of `PicturePreparation`.
        inference: Fields of `PictureInference`.
        labels: Ids in the order of the network's outputs.
    """

    def __init__(self, *, preparation: Mapping[str, Any], inference: Mapping[str, Any], labels: Sequence[int]) -> None:
        super().__init__()
        self.preparation, self.labels = preparation_from(preparation), labels
        self.inference = cast("PictureInference", SimpleNamespace(**inference))

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C, W, H) pixels to label ids (B, 1, W, H), uint8."""
        predict = prepare_network(network, device=str(inputs.device))
        found = []
        for pixels in plain_tensor(inputs).cpu().numpy():
            depth = np.uint8 if pixels.dtype == np.uint8 else np.uint16
            picture = Picture(pixels.transpose(2, 1, 0).astype(depth))
            seen = prepare_picture(picture, self.preparation)
            masks = probabilities(
                predict,
                seen.planes,
                tile_plan(seen.inside.shape, self.inference, outputs=len(self.labels)),
                outputs=len(self.labels),
                flips=self.inference.flips,
                device=inputs.device,
            )
            masks = resized(masks, picture.size) * seen.field
            found.append(torch.from_numpy(labelled(masks, seen.field, self.labels, self.inference).T[None].copy()))
        labels = torch.stack(found).to(inputs.device)
        return MetaTensor(labels, meta=inputs.meta) if isinstance(inputs, MetaTensor) else labels


def preparation_from(fields: Mapping[str, Any]) -> PicturePreparation:
    """The section of a recipe as plain values, which need no recipe."""
    return cast("PicturePreparation", SimpleNamespace(**fields))
