"""Our restoration of pictures as MONAI parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from monai.data.meta_tensor import MetaTensor
from monai.inferers.inferer import Inferer
from torch import Tensor, nn

from medseg.networks.rat import RAT
from medseg_pipelines.engines import prepare as prepare_network
from medseg_pipelines.picture_blending import as_pixels, picture_regions, planes_of, restored_planes, window_plan
from medseg_pipelines.portable.pictures import picture_from
from medseg_pipelines.portable.slices import regions_from
from medseg_pipelines.portable.volumes import native_tensor, plain_tensor


class RegionalPictureRAT(RAT):
    """RAT with one input, as MONAI serves networks: region ids are the last channel. Parameters keep their names."""

    def forward(self, image: Tensor, regions: Tensor | None = None) -> Tensor:
        """(B, C + 1, H, W), the last channel region ids, to the restored picture (B, C, scale H, scale W).

        Args:
            image: Sides times the scale are multiples of `multiple`.
            regions: Ids (B, scale H, scale W) where they are not a channel of the image.
        """
        if regions is None:
            image, ids = image[:, :-1], image[:, -1].round().long()
            regions = ids.repeat_interleave(self.scale, 1).repeat_interleave(self.scale, 2)
        return super().forward(image, regions)


class PictureRestorer(Inferer):
    """Restore or enlarge pictures as they were read, as `medseg infer` does.

    Args:
        partition: `kind` and `options` of the partitioner.
        window: Pixels of both sides.
        overlap: Share of the window.
        colour: Whether the network sees all channels at once.
    """

    def __init__(self, *, partition: Mapping[str, Any], window: int, overlap: float, colour: bool) -> None:
        super().__init__()
        self.how, self.window, self.overlap, self.colour = regions_from(partition), window, overlap, colour

    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C, W, H) pixels to restored ones, (B, C, scale W, scale H), of the same type.

        Raises:
            InputRefused: The colours have 16 bit.
        """
        predict = cast(RAT, prepare_network(network, device=str(inputs.device)))
        restored = []
        for pixels in plain_tensor(inputs).cpu().numpy():
            picture = picture_from(pixels)
            planes = planes_of(picture, colour=self.colour)
            found = restored_planes(
                predict,
                planes,
                picture_regions(planes, self.how),
                window_plan(picture.size, self.window, self.overlap, scale=predict.scale),
                colour=self.colour,
                device=inputs.device,
            )
            restored.append(native_tensor(as_pixels(found, picture).transpose(2, 1, 0)))
        batch = torch.stack(restored).to(inputs.device)
        return MetaTensor(batch, meta=inputs.meta) if isinstance(inputs, MetaTensor) else batch
