"""A model folder with the random weights of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from medseg_pipelines.recipe import RECIPE_FILE

if TYPE_CHECKING:
    from torch import nn


def random_network(content: dict[str, Any], seed: int) -> nn.Module:
    """The network that the content of a recipe names; the state of torch's generator stays as it was."""
    import torch

    from medseg.networks import build_network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(content["network"]["name"], **content["network"]["options"])


def write_random_model(folder: Path, content: dict[str, Any], network: nn.Module) -> Path:
    """Recipe and weights in `folder`, marked as untrained; returns the folder."""
    from medseg.weights import save_weights, sha256_of

    weights = save_weights(network.state_dict(), folder / "weights.safetensors")
    content["weights"] = {
        "file": weights.name,
        "sha256": sha256_of(weights),
        "dtype": "float32",
        "trained": False,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder
