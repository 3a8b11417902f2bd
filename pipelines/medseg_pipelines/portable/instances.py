"""Our telling apart of things on pictures as MONAI parts."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medseg.instances import OUTPUTS, Separation, separate
from medseg_pipelines.engines import prepare as prepare_network
from medseg_pipelines.picture_windows import probabilities_by_window
from medseg_pipelines.portable.pictures import picture_from, preparation_from
from medseg_pipelines.portable.volumes import plain_tensor

if TYPE_CHECKING:
    from medseg_pipelines.sections import PictureInference


class PictureSeparator(Inferer):
    """Tell apart the things on pictures as they were read, as `medseg infer` does.

    Args:
        preparation: Fields of `PicturePreparation`.
        inference: Fields of `PictureInference`.
        separation: Fields of `Separation`.
    """

    def __init__(
        self, *, preparation: Mapping[str, Any], inference: Mapping[str, Any], separation: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.preparation, self.separation = preparation_from(preparation), Separation(**separation)
        self.inference = cast("PictureInference", SimpleNamespace(**inference))

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C, W, H) pixels to one number per thing, (B, 1, W, H), int32."""
        predict = prepare_network(network, device=str(inputs.device))
        numbered = []
        for pixels in plain_tensor(inputs).cpu().numpy():
            found = probabilities_by_window(
                predict,
                picture_from(pixels),
                self.preparation,
                self.inference,
                outputs=OUTPUTS,
                device=inputs.device,
            )
            numbered.append(torch.from_numpy(separate(found, self.separation).T[None].copy()))
        ids = torch.stack(numbered).to(inputs.device)
        return MetaTensor(ids, meta=inputs.meta) if isinstance(inputs, MetaTensor) else ids
