"""A model of a few thousand parameters that doubles the size of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from medseg_pipelines.recipe import RECIPE_FILE, recipe_folder


def build_tiny_tiles(folder: Path, *, weights: bool = False, **changes: Any) -> Path:
    """The recipe of superres-2d with a tiny network in `folder`, with random weights if asked for; returns the folder.

    Args:
        folder: That exists.
        weights: Whether there are any.
        changes: Fields of the recipe.
    """
    content = yaml.safe_load((recipe_folder("superres-2d") / RECIPE_FILE).read_text(encoding="utf-8"))
    scale, colour = changes.get("scale", 2), changes.get("colour", True)
    network = {"width": 4, "encoder_depths": [1], "decoder_depths": [1], "middle_depth": 3, "num_heads": 2}
    content["network"]["options"] = {"in_channels": 3 if colour else 1, "scale": scale, **network}
    content["partition"] = {"kind": "intensity", "options": {"clusters": 4}}
    content["training"] |= {"steps": 8, "crop": 16, "batch": 2, "learning_rate": 0.003}
    content |= changes
    if weights:
        content["weights"] |= _random(content["network"]["options"], folder / "weights.safetensors")
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def _random(options: dict[str, Any], path: Path) -> dict[str, Any]:
    import torch

    from medseg.networks import build_network
    from medseg.weights import save_weights, sha256_of

    torch.manual_seed(3)
    save_weights(build_network("rat", **options).state_dict(), path)
    return {"file": path.name, "sha256": sha256_of(path), "dtype": "float32", "trained": False}
