"""Models of super-resolution with a few thousand random weights, and a volume for them."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from medseg.volume import Volume
from random_model import random_network, write_random_model

NETWORKS: dict[str, dict[str, Any]] = {
    "all": {"channels": 1, "filters": 3, "num_res_blocks": 1, "shortcut": True},
    "slices": {
        "channels": 2,
        "out_channels": 1,
        "filters": 3,
        "num_res_blocks": 1,
        "num_upsample": 0,
        "shortcut": True,
    },
}


def superres_recipe(axes: str, *, training: dict[str, Any] | None = None, guide: bool = False) -> dict[str, Any]:
    """A recipe as it stands in a file."""
    network = dict(NETWORKS[axes], out_channels=1)
    network["channels"] += int(guide)
    return {
        "name": f"tiny-{axes}",
        "task": "super-resolution",
        "title": "Finer voxels",
        "summary": "For tests.",
        "intended_use": "None.",
        "licence": "Apache-2.0",
        "unit": "grey values",
        "network": {"name": "disgan", "options": network},
        "upscaling": {
            "axes": axes,
            "acquisition": "kspace" if axes == "all" else "profile",
            "window": [16, 16, 16],
            "overlap": 0.25,
            "guide": guide,
        },
        "scope": {
            "modalities": ["MR"],
            "anatomy": "head",
            "spacing": [0.5, 9.0],
            "field_of_view": [10, 10, 10],
            "field_of_view_limit": [400, 400, 400],
        },
        "weights": {"file": "weights.safetensors", "sha256": "0" * 64, "trained": False, "parameters": 0},
        "training": training or {},
    }


def build_superres_model(folder: Path, axes: str, *, guide: bool = False) -> Path:
    """Recipe and random weights in `folder`; returns it."""
    content = superres_recipe(axes, guide=guide)
    return write_random_model(folder, content, random_network(content, seed=4))


def blobs(shape: tuple[int, int, int], affine: np.ndarray) -> Volume:
    """Smooth random grey values from 0 to 1000, some background, a little noise."""
    generator = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(generator.normal(size=shape), 2)
    voxels = np.clip(smooth / smooth.max(), 0, None) * 1000 + generator.uniform(0, 5, shape)
    return Volume(voxels.astype(np.float32), affine)
