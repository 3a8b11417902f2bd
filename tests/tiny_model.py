"""A model of a few hundred parameters, for tests of everything around a network."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dicom_cases import Case
from medseg.volume import Volume
from medseg_pipelines.recipe import RECIPE_FILE, recipe_folder
from random_model import random_network, write_random_model

WINDOW = (32, 32, 32)


def tiny_recipe(*, flat: bool = False) -> dict[str, Any]:
    """The recipe of brain-structures with a tiny network, of slices if `flat`, as it stands in the file."""
    path = recipe_folder("brain-structures") / RECIPE_FILE
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["name"] = "tiny"
    content["network"] = {
        "name": "wau",
        "options": {"in_channels": 1, "out_channels": 12, "channels": [4, 8], "upsample": "linear"},
    }
    content["preparation"]["spacing"] = [4.0, 4.0, 4.0]
    content["inference"] = {"window": list(WINDOW), "overlap": 0.25}
    if flat:
        sizes = {"dim": 16, "depths": [1, 1], "num_heads": [1, 2], "decoder": {"dim": 16, "heads": 2, "mlp_dim": 16}}
        content["network"] = {"name": "her-seg", "options": {"in_channels": 1, "out_channels": 12, **sizes}}
        content["inference"]["window"] = [*WINDOW[:2], 1]
    content["training"] = {}
    return content


def build_tiny_model(folder: Path, *, flat: bool = False) -> Path:
    """Recipe and random weights in `folder`, marked as untrained; returns the folder."""
    content = tiny_recipe(flat=flat)
    return write_random_model(folder, content, random_network(content, seed=3))


def head(*, spacing: float = 4.0, orientation: str = "RAS") -> Volume:
    """A smooth ball with some texture, 160 mm in a field of 200 mm: in scope, and quick to segment."""
    size = round(200 / spacing)
    axes = np.meshgrid(*[np.linspace(-100, 100, size)] * 3, indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    noise = np.random.default_rng(0).normal(size=radius.shape)
    voxels = np.where(radius < 80, 600 + 2 * axes[0] + radius + 20 * noise, 5 * np.abs(noise))
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -100
    for axis, letter in enumerate(orientation):
        if letter in "LPI":
            affine[axis, axis] *= -1
            affine[axis, 3] *= -1
    return Volume(voxels.round().astype(np.int16), affine)


def head_series(folder: Path, **options: Any) -> Path:
    """The same as a DICOM series; `options` are those of the made-up case."""
    pixels = np.ascontiguousarray(head().voxels.transpose(2, 1, 0)[:, ::-1, ::-1])
    case = Case(pixels=pixels, spacing=(4.0, 4.0, 4.0), origin=(-98.0, -98.0, -100.0), **options)
    return case.write(folder, shuffled=1)
