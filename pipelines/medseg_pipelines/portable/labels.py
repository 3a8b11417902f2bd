"""Preparation and sliding window of our segmentation as MONAI parts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.transform import MapTransform
from monai.utils.type_conversion import convert_to_dst_type
from torch import Tensor, nn

from medseg.geometry import Spacing
from medseg.volume import Grid, Volume
from medseg_pipelines.engines import prepare as prepare_network
from medseg_pipelines.inferers import label_volume, plan, through_slices
from medseg_pipelines.portable.volumes import as_tensor, as_volume, native_tensor, plain_tensor
from medseg_pipelines.preparation import prepare, way


class PrepareVolumed(MapTransform, InvertibleTransform):
    """The grid and the grey values that a network of ours sees, and the exact way back.

    Args:
        keys: Whose values are (1, X, Y, Z) MetaTensors.
        orientation: "RAS" or None.
        margin: mm kept around what is not background, or None.
        spacing: mm or None.
        percentiles: The two that become 0 and 1.
        intensity: Steps in place of the percentiles, see `preparation.rescale`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        orientation: str | None,
        margin: float | None,
        spacing: Spacing | None,
        percentiles: Sequence[float],
        intensity: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(keys)
        self.orientation, self.margin, self.spacing = orientation, margin, spacing
        self.percentiles, self.intensity = percentiles, intensity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with each image prepared, float32."""
        prepared = dict(data)
        for key in self.key_iterator(prepared):
            prepared[key] = self._forward(prepared[key])
        return prepared

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The data with each prediction on the grid that its image had; whole numbers count as labels."""
        undone = dict(data)
        for key in self.key_iterator(undone):
            undone[key] = self._backward(undone[key])
        return undone

    def _forward(self, image: Tensor) -> MetaTensor:
        before = as_volume(image)
        after, chain = prepare(
            before,
            orientation=self.orientation,
            margin=self.margin,
            spacing=self.spacing,
            percentiles=self.percentiles,
            intensity=self.intensity,
        )
        box = getattr(chain.steps[1], "box", None) if self.margin is not None else None
        extra = {"shape": list(before.shape), "before": before.affine.tolist(), "box": box}
        moved = as_tensor(after, like=image)
        self.push_transform(moved, extra_info=extra)
        return moved

    def _backward(self, moved: Tensor) -> MetaTensor:
        extra = self.pop_transform(moved)["extra_info"]
        x, y, z = extra["shape"]
        grid = Grid((x, y, z), np.asarray(extra["before"]))
        chain = way(grid, orientation=self.orientation, box=extra["box"], spacing=self.spacing)
        whole = not moved.is_floating_point()
        # the affine of the tensor went through other hands; that of the chain is the exact one
        affine = chain.steps[-1].after.affine
        volume = Volume(moved[0].cpu().numpy(), affine, "labels" if whole else "image")
        return as_tensor(chain.undo(volume), like=moved)


class LabelInferer(Inferer):
    """Slide over an image and give the label map at once, as `medseg infer` does.

    Args:
        window: Voxels.
        overlap: Share of a window.
        table: Label ids per class on the right and on the left of the patient.
        multiple: What the network wants every side to be a multiple of.
        whole_window: Fill up images that are smaller than the window.
        body: Arguments of `keep_largest` where the structures are one connected body.
    """

    def __init__(
        self,
        *,
        window: Sequence[int],
        overlap: float,
        table: Sequence[Sequence[int]],
        multiple: int = 1,
        whole_window: bool = False,
        body: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.window, self.overlap, self.multiple, self.body = tuple(window), overlap, multiple, body
        self.table, self.whole_window = np.asarray(table), whole_window

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """(B, 1, X, Y, Z) prepared images to label ids, uint8 or int32, same shape and meta data."""
        predict = prepare_network(network, device=str(inputs.device))
        predict = through_slices(predict) if self.window[2] == 1 else predict
        shape = tuple(inputs.shape[2:])
        wanted = tuple(max(pair) for pair in zip(shape, self.window, strict=True)) if self.whole_window else shape
        sided = bool((self.table[:, 0] != self.table[:, 1]).any())
        layout = plan(wanted, self.window, self.overlap, outputs=len(self.table) + int(sided), multiple=self.multiple)
        images = plain_tensor(inputs)
        maps = [
            label_volume(
                predict,
                image[0].cpu().numpy(),
                layout=layout,
                table=self.table,
                body=self.body,
                device=inputs.device,
            )
            for image in images
        ]
        labels = torch.stack([native_tensor(each)[None] for each in maps])
        return convert_to_dst_type(labels, inputs, dtype=labels.dtype)[0]
