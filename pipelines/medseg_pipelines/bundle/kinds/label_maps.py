"""What bundles share that turn volumes into label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from medseg import io
from medseg.volume import Volume
from medseg_pipelines.bundle.kinds.kind import Part
from medseg_pipelines.recipe import Label
from medseg_pipelines.sections import Preparation

_FORMATS = {"CT": "hounsfield"}


def label_format(
    labels: Sequence[Label],
    *,
    script: bool,
    outputs: int,
    shape: list[int],
    modality: str,
    values: list[float],
    dtype: str,
) -> Part:
    """`network_data_format`: windows in, scores out, a label map in the end.

    Args:
        labels: What the ids mean.
        script: Of `models/model.ts`, which gives one channel per id in their order, the background included.
        outputs: Channels that the network gives.
        shape: Of a window.
        modality: Of the images.
        values: Least and largest one that the network sees; empty where there are none.
        dtype: Of the label map.
    """
    known = {0: "background", **{label.id: label.name for label in labels}}
    names = {str(label): name for label, name in known.items()}
    if script:
        names = {str(channel): known[label] for channel, label in enumerate(sorted(known))}
    window = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": True}
    grey = {"format": _FORMATS.get(modality, "magnitude"), "modality": modality, "num_channels": 1}
    image = {**window, **grey, "value_range": values, "channel_def": {"0": "image"}}
    channels = len(known) if script else outputs
    scores = {**window, "format": "segmentation", "num_channels": channels, "value_range": [], "channel_def": names}
    whole = {"type": "image", "format": "labels", "num_channels": 1, "spatial_shape": ["*", "*", "*"]}
    largest = 255 if dtype == "uint8" else 65535
    drawn = {"dtype": dtype, "value_range": [0, largest], "is_patch_data": False, "channel_def": names}
    return {
        "inputs": {"image": image},
        # MONAI Label takes its label names from here, and it shows what the inferer gives: ids, not channels
        "outputs": {"pred": scores},
        "post_processed_outputs": {"pred": {**whole, **drawn}},
    }


def labels_fault(written: Path, expected: Volume) -> str | None:
    """How the label map that a run wrote differs from the expected one, or that it wrote none."""
    if not written.is_file():
        return "the run wrote no label map"
    found = io.read(written, kind="labels")
    if not found.grid.equals(expected.grid, tolerance=1e-4):  # mm; the file holds the affine in float32
        return f"grid {found.shape} at {found.spacing} mm, expected {expected.shape} at {expected.spacing} mm"
    differ = int(np.count_nonzero(found.voxels != expected.voxels))
    return f"{differ} of {found.voxels.size} voxels differ" if differ else None


def stock_preparation(section: Preparation) -> list[Part]:
    """Stock transforms that read and prepare volumes."""
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


def _stock_percentiles(source: Sequence[float], target: Sequence[float], *, clip: bool) -> Part:
    ends = dict(zip(("lower", "upper", "b_min", "b_max"), (*source, *target), strict=True))
    return {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", **ends, "clip": clip}
