"""A restoring model of a few thousand parameters, for tests of everything around a network."""

from pathlib import Path
from typing import Any

import torch
import yaml

from medseg.networks.rat import RAT
from medseg_pipelines.recipe import RECIPE_FILE, Slices, recipe_folder
from medseg_pipelines.slices import channels_of
from random_model import random_network, write_random_model

NETWORK = {
    "width": 4,
    "encoder_depths": [1],
    "decoder_depths": [1],
    "middle_depth": 3,
    "num_heads": 2,
}


def tiny_restoration_recipe(**slices: Any) -> dict[str, Any]:
    """The recipe of mr-denoise with a tiny network, as it stands in the file."""
    content = yaml.safe_load((recipe_folder("mr-denoise") / RECIPE_FILE).read_text(encoding="utf-8"))
    content["name"] = "tiny-denoise"
    content["network"] = {"name": "rat", "options": dict(NETWORK)}
    content["slices"] = {**content["slices"], "context": 3, "guide": False, **slices}
    content["network"]["options"]["in_channels"] = channels_of(Slices(**content["slices"]))
    content["training"] = {}
    return content


def build_tiny_restoration(folder: Path, *, change: float = 0.05, **slices: Any) -> Path:
    """Recipe and weights in `folder`, marked as untrained; `change` is the spread of the last layer's weights."""
    content = tiny_restoration_recipe(**slices)
    network = random_network(content, seed=4)
    assert isinstance(network, RAT)
    generator = torch.Generator().manual_seed(4)
    for parameter in network.ending.parameters():
        torch.nn.init.normal_(parameter, std=change, generator=generator)
    for name, parameter in network.named_parameters():
        if "lambda_" in name:
            torch.nn.init.ones_(parameter)  # they start at 0, where regions would mean nothing
    return write_random_model(folder, content, network)
