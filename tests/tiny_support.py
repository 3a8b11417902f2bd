"""A model that segments by examples with random weights, as small as the network allows, and cases for it."""

from pathlib import Path
from typing import Any

import numpy as np

from medseg.io import write
from medseg.volume import Volume
from random_model import random_network, write_random_model

NETWORK: dict[str, Any] = {
    "preset": "tiny",
    "hiera": {"embed_dim": 8, "stages": [1, 1, 2, 1], "global_blocks": [3], "pos_grid": [4, 4]},
    "channels": 32,
    "memory_channels": 8,
    "memory_layers": 1,
    "memory_inner": 16,
    "decoder_mlp_dim": 16,
    "iou_hidden": 16,
    "lora_rank": 0,
    "normalise": "none",
    "bank_size": 2,
}
AFFINE = np.array([[-2.0, 0, 0, 20], [0, 0, 3.0, -10], [0, 2.5, 0, 5], [0, 0, 0, 1]])  # neither RAS nor isotropic


def support_recipe(**changes: Any) -> dict[str, Any]:
    """The content of `recipe.yaml`."""
    return {
        "name": "tiny-support",
        "task": "support-segmentation",
        "title": "Tiny",
        "summary": "Nothing.",
        "intended_use": "Tests.",
        "licence": "Apache-2.0",
        "network": {"name": "sam2-sgp", "options": NETWORK},
        "inference": {"side": 64, "examples": 2, "resamples": 2},
        "scope": {
            "modalities": ["MR"],
            "anatomy": "anything",
            "spacing": [0.1, 20.0],
            "field_of_view": [1, 1, 1],
            "field_of_view_limit": [900, 900, 900],
        },
        "weights": {"file": "weights.safetensors", "sha256": "0" * 64, "trained": False, "parameters": 1},
        **changes,
    }


def support_model(folder: Path, **changes: Any) -> Path:
    """A model folder; the weights are random and say so."""
    folder.mkdir(parents=True)
    content = support_recipe(**changes)
    return write_random_model(folder, content, random_network(content, seed=0))


def outlined(seed: int, *, size: int = 14, affine: np.ndarray = AFFINE) -> tuple[Volume, Volume]:
    """A noisy ball and a smaller one, bright and brighter, and their labels 1 and 2."""
    random = np.random.default_rng(seed)
    place = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1)
    middle = random.uniform(0.45, 0.55, 3) * size
    large = ((place - middle) ** 2).sum(-1) < (0.35 * size) ** 2
    small = ((place - middle - [2, 0, 0]) ** 2).sum(-1) < (0.15 * size) ** 2
    grey = 40 * large + 50 * small + random.normal(10, 3, large.shape)
    labels = np.where(small, 2, large.astype(int)).astype(np.uint8)
    return Volume(grey.astype(np.float32), affine), Volume(labels, affine, kind="labels")


def outlined_files(folder: Path, count: int = 3, **options: Any) -> tuple[list[Path], list[Path]]:
    """Files of `outlined`, images and labels."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = [], []
    for number in range(count):
        pair = outlined(number, **options)
        for kind, paths, volume in (("image", images, pair[0]), ("label", labels, pair[1])):
            paths.append(folder / f"{kind}{number}.nii.gz")
            write(volume, paths[-1])
    return images, labels
