"""Checkpoints that others wrote: weights as data, nothing in them is run, and what can be told from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medseg.errors import ModelMissing

_CONTAINERS = ("model", "net", "state_dict")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by the names of its network, on the CPU.

    Args:
        path: `.safetensors`, or what `torch.save` wrote: read with `weights_only`, so that no code of it runs.

    Raises:
        ModelMissing: The file is absent, damaged, or holds anything else than weights.
    """
    if not path.is_file():
        raise ModelMissing(f"checkpoint '{path.name}' is missing; check the path")
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelMissing(
            f"checkpoint '{path.name}' must hold weights alone, it is damaged or wants to run code; "
            "convert it to safetensors where you trust it"
        ) from None
    except (RuntimeError, EOFError, AttributeError, UnicodeDecodeError, ValueError):
        raise ModelMissing(f"checkpoint '{path.name}' is damaged or no checkpoint; fetch it again") from None
    state = unwrapped(content) if isinstance(content, Mapping) else {}
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if not state or strange:
        found = f"'{strange[0]}' beside them" if strange else "none"
        raise ModelMissing(f"checkpoint '{path.name}' must hold weights by name, found {found}")
    return state


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Weights in a checkpoint: plain, or below `model`, `net` or `state_dict`; with or without `module.`."""
    inner = next((checkpoint[name] for name in _CONTAINERS if isinstance(checkpoint.get(name), Mapping)), None)
    return {key.removeprefix("module."): x for key, x in (checkpoint if inner is None else inner).items()}


def looks_untrained(state: Mapping[str, Tensor]) -> bool:
    """Whether every norm still has its first scale 1 and shift 0, which one step of training would have moved."""
    scales = {name: x for name, x in state.items() if name.endswith(".weight") and x.ndim == 1}
    shifts = [state[other] for name in scales if (other := name.removesuffix("weight") + "bias") in state]
    return bool(scales) and all(bool((x == 1).all()) for x in scales.values()) and not any(map(torch.any, shifts))


def network_of(state: Mapping[str, Tensor]) -> str | None:
    """Name of the network that weights belong to, by their names; None where these say nothing."""
    if "sam.image_encoder.trunk.pos_embed" in state:
        return "sam2-sgp"
    if any(name.startswith("image_encoder.adapter.") for name in state):
        return "db-sam"
    if "image_encoder.pos_embed" in state:
        return "sam"
    return "sam2" if "image_encoder.trunk.pos_embed" in state else None


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unwrapped(load_file(path))
    except SafetensorError as error:
        raise ModelMissing(f"checkpoint '{path.name}' is damaged ({error}); fetch it again") from None
