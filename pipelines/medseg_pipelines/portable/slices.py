"""Our restoration slice by slice as MONAI parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medseg.networks.rat import RAT
from medseg.partition import Intensity, Partitioner, Superpixels
from medseg.regions import pad_to_multiple
from medseg_pipelines.engines import prepare as prepare_network
from medseg_pipelines.portable.volumes import as_tensor, as_volume
from medseg_pipelines.slice_restoration import SliceStack, find_residual
from medseg_pipelines.slices import PlainSlices, restored_slice


class RegionalRAT(RAT):
    """RAT with one input, as MONAI serves networks: region ids are the last channel. Parameters keep their names.

    Args:
        in_channels: Channels of the image, the regions not counted.
        context: Slices among them, the one to restore in the middle.
        guide: Whether non-local means follow them.
        options: Further ones of `RAT`.

    Raises:
        ValueError: It would enlarge the image, which regions of the size of the image do not fit.
    """

    def __init__(self, in_channels: int = 1, *, context: int = 1, guide: bool = False, **options: Any) -> None:
        super().__init__(in_channels, **options)
        if self.scale != 1:
            raise ValueError(f"scale must be 1 where slices keep their grid, got {self.scale}")
        self.context, self.guide = context, guide

    def forward(self, image: Tensor, regions: Tensor | None = None) -> Tensor:
        """(B, C + 1, H, W), the last channel region ids, to the restored slice (B, 1, H, W).

        Args:
            image: Sides are multiples of `multiple`.
            regions: Ids (B, H, W) where they are not a channel of the image.
        """
        if regions is None:
            image, regions = image[:, :-1], image[:, -1].round().long()
        found = super().forward(image, regions)
        return restored_slice(image, found, context=self.context, guide=self.guide)


class SliceRestorer(Inferer):
    """Restore a volume as it was read, slice by slice, as `medseg infer` does.

    Args:
        slices: Fields of `PlainSlices`.
        partition: `kind` and `options` of the partitioner.
    """

    def __init__(self, *, slices: Mapping[str, Any], partition: Mapping[str, Any]) -> None:
        super().__init__()
        self.slices = PlainSlices(**slices)
        self.how = regions_from(partition)

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """(B, 1, X, Y, Z) images with an affine, in their own grey values, to the same, restored, float32.

        Raises:
            InputRefused: The slices are too small.
            ValueError: An image has no affine.
        """
        predict = prepare_network(network, device=str(inputs.device))
        multiple = int(getattr(network, "multiple", 1))

        def restore(image: Tensor, ids: Tensor) -> Tensor:
            rows, columns = image.shape[2:]
            seen = torch.cat((image, ids[:, None].to(image.dtype)), dim=1)
            return predict(pad_to_multiple(seen, multiple))[..., :rows, :columns]

        restored = []
        for number in range(len(inputs)):
            volume = as_volume(inputs[number])
            stack = SliceStack.of(volume, self.slices)
            residual = find_residual(stack, stack.regions(self.how), self.slices, restore, device=inputs.device)
            restored.append(as_tensor(volume.with_voxels(stack.restored(residual))).as_tensor())
        found = torch.stack(restored).to(inputs.device)
        return MetaTensor(found, meta=inputs.meta) if isinstance(inputs, MetaTensor) else found


def regions_from(partition: Mapping[str, Any]) -> Partitioner:
    """The partitioner of `kind` "intensity" or "superpixels", with its `options`."""
    kinds: dict[str, type[Partitioner]] = {"intensity": Intensity, "superpixels": Superpixels}
    return kinds[partition["kind"]](**partition["options"])
