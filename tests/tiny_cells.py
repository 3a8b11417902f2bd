"""A model of a few thousand parameters that tells things apart on pictures, and pictures for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medseg_pipelines.recipe import RECIPE_FILE, recipe_folder
from random_model import random_network, write_random_model

SIZE = (70, 90)


def cells(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on a dark picture, and their numbers."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    ids = np.zeros(SIZE, np.uint16)
    for number, (row, column) in enumerate([(18, 20), (18, 60), (50, 25), (52, 66)], start=1):
        row, column = row + draw.integers(-5, 6), column + draw.integers(-5, 6)
        ids[(y - row) ** 2 + (x - column) ** 2 <= 81] = number
    return np.where(ids > 0, 150, 20).astype(np.uint8) + draw.integers(0, 20, SIZE, np.uint8), ids


def tiny_recipe() -> dict[str, Any]:
    """The shipped recipe with a network that trains in seconds."""
    content = yaml.safe_load((recipe_folder("nuclei") / RECIPE_FILE).read_text(encoding="utf-8"))
    content["name"] = "tiny-cells"
    content["network"]["options"] = {
        "out_channels": 2,
        "dim": 16,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "drop_path": 0.0,
        "decoder": {"dim": 16, "heads": 2, "mlp_dim": 16, "mask_channels": 4},
    }
    content["inference"] |= {"window": 64}
    content["training"] |= {"steps": 2, "batch": 2, "crop": 64, "warmup": 1}
    content["scope"]["diameter"] = [20, 20000]
    return content


def build_tiny_cells(folder: Path) -> Path:
    """Recipe and random weights in `folder`, marked as untrained; returns the folder."""
    content = tiny_recipe()
    return write_random_model(folder, content, random_network(content, seed=0))
