"""Training that starts from what an earlier run learned instead of from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.networks.her_seg import HERSeg
from medseg.networks.her_seg_training import start_from
from medseg.weights import read_weights
from medseg_pipelines.recipe import Recipe, load_recipe, recipe_folder
from medseg_pipelines.training.loop import Trainer

_NETWORK = "her-seg"
_LEARNED = ("image_encoder.", "neck.")  # what is taken; a decoder belongs to its own labels


def earlier(start: Path, network: str) -> Recipe:
    """The recipe of an earlier run, or of a model.

    Args:
        start: Its folder.
        network: That is to start from it.

    Raises:
        UsageError: The two do not fit, or there is no such folder.
    """
    if not start.is_dir():
        raise UsageError(f"'{start.name}' must be the folder of an earlier run, it is none; check --from")
    recipe = load_recipe(start)
    if (network, recipe.network.name) != (_NETWORK, _NETWORK):
        raise UsageError(
            f"--from is for {_NETWORK} and runs of it, got {network} and a run of {recipe.network.name}; drop it"
        )
    return recipe


def sizes_of(recipe: Recipe) -> dict[str, Any]:
    """The options of its network but for what follows from the data."""
    return {key: value for key, value in recipe.network.options.items() if key not in ("in_channels", "out_channels")}


def begin_from(trainer: Trainer, start: Path) -> None:
    """Give a trainer at its first step the encoder of an earlier run.

    Raises:
        ModelMissing: The weights are absent, altered, or of other sizes.
        UsageError: The trainer has another network.
    """
    recipe, network = load_recipe(start), trainer.network
    if not isinstance(network, HERSeg):
        raise UsageError(f"--from is for {_NETWORK}, this is another network; drop it")
    state = read_weights(recipe_folder(start) / recipe.weights.file, sha256=recipe.weights.sha256)
    start_from(network, {name: value for name, value in state.items() if name.startswith(_LEARNED)})
    trainer.average = {name: value.detach().clone() for name, value in network.state_dict().items()}
