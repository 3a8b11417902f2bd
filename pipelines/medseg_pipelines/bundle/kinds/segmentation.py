"""Label maps of volumes as bundles."""

from __future__ import annotations

from collections.abc import Sequence
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
from medseg_pipelines.bundle.kinds.specimen import made_up
from medseg_pipelines.bundle.torchscript import LabelScores
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.portable.labels import LabelInferer, PrepareVolumed
from medseg_pipelines.portable.labels_training import IGNORE, LabelLoss, LoadLabelledd
from medseg_pipelines.portable.volumes import LoadVolumed
from medseg_pipelines.recipe import SegmentationRecipe, recipe_folder
from medseg_pipelines.segmentation import Segmentation, body_of, preparation_of

_FORMATS = {"CT": "hounsfield"}
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
            preprocessing=self._stock_preparation(),
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
        modality = recipe.scope.modalities[0]
        patch = {"spatial_shape": self.window, "dtype": "float32", "is_patch_data": True}
        known = {0: "background", **{label.id: label.name for label in recipe.labels}}
        names = {str(label): name for label, name in known.items()}
        if script:
            names = {str(channel): known[label] for channel, label in enumerate(sorted(known))}
        channels = len(known) if script else recipe.decode.outputs
        image = {
            "type": "image",
            "format": _FORMATS.get(modality, "magnitude"),
            "modality": modality,
            "num_channels": 1,
            **patch,
            "value_range": [0, 1.5] if recipe.preparation.intensity is None else [],
            "channel_def": {"0": "image"},
        }
        scores = {"type": "image", "format": "segmentation", "num_channels": channels, **patch, "value_range": []}
        labels = {
            "type": "image",
            "format": "labels",
            "num_channels": 1,
            "spatial_shape": ["*", "*", "*"],
            "dtype": self.dtype,
            "value_range": [0, 255 if self.dtype == "uint8" else 65535],
            "is_patch_data": False,
            "channel_def": names,
        }
        return {
            "inputs": {"image": image},
            # MONAI Label takes its label names from here, and it shows what the inferer gives: ids, not channels
            "outputs": {"pred": {**scores, "channel_def": names}},
            "post_processed_outputs": {"pred": labels},
        }

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
        written = folder / f"{scan.name.removesuffix('.nii.gz')}_{self.POSTFIX}.nii.gz"
        if not written.is_file():
            return "the run wrote no label map"
        found = io.read(written, kind="labels")
        expected = Segmentation(self.recipe, recipe_folder(model), device="cpu")(scan, force_scope=True).volume
        if not found.grid.equals(expected.grid, tolerance=1e-4):  # mm; the file holds the affine in float32
            return f"grid {found.shape} at {found.spacing} mm, expected {expected.shape} at {expected.spacing} mm"
        differ = int(np.count_nonzero(found.voxels != expected.voxels))
        return f"{differ} of {found.voxels.size} voxels differ" if differ else None

    def _stock_preparation(self) -> list[Part]:
        section = self.recipe.preparation
        steps: list[Part] = [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
        ]
        if section.orientation is not None:
            steps.append({"_target_": "Orientationd", "keys": "image", "axcodes": section.orientation, "labels": None})
        if section.spacing is not None:
            steps.append({"_target_": "Spacingd", "keys": "image", "pixdim": list(section.spacing), "mode": "bilinear"})
        if section.intensity is None:
            steps.append(_stock_percentiles(section.percentiles, (0.0, 1.0), clip=True))
        for step in section.intensity or ():
            if step.kind == "z-score":
                steps.append({"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": step.nonzero})
            elif step.kind == "extremes":
                low, high = step.target
                steps.append({"_target_": "ScaleIntensityd", "keys": "image", "minv": low, "maxv": high})
            elif step.kind == "percentiles":
                steps.append(_stock_percentiles(step.source or (0.0, 100.0), step.target, clip=step.clip))
            else:
                values = (*(step.source or ()), *step.target)
                ends = dict(zip(("a_min", "a_max", "b_min", "b_max"), values, strict=True))
                steps.append({"_target_": "ScaleIntensityRanged", "keys": "image", **ends, "clip": step.clip})
        return steps


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


def _stock_percentiles(source: Sequence[float], target: Sequence[float], *, clip: bool) -> Part:
    ends = dict(zip(("lower", "upper", "b_min", "b_max"), (*source, *target), strict=True))
    return {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", **ends, "clip": clip}
