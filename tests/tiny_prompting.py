"""A model with prompts of a few thousand parameters, for tests of everything around a network."""

from pathlib import Path
from typing import Any

import torch
import yaml

from medseg.networks.sam import Sam
from medseg.weights import save_weights, sha256_of
from medseg_pipelines.recipe import RECIPE_FILE, recipe_folder

NETWORK: dict[str, Any] = {
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 2,
    "global_attn_indexes": [0],
    "img_size": 64,
    "out_chans": 16,
    "mask_in_chans": 4,
    "decoder_heads": 2,
    "decoder_mlp_dim": 16,
    "iou_head_hidden_dim": 16,
}


def build_tiny_prompting(folder: Path, *, trained: bool = False, **prompting: Any) -> Path:
    """The recipe of sam with a tiny network, and its random weights, in `folder`."""
    content = yaml.safe_load((recipe_folder("sam") / RECIPE_FILE).read_text(encoding="utf-8"))
    content.pop("checkpoint")
    content |= {"name": "tiny-sam", "network": {"name": "sam", "options": NETWORK}}
    content["prompting"] |= {"presence": 0.0, "bytes": 1_000_000, **prompting}
    torch.manual_seed(2)
    weights = save_weights(Sam("vit_b", **NETWORK).state_dict(), folder / "weights.safetensors")
    content["weights"] = {
        "file": weights.name,
        "sha256": sha256_of(weights),
        "trained": trained,
        "parameters": 1,
    }
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder
