"""Our super-resolution as a MONAI part."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from monai.data.utils import collate_meta_tensor
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medseg.volume import Volume
from medseg_pipelines.engines import prepare as prepare_network
from medseg_pipelines.portable.volumes import as_tensor, as_volume
from medseg_pipelines.slices import Scaling
from medseg_pipelines.superresolution_grid import FinerGrid
from medseg_pipelines.superresolution_steps import finer_plan, refined

if TYPE_CHECKING:
    from medseg_pipelines.recipe import Upscaling


class FinerVoxels(Inferer):
    """Give a volume finer voxels, as `medseg infer` does.

    Args:
        upscaling: Fields of `Upscaling`.
    """

    def __init__(self, *, upscaling: Mapping[str, Any]) -> None:
        super().__init__()
        self.upscaling = cast("Upscaling", SimpleNamespace(**upscaling))

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """(1, 1, X, Y, Z) with an affine, in its own grey values, to the same on the finer grid, float32.

        Raises:
            InputRefused: Slices are to be made thinner, and they are not thick.
            ValueError: There is more than one volume, or it has no affine.
        """
        if len(inputs) != 1:
            raise ValueError(f"volumes must come one by one, their grids differ, got {len(inputs)}")
        predict = prepare_network(network, device=str(inputs.device))
        volume = as_volume(inputs[0])
        finer = FinerGrid.of(volume.grid, self.upscaling)
        scaling = Scaling.of_percentile(volume.voxels, self.upscaling.percentile)
        acquired = torch.from_numpy(scaling.apply(volume.voxels))
        layout = finer_plan(finer, self.upscaling)
        found = refined(predict, acquired, finer, layout, self.upscaling, device=inputs.device)
        fine = torch.from_numpy(found)
        if float(volume.voxels.min()) >= 0:
            fine.clamp_(min=0)  # a magnitude stays one
        restored = Volume(fine.mul_(scaling.width).numpy(), finer.after.affine)
        return cast(Tensor, collate_meta_tensor([as_tensor(restored, like=inputs[0])]))
