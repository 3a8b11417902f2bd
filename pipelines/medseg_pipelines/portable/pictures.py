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
from monai.transforms.io.dictionary import SaveImaged
from monai.transforms.transform import MapTransform
from numpy.typing import NDArray
from torch import Tensor, nn

from medseg.io.pictures import name_for_ids, read_picture, write_ids, write_pixels
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


class SavePixelsd(SaveImaged):
    """Save pictures and numbers with the values they have, as `medseg infer` does, which MONAI's own writer cannot.

    Pictures of 8 bit stay such; other whole numbers become grey pictures of 16 bit, or of 32 bit where they are larger.

    Args:
        keys: Whose values are (C, W, H), whole numbers; one channel beyond 8 bit.
        output_dir: Folder; made where it is missing.
        output_postfix: Goes between the name of the picture and the ending.
    """

    def __init__(self, keys: KeysCollection, *, output_dir: str, output_postfix: str) -> None:
        super().__init__(keys, output_dir=output_dir, output_postfix=output_postfix)
        self.folder, self.postfix = Path(output_dir), output_postfix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data as it was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for key in self.key_iterator(dict(data)):
            pixels = plain_tensor(data[key]).cpu().numpy().transpose(2, 1, 0)
            stem = f"{Path(data[key].meta['filename_or_obj']).stem}_{self.postfix}"
            if pixels.dtype == np.uint8:
                write_pixels(pixels, self.folder / f"{stem}.png")
            else:
                write_ids(pixels[..., 0], self.folder / name_for_ids(stem, int(pixels.max())))
        return dict(data)


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
            picture = picture_from(pixels)
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


def picture_from(pixels: NDArray[np.integer]) -> Picture:
    """A picture as MONAI holds it, (C, W, H), as it was read."""
    depth = np.uint8 if pixels.dtype == np.uint8 else np.uint16
    return Picture(pixels.transpose(2, 1, 0).astype(depth))


def preparation_from(fields: Mapping[str, Any]) -> PicturePreparation:
    """The section of a recipe as plain values, which need no recipe."""
    return cast("PicturePreparation", SimpleNamespace(**fields))
