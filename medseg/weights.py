"""Checkpoint to network and back: hash checked, loaded strictly, nothing skipped in silence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from medseg.errors import ModelMissing


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_weights(state: Mapping[str, Tensor], path: Path, *, half: bool = False) -> Path:
    """Write parameters as safetensors, whole or not at all.

    Args:
        state: Parameters and buffers by name.
        path: Target file, overwritten.
        half: Store floating-point tensors as float16.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file  # see read_weights

    tensors = {}
    for name, value in state.items():
        small = half and value.is_floating_point()
        tensors[name] = value.detach().to("cpu", torch.float16 if small else value.dtype).contiguous()
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    return partial.replace(path)


def load_weights(network: nn.Module, path: Path, *, sha256: str | None = None) -> None:
    """Fill a network with the parameters of a safetensors file; every name must match.

    Args:
        network: Its parameters keep their dtype.
        path: The file.
        sha256: What the file must hash to; not checked if not given.

    Raises:
        ModelMissing: As of `read_weights`, or the names or shapes are not the network's.
    """
    fill(network, read_weights(path, sha256=sha256), f"weights '{path.name}'")


def read_weights(path: Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """The parameters of a safetensors file by name.

    Args:
        path: The file.
        sha256: What it must hash to; not checked if not given.

    Raises:
        ModelMissing: The file is absent or damaged, or has another hash.
    """
    # networks need `fill` alone, and travel in bundles to places without safetensors
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelMissing(f"weights '{path.name}' are missing; reinstall the package or train the model")
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise ModelMissing(f"weights '{path.name}' must have sha256 {sha256[:12]}..., got {found[:12]}...; reinstall")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelMissing(f"weights '{path.name}' are damaged ({error}); reinstall") from None


def fill(network: nn.Module, state: Mapping[str, Tensor], source: str = "these weights") -> None:
    """Fill a network with parameters and buffers by name; every name and every shape must match.

    Args:
        network: Its parameters keep their dtype.
        state: By the names of the network.
        source: What an error calls them.

    Raises:
        ModelMissing: Names or shapes are not the network's; the message lists the first of them.
    """
    wanted = network.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        faults = f"missing {_first(missing)}, unknown {_first(unknown)}"
        raise ModelMissing(f"{source} do not fit the network: {faults}")
    wrong = [name for name, value in state.items() if value.shape != wanted[name].shape]
    if wrong:
        raise ModelMissing(f"{source} do not fit the network: shapes differ in {_first(wrong)}")
    network.load_state_dict(state)


def _first(names: list[str], count: int = 8) -> str:
    """A list of names as a message can bear it."""
    return str(names) if len(names) <= count else f"{names[:count]} and {len(names) - count} more"
