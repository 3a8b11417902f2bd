"""Weights that others wrote: tensors and nothing else, or a refusal."""

from __future__ import annotations

import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medseg.errors import InputRefused

_NAMES = ("model.safetensors", "model.pt")
_MOST_BYTES = 8 << 30
_WRAPPERS = ("state_dict", "model", "network", "net")
_PARALLEL = "module."


def read_state(folder: Path) -> dict[str, Tensor]:
    """The parameters in `model.safetensors` or `model.pt`, each with memory of its own.

    Args:
        folder: `models` of a bundle.

    Raises:
        InputRefused: There are none, they are damaged, or the file holds more than tensors.
    """
    path = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if path is None:
        raise InputRefused(f"bundle must hold one of models/{', models/'.join(_NAMES)}, found none")
    if path.stat().st_size > _MOST_BYTES:
        raise InputRefused(f"weights '{path.name}' must be smaller than {_MOST_BYTES >> 30} GiB")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except (UnpicklingError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise InputRefused(f"weights '{path.name}' are damaged or hold code: {_first_line(error)}") from None
    state = _unwrapped(content)
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise InputRefused(f"weights '{path.name}' must be a plain table of tensors, they are not")
    if all(name.startswith(_PARALLEL) for name in state):
        state = {name.removeprefix(_PARALLEL): value for name, value in state.items()}
    return {name: value.detach().clone() for name, value in state.items()}  # one memory may bear two names


def _unpickled(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its parts are compressed, as torch never writes them")
    return torch.load(path, map_location="cpu", weights_only=True)


def _unwrapped(content: Any) -> dict[Any, Any]:
    """The table of tensors, also where a trainer stored it beside other things."""
    if not isinstance(content, dict):
        return {}
    inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict)), None)
    return content if inner is None else inner


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
