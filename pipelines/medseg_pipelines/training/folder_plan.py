"""A recipe found from a folder of images and masks: classes, grey values, spacing, sizes, patches, network options.

This is how `medseg train her-seg --data FOLDER` knows what to do. Everything that it decides stands in the recipe of
the run, which can be changed and trained anew.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras
from medseg.io import read
from medseg.io.pictures import ENDINGS, read_ids, read_mask, read_picture
from medseg_pipelines.recipe import PictureRecipe, Recipe, SegmentationRecipe
from medseg_pipelines.training.folder_pairs import Pair

NETWORKS = ("fsg-net", "her-seg", "wau")
_CASES = 40  # looked at for a plan
_MOST_CLASSES = 40  # more numbers than this are things or grey levels, not classes
_LOSSY = (".jpg", ".jpeg")
_SIDE = 512  # px: smaller pictures are enlarged to about this, since a mask of HER-Seg has a quarter of its pixels
_LARGEST = 1024  # px: larger pictures are reduced to about this
_CT_AIR = -500  # grey values below are Hounsfield units: nothing else has them
_COLOURS = ((230, 80, 70), (80, 200, 120), (80, 150, 240), (240, 200, 60), (200, 110, 230), (90, 210, 210))
_NOT_YET = {"file": "weights.safetensors", "sha256": "0" * 64, "dtype": "float16", "trained": False, "parameters": 0}


@dataclass(frozen=True)
class Findings:
    """What a folder holds.

    Attributes:
        values: Numbers in the masks but 0.
        masks: "values": one class per number; "nonzero": one class, whatever the number; "half": one class, from half
            of the brightest value.
        shares: Of each class in all pixels or voxels.
        sizes: Of the images: (H, W), or voxels in RAS order.
        spacings: mm in RAS order, of volumes.
        grey: Two percentiles, 0.5 and 99.5, of what is labelled, of volumes.
        ct: Whether the grey values are Hounsfield units.
    """

    values: tuple[int, ...]
    masks: str
    shares: tuple[float, ...]
    sizes: tuple[tuple[int, ...], ...]
    spacings: tuple[tuple[float, ...], ...] = ()
    grey: tuple[float, float] = (0.0, 1.0)
    ct: bool = False


def plan(network: str, pairs: Sequence[Pair], data: Path) -> Recipe:
    """The recipe by which to train a network on a folder.

    Args:
        network: One of `NETWORKS`.
        pairs: Of that folder.
        data: The folder; a `dataset.json` in it may name the labels.

    Raises:
        UsageError: The network does not segment, or images are mixed.
        InputRefused: A file cannot be used, or no mask holds anything.
    """
    if network not in NETWORKS:
        raise UsageError(f"network must be one of {', '.join(NETWORKS)}, got '{network}'")
    flat = {pair.image.suffix.lower() in ENDINGS for pair in pairs}
    if len(flat) > 1:
        raise UsageError("data folder must hold pictures or volumes, it holds both; train on one kind at a time")
    names = _label_names(data)
    if flat == {True}:
        return PictureRecipe.model_validate(_picture_recipe(network, look_at_pictures(pairs), names))
    return SegmentationRecipe.model_validate(_volume_recipe(network, look_at_volumes(pairs), names))


def look_at_pictures(pairs: Sequence[Pair]) -> Findings:
    """Sizes and classes of pictures; of at most forty."""
    some = _some(pairs)
    lossy = any(is_lossy(pair.mask) for pair in some)
    sizes, counts, pixels = [], {}, 0
    for pair in some:
        ids = mask_ids(pair.mask, half=lossy)
        size = read_picture(pair.image).size
        require_size(pair, size, ids.shape)
        sizes.append(size)
        pixels += ids.size
        _count(ids, counts)
    values, masks, shares = _classes(counts, pixels)
    return Findings(values, "half" if lossy else masks, shares, tuple(sizes))


def is_lossy(path: Path) -> bool:
    """Whether a mask was compressed so that its numbers mean nothing but bright and dark."""
    return path.suffix.lower() in _LOSSY


def mask_ids(path: Path, *, half: bool) -> NDArray[np.int32]:
    """Numbers of the mask of a picture, (H, W); 1 from half of the brightest value on where `half`."""
    return read_mask(path).astype(np.int32) if half else read_ids(path)


def look_at_volumes(pairs: Sequence[Pair]) -> Findings:
    """Sizes, spacings, grey values and classes of volumes in RAS order; of at most forty."""
    sizes, spacings, grey, counts, voxels, lowest = [], [], [], {}, 0, 0.0
    for pair in _some(pairs):
        image, labels = to_ras(read(pair.image))[0], to_ras(read(pair.mask, kind="labels"))[0]
        require_size(pair, image.shape, labels.shape)
        sizes.append(image.shape)
        spacings.append(image.spacing)
        _count(labels.voxels, counts)
        voxels += labels.voxels.size
        inside = image.voxels[labels.voxels > 0]
        lowest = min(lowest, float(image.voxels.min()))
        if inside.size:
            grey.append(np.percentile(inside[:: max(1, inside.size // 100_000)], (0.5, 99.5)))
    values, masks, shares = _classes(counts, voxels)
    low, high = (float(v) for v in np.median(grey, axis=0))
    ct = lowest < _CT_AIR
    return Findings(values, masks, shares, tuple(sizes), tuple(spacings), (low, max(high, low + 1)), ct)


def require_size(pair: Pair, image: Sequence[int], mask: Sequence[int]) -> None:
    """Image and mask must have the same pixels or voxels.

    Raises:
        InputRefused: They have not.
    """
    if tuple(image) != tuple(mask):
        sizes = " x ".join(map(str, mask)), " x ".join(map(str, image))
        raise InputRefused(f"{pair.mask.name}: must have the size of '{pair.image.name}', {sizes[1]}, got {sizes[0]}")


def _some(pairs: Sequence[Pair]) -> Sequence[Pair]:
    return pairs[:: max(1, ceil(len(pairs) / _CASES))]


def _count(ids: np.ndarray, counts: dict[int, int]) -> None:
    for value, number in zip(*(part.tolist() for part in np.unique(ids, return_counts=True)), strict=True):
        counts[int(value)] = counts.get(int(value), 0) + number


def _classes(counts: dict[int, int], total: int) -> tuple[tuple[int, ...], str, tuple[float, ...]]:
    """Numbers of the classes, how masks are read, and the share of each class."""
    values = sorted(value for value in counts if value > 0)
    if not values:
        raise InputRefused("no mask of the data folder labels anything, expected numbers above 0; check the masks")
    if len(values) > _MOST_CLASSES or values[-1] > 255 or values == [255]:
        return (1,), "nonzero", (sum(counts[value] for value in values) / total,)
    return tuple(values), "values", tuple(counts[value] / total for value in values)


def _label_names(data: Path) -> dict[int, str]:
    """What a `dataset.json` calls the labels: name to number, as nnU-Net has it, or number to name."""
    try:
        labels = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["labels"]
        pairs = [(k, v) if str(v).isdigit() else (v, k) for k, v in labels.items()]
        return {int(number): str(name) for name, number in pairs if int(number) > 0}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def _labels(found: Findings, names: dict[int, str]) -> list[dict[str, Any]]:
    return [
        {"id": value, "name": names.get(value, f"label {value}"), "color": _COLOURS[number % len(_COLOURS)]}
        for number, value in enumerate(found.values)
    ]


def _common(network: str, task: str, count: int, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": f"{network}-own",
        "task": task,
        "title": f"{network}, trained on data of one's own",
        "summary": f"Segments what the masks of {count} images showed it.",
        "intended_use": "Research on images like those it was trained on. Not a medical device, not for diagnosis.",
        "licence": "that of the training data",
        "network": {"name": network, "options": options},
        "weights": _NOT_YET,
    }


def _picture_recipe(network: str, found: Findings, names: dict[int, str]) -> dict[str, Any]:
    side = float(np.median([np.mean(size) for size in found.sizes]))
    zoom = round(min(max(1.0, _SIDE / side), 4.0), 2) if side <= _LARGEST else round(_LARGEST / side, 3)
    crop = 256 if side * zoom >= 256 else 128
    sides = [length for size in found.sizes for length in size]
    classes = len(found.values)
    options = {
        "her-seg": {"in_channels": 3, "out_channels": classes, "decoder": {"dim": 128, "mlp_dim": 128}},
        "wau": {"in_channels": 3, "out_channels": classes, "channels": [24, 48, 72, 96, 128], "spatial_dims": 2},
        "fsg-net": {
            "in_channels": 3,
            "out_channels": classes,
            "base_channels": 12,
            "depths": [2, 2, 3, 2],
            "keep": 1.0,
        },
    }[network]
    return _common(network, "picture-segmentation", len(found.sizes), options) | {
        "labels": _labels(found, names),
        "preparation": {"zoom": zoom, "stretch": [0.5, 99.5], "mean": [0.45] * 3, "deviation": [0.25] * 3},
        "inference": {"window": 2 * crop, "overlap": 0.25},
        "scope": {
            "modalities": ["pictures like those of its training"],
            "anatomy": "what its training showed",
            "kind": "any",
            "diameter": [max(1, min(sides) / 2), 4 * max(sides)],
        },
        "training": {"kind": "folder-pictures", "masks": found.masks, "crop": crop, "shares": list(found.shares)},
    }


def _volume_recipe(network: str, found: Findings, names: dict[int, str]) -> dict[str, Any]:
    spacing = np.median(np.array(found.spacings), axis=0)
    extents = np.array(found.sizes) * np.array(found.spacings)
    shape = np.median(extents, axis=0) / spacing
    classes, flat = len(found.values) + 1, network != "wau"
    most = (256, 256, 1) if flat else (96, 96, 96)
    window = [min(side, 16 * ceil(size / 16)) for side, size in zip(most, shape, strict=True)]
    options = {
        "her-seg": {"in_channels": 1, "out_channels": classes, "decoder": {"dim": 128, "mlp_dim": 128}},
        "wau": {"in_channels": 1, "out_channels": classes, "channels": [16, 32, 64, 96, 128]},
        "fsg-net": {
            "in_channels": 1,
            "out_channels": classes,
            "base_channels": 12,
            "depths": [2, 2, 3, 2],
            "keep": 1.0,
        },
    }[network]
    grey = [{"kind": "range", "source": list(found.grey), "clip": True}] if found.ct else None
    return _common(network, "segmentation", len(found.sizes), options) | {
        "labels": _labels(found, names),
        "decode": {"table": [[0, 0], *([value, value] for value in found.values)]},
        "preparation": {
            "foreground_margin": None,
            "spacing": [round(float(step), 4) for step in spacing],
            "percentiles": [0.5, 99.5],
            "intensity": grey,
        },
        "inference": {"window": window, "overlap": 0.25 if not flat else 0.1, "bytes_per_voxel": 1200},
        "scope": {
            "modalities": ["CT" if found.ct else "volumes like those of its training"],
            "anatomy": "what its training showed",
            "spacing": [float(np.min(found.spacings)) / 2, float(np.max(found.spacings)) * 2],
            "field_of_view": [max(1.0, float(v)) for v in extents.min(0) / 2],
            "field_of_view_limit": [float(v) for v in extents.max(0) * 2],
        },
        "training": {"kind": "folder-volumes", "masks": found.masks, "crop": window, "shares": list(found.shares)},
    }
