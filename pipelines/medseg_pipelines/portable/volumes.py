"""Volumes read with our exact reader, as MONAI holds them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform
from torch import Tensor

from medseg.errors import InputRefused
from medseg.io import read
from medseg.volume import Kind, Volume


class LoadVolumed(MapTransform):
    """Read files with our exact reader.

    Args:
        keys: Whose values are paths; they become (1, X, Y, Z) with the affine in RAS.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with a MetaTensor in place of each path.

        Raises:
            InputRefused: A file is damaged or no scalar volume.
            UsageError: There is no such file.
        """
        loaded = dict(data)
        for key in self.key_iterator(loaded):
            loaded[key] = as_tensor(read(loaded[key]), name=str(loaded[key]))
        return loaded


def as_tensor(volume: Volume, *, like: Tensor | None = None, name: str = "") -> MetaTensor:
    """A volume as MONAI holds it.

    Args:
        volume: What to hold.
        like: Whose device, meta data and applied operations go on; the affine is that of the volume.
        name: Stands as file name where `like` is not given.
    """
    voxels = native_tensor(volume.voxels)[None]
    if isinstance(like, MetaTensor):
        moved = MetaTensor(voxels.to(like.device), meta=like.meta, applied_operations=like.applied_operations)
        moved.affine = torch.from_numpy(np.array(volume.affine))
        return moved
    affine = np.array(volume.affine)
    meta = {
        "original_affine": affine,
        "spatial_shape": np.asarray(volume.shape),
        "space": "RAS",
        "original_channel_dim": "no_channel",
        "filename_or_obj": name,
    }
    return MetaTensor(voxels, affine=torch.from_numpy(affine), meta=meta)


def as_volume(image: Tensor, *, kind: Kind = "image") -> Volume:
    """A (1, X, Y, Z) MetaTensor as a volume.

    Raises:
        ValueError: It has more than one channel, or no affine.
    """
    if not isinstance(image, MetaTensor) or image.dim() != 4 or image.shape[0] != 1:
        raise ValueError(f"image must be a MetaTensor (1, X, Y, Z), got {type(image).__name__} {tuple(image.shape)}")
    affine = image.affine.cpu().numpy()
    return Volume(image.as_tensor()[0].cpu().numpy(), affine, kind)


def native_tensor(voxels: np.ndarray) -> Tensor:
    """Voxels in the same type, or the next larger one where few operations of torch know it."""
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}.get(voxels.dtype, voxels.dtype)
    native = np.ascontiguousarray(voxels, dtype=np.dtype(wider).newbyteorder("="))
    return torch.from_numpy(native)


def plain_tensor(x: Tensor) -> Tensor:
    """Without the meta data of MONAI."""
    return x.as_tensor() if isinstance(x, MetaTensor) else x


def require_one_grid(same: bool) -> None:
    """Refuse an image and a counterpart that do not lie on one grid."""
    if not same:
        raise InputRefused("each image and its counterpart must lie on one grid, two files do not; resample one")
