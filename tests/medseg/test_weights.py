"""Checkpoints: whole, hashed, strict."""

from pathlib import Path

import pytest
import torch
from torch import nn

from medseg.errors import ModelMissing
from medseg.weights import load_weights, save_weights, sha256_of


class _Small(nn.Module):
    counter: torch.Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Linear(3, 4), nn.Conv3d(1, 2, 3)
        self.register_buffer("counter", torch.tensor([7]))


def _refused(network: nn.Module, path: Path, **options: str) -> str:
    with pytest.raises(ModelMissing) as caught:
        load_weights(network, path, **options)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_round_trip_is_exact(tmp_path: Path) -> None:
    source, target = _Small(0), _Small(1)
    path = save_weights(source.state_dict(), tmp_path / "weights.safetensors")
    assert not _equal(source, target)
    load_weights(target, path, sha256=sha256_of(path))
    assert _equal(source, target)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_half_precision_rounds_once_and_keeps_integers(tmp_path: Path) -> None:
    source, target = _Small(0), _Small(1)
    path = save_weights(source.state_dict(), tmp_path / "half.safetensors", half=True)
    load_weights(target, path)
    for name, value in source.state_dict().items():
        found = target.state_dict()[name]
        assert found.dtype == value.dtype
        assert torch.equal(found, value.half().float() if value.is_floating_point() else value)
    again = save_weights(target.state_dict(), tmp_path / "again.safetensors", half=True)
    assert sha256_of(again) == sha256_of(path)


def test_memory_layout_of_the_network_does_not_matter(tmp_path: Path) -> None:
    source, packed = _Small(0), _Small(0)
    packed.second.weight.data = packed.second.weight.data.contiguous(memory_format=torch.channels_last_3d)
    paths = [save_weights(net.state_dict(), tmp_path / f"{i}.safetensors") for i, net in enumerate((source, packed))]
    assert sha256_of(paths[0]) == sha256_of(paths[1])


def test_other_hash_is_refused(tmp_path: Path) -> None:
    path = save_weights(_Small().state_dict(), tmp_path / "weights.safetensors")
    target = _Small(1)
    before = _Small(1)
    message = _refused(target, path, sha256="0" * 64)
    assert f"must have sha256 {'0' * 12}..., got {sha256_of(path)[:12]}" in message
    assert _equal(target, before)


def test_absent_and_damaged_files_are_refused(tmp_path: Path) -> None:
    assert "'weights.safetensors' are missing" in _refused(_Small(), tmp_path / "weights.safetensors")
    path = save_weights(_Small().state_dict(), tmp_path / "weights.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    assert "damaged" in _refused(_Small(), path)
    path.write_bytes(b"")
    assert "damaged" in _refused(_Small(), path)


def test_every_name_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    state = _Small().state_dict()
    state["third.weight"] = state.pop("first.weight")
    state["fourth.bias"] = state.pop("second.bias")
    message = _refused(_Small(), save_weights(state, tmp_path / "weights.safetensors"))
    assert "missing ['first.weight', 'second.bias']" in message
    assert "unknown ['fourth.bias', 'third.weight']" in message
    wide = {**_Small().state_dict(), "first.weight": torch.zeros(5, 3)}
    assert "shapes differ in ['first.weight']" in _refused(_Small(), save_weights(wide, tmp_path / "w.safetensors"))
