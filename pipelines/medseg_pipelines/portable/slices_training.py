"""Data and loss to train a network that restores slices further with MONAI's own trainer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms.transform import MapTransform, RandomizableTransform
from torch import Tensor, nn

from medseg.geometry import to_ras
from medseg.io import read
from medseg.losses import focal_region_loss
from medseg.turns import TURNS, turned
from medseg_pipelines.portable.slices import regions_from
from medseg_pipelines.portable.volumes import plain_tensor, require_one_grid
from medseg_pipelines.slice_restoration import SliceStack
from medseg_pipelines.slices import PlainSlices, find_guide, network_input, stacked


class LoadSlicesd(MapTransform):
    """Read a degraded image and its good counterpart as stacks of slices, and find the regions of the former.

    Args:
        slices: Fields of `PlainSlices`.
        partition: `kind` and `options` of the partitioner.
    """

    def __init__(self, *, slices: Mapping[str, Any], partition: Mapping[str, Any]) -> None:
        super().__init__(("image", "label"))
        self.slices = PlainSlices(**slices)
        self.how = regions_from(partition)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Paths at `image` and `label` become (X, Y, S) float32 in units of the network; `regions` the same, int32,
        and `guide` where the network sees one.

        Raises:
            InputRefused: A file is damaged, too small, or the two lie on different grids.
        """
        image, target = to_ras(read(data["image"]))[0], to_ras(read(data["label"]))[0]
        require_one_grid(image.grid.equals(target.grid, tolerance=1e-3))
        stack = SliceStack.of(image, self.slices)
        good = stack.scaling.apply(stacked(target.voxels, stack.axis))
        found = {"image": stack.voxels, "label": good, "regions": stack.regions(self.how)}
        if self.slices.guide:
            found["guide"] = find_guide(stack.voxels, list(range(stack.count)))
        return {**data, **{name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in found.items()}}


class RandSliced(RandomizableTransform, MapTransform):
    """A square of a slice with what the network sees of it, turned and flipped by chance.

    Args:
        slices: Fields of `PlainSlices`.
        crop: Side of the square in pixels, a multiple of what the network wants; smaller images are mirrored on.
    """

    def __init__(self, *, slices: Mapping[str, Any], crop: int) -> None:
        MapTransform.__init__(self, ("image", "label"))
        RandomizableTransform.__init__(self)
        self.slices, self.crop = PlainSlices(**slices), crop

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """What `LoadSlicesd` gives to `image` (C + 1, crop, crop) and `label` (2, crop, crop), target and regions."""
        names = ("image", "label", "regions", *(["guide"] if self.slices.guide else []))
        stacks = [_mirrored(np.asarray(data[name]), self.crop) for name in names]
        width, height, depth = stacks[0].shape
        x, y, middle = (int(self.R.randint(n)) for n in (width - self.crop + 1, height - self.crop + 1, depth))
        way = int(self.R.randint(TURNS))
        reach = self.slices.context // 2
        around = np.clip(np.arange(middle - reach, middle + reach + 1), 0, depth - 1)
        square = np.s_[x : x + self.crop, y : y + self.crop]
        degraded, target, regions, *guide = (turned(each[*square, around], way) for each in stacks)
        ids = torch.from_numpy(regions[None, :, :, reach].astype(np.float32))
        clean = guide[0][:, :, reach : reach + 1] if guide else None
        seen = network_input(degraded, [reach], self.slices, guide=clean)[0]
        good = torch.from_numpy(target[None, :, :, reach].astype(np.float32))
        return {"image": torch.cat((seen, ids)), "label": torch.cat((good, ids))}


class RegionLoss(nn.Module):
    """Absolute error of a restored slice, weighed up in the worst regions.

    Args:
        beta: How much heavier the worst region counts.
    """

    def __init__(self, *, beta: float = 1e-3) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, 1, H, W) and (B, 2, H, W), target and region ids, to a scalar."""
        good, regions = plain_tensor(target).split((1, 1), dim=1)
        return focal_region_loss(plain_tensor(prediction), good, regions[:, 0].round().long(), beta=self.beta)


def _mirrored(stack: np.ndarray, side: int) -> np.ndarray:
    """(X, Y, S) with at least `side` pixels along X and Y."""
    missing = [(0, max(0, side - n)) for n in stack.shape[:2]]
    return np.pad(stack, [*missing, (0, 0)], mode="symmetric") if any(b for _, b in missing) else stack
