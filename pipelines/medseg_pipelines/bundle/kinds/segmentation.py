"""Label maps of volumes as bundles."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from medseg import io
from medseg.volume import Volume
from medseg_pipelines.bundle.kinds.kind import (
    Kind,
    Part,
    Steps,
    Training,
    Words,
    plain,
    plain_tensors,
    saving,
    undoing,
)
from medseg_pipelines.bundle.kinds.label_maps import label_format, labels_fault, stock_preparation
from medseg_pipelines.bundle.kinds.specimen import made_up
from medseg_pipelines.bundle.torchscript import LabelScores
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.portable.labels import LabelInferer, PrepareVolumed
from medseg_pipelines.portable.labels_training import IGNORE, LabelLoss, LoadLabelledd
from medseg_pipelines.portable.volumes import LoadVolumed
from medseg_pipelines.recipe import SegmentationRecipe, recipe_folder
from medseg_pipelines.segmentation import Segmentation, body_of, preparation_of

_LEAST_CROP = 32  # voxels; a smaller one shows too little of what is around it


class SegmentationKind(Kind[SegmentationRecipe]):
    """Bundles that segment volumes."""

    POSTFIX: ClassVar = "labels"

    @property
    def dtype(self) -> str:
        """The integer type that holds every label."""
        return "uint16" if any(label.id > 255 for label in self.recipe.labels) else "uint8"

    @property
    def flat(self) -> bool:
        """Whether the network sees slices."""
        return self.recipe.inference.window[2] == 1

    @property
    def window(self) -> list[int]:
        """Sides of what the network sees, two or three."""
        return list(self.recipe.inference.window[: 2 if self.flat else 3])

    def code(self) -> list[type]:
        """Reader, preparation and sliding window."""
        return [LoadVolumed, PrepareVolumed, LabelInferer]

    def steps(self, network: nn.Module) -> Steps:
        """Read, prepare, slide, undo, save."""
        recipe = self.recipe
        inferer = {
            "_target_": target_of(LabelInferer),
            "window": list(recipe.inference.window),
            "overlap": recipe.inference.overlap,
            "table": [list(pair) for pair in recipe.decode.table],
            "multiple": int(getattr(network, "multiple", 1)),
            "whole_window": recipe.inference.whole_window,
            "body": plain(body_of(recipe)),
        }
        return Steps(
            preprocessing=[
                {"_target_": target_of(LoadVolumed), "keys": "image"},
                {"_target_": target_of(PrepareVolumed), "keys": "image", **plain(preparation_of(recipe))},
            ],
            inferer=inferer,
            postprocessing=[undoing(), saving(self.POSTFIX, self.dtype)],
        )

    def stock_steps(self) -> Steps:
        """The same as MONAI resamples and blends: label maps close to ours but not the same voxel by voxel."""
        inference = self.recipe.inference
        inferer = {
            "_target_": "SliceInferer" if self.flat else "SlidingWindowInferer",
            **({"spatial_dim": 2} if self.flat else {}),
            "roi_size": self.window,
            "sw_batch_size": 1,
            "overlap": inference.overlap,
            "mode": "gaussian",
        }
        decode = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
        return Steps(
            preprocessing=stock_preparation(self.recipe.preparation),
            inferer=inferer,
            postprocessing=[decode, undoing(), saving(self.POSTFIX, self.dtype)],
        )

    def training(self) -> Training:
        """Fine-tuning on label maps with the ids of the model."""
        decode = self.recipe.decode
        both = ["image", "label"]
        crop = [max(_LEAST_CROP, side // 2 // 32 * 32) for side in self.window] + [1] * self.flat
        load = {"_target_": target_of(LoadLabelledd), "table": plain(decode.table)}
        sized = {"roi_size": "@crop", "random_size": False}
        return Training(
            preprocessing=[
                {**load, **plain(preparation_of(self.recipe))},
                {"_target_": "SpatialPadd", "keys": "image", "spatial_size": "@crop"},
                {"_target_": "SpatialPadd", "keys": "label", "spatial_size": "@crop", "constant_values": IGNORE},
                {"_target_": "RandSpatialCropd", "keys": both, **sized},
                {"_target_": "RandAdjustContrastd", "keys": "image", "prob": 0.5, "gamma": [0.7, 1.5]},
                {"_target_": "RandGaussianNoised", "keys": "image", "prob": 0.5, "std": 0.05},
                *[{"_target_": "SqueezeDimd", "keys": both, "dim": -1}] * self.flat,
                plain_tensors(both),
            ],
            loss={"_target_": target_of(LabelLoss), "classes": len(decode.table), "sided": decode.sided},
            options={"crop": crop, "batch_size": 1, "learning_rate": 1e-4, "max_epochs": 20},
            code=[LoadLabelledd, LabelLoss],
            folders=("images", "labels"),
            content="label maps with the ids of this model, each on the grid of its image",
        )

    def data_format(self, *, script: bool) -> Part:
        """Windows in, scores out; of `model.ts` one channel per label in the order of the ids."""
        recipe = self.recipe
        return label_format(
            recipe.labels,
            script=script,
            outputs=recipe.decode.outputs,
            shape=self.window,
            modality=recipe.scope.modalities[0],
            values=[0, 1.5] if recipe.preparation.intensity is None else [],
            dtype=self.dtype,
        )

    def words(self) -> Words:
        """What the documentation says."""
        scope, window = self.recipe.scope, " x ".join(map(str, self.window))
        seen = "slices" if self.flat else "windows"
        return Words(
            result=f"The label maps are those of `medseg infer -m {self.recipe.name}`, voxel by voxel",
            script=f"{seen} of {window} voxels, one channel per label. MONAI resamples in another way, so those label "
            "maps are close to the others and not the same",
            classes=(
                f"one channel, {'/'.join(scope.modalities)} of the {scope.anatomy}",
                "one integer per voxel, 0 is background",
                "scores per class; the label map after the inferer",
            ),
        )

    def served(self, network: nn.Module) -> nn.Module:
        """Scores per label."""
        return LabelScores(network, self.recipe.decode.table).eval()

    def sample(self, seed: int) -> Tensor:
        """A window."""
        return torch.rand((1, 1, *self.window), generator=torch.Generator().manual_seed(seed))

    def write_specimen(self, path: Path) -> None:
        """A volume a little longer than one window."""
        io.write(specimen(self.recipe), path)

    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """The number of voxels that differ."""
        expected = Segmentation(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True).volume
        return labels_fault(folder / f"{scan.name.removesuffix('.nii.gz')}_{self.POSTFIX}.nii.gz", expected)


def specimen(recipe: SegmentationRecipe) -> Volume:
    """An oblique, anisotropic image a little longer than one window of a recipe."""
    spacing = recipe.preparation.spacing or (1.0, 1.0, 1.0)
    margin = 2 * (recipe.preparation.foreground_margin or 0.0)
    extents = [
        share * n * step for share, n, step in zip((1.2, 0.9, 0.8), recipe.inference.window, spacing, strict=True)
    ]
    steps = np.array(spacing) * (1.0, 1.2, 1.5)
    shape = [max(16, round(1.1 * extent / step)) for extent, step in zip(extents, steps, strict=True)]
    return made_up(shape, steps.tolist(), body=[max(0.5, (extent - margin) / extent) for extent in extents])
