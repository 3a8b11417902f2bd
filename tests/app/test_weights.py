"""`medseg weights`: what comes in is checked, stored as data, and told apart from what was published."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from medseg.checkpoints import looks_untrained, network_of
from medseg.networks.sam import Sam
from medseg_pipelines.weights import known
from medseg_pipelines.weights.cache import find_weights, load_brought

from .conftest import Call

TINY = {"embed_dim": 8, "depth": 1, "num_heads": 2, "global_attn_indexes": (0,), "img_size": 32, "out_chans": 16}
TINY |= {"decoder_mlp_dim": 16, "decoder_heads": 2, "iou_head_hidden_dim": 16, "mask_in_chans": 4}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for what users bring."""
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Weights of a tiny SAM that pretends to have learned."""
    torch.manual_seed(0)
    return {name: x + 0.01 for name, x in Sam("vit_b", **TINY).state_dict().items()}


@pytest.fixture
def checkpoint(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    """As training scripts save it."""
    path = tmp_path / "mine.pth"
    torch.save({"model": {f"module.{name}": x for name, x in state.items()}, "epoch": 3}, path)
    return path


@pytest.fixture
def mirror(tmp_path: Path, checkpoint: Path) -> Iterator[str]:
    """An address that serves the checkpoint."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # pyright: ignore[reportArgumentType]

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/{checkpoint.name}"
    server.shutdown()
    thread.join()
    server.server_close()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_comes_in_is_listed_verified_and_removed(
    call: Call, checkpoint: Path, state: dict[str, torch.Tensor], home: Path
) -> None:
    answer = call("weights", "add", "mine", checkpoint, "--sha256", _sha256(checkpoint))
    assert answer.exit_code == 0, answer.stderr
    assert "unknown origin" in answer.stdout
    stored = load_file(home / "weights" / "mine" / "weights.safetensors")
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[name], x) for name, x in state.items())
    listed = json.loads(call("weights", "list", "--json").stdout)
    assert [entry["network"] for entry in listed["weights"]] == ["sam"]
    assert {"sam-vit-b", "medsam-vit-b", "sam2.1-tiny"} <= {entry["name"] for entry in listed["public"]}
    assert "sam-vit-h" in call("weights", "list").stdout
    assert call("weights", "verify").exit_code == 0
    assert call("weights", "add", "mine", checkpoint).exit_code == 2, "weights are not overwritten"

    with (home / "weights" / "mine" / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    tampered = call("weights", "verify", "mine")
    assert tampered.exit_code == 5
    assert "changed" in tampered.stderr
    assert call("weights", "add", "mine", checkpoint, "--overwrite").exit_code == 0
    assert load_brought("mine")[0].known is None
    assert call("weights", "remove", "mine").exit_code == 0
    assert call("weights", "remove", "mine").exit_code == 5


def test_an_address_needs_a_digest_or_encryption(call: Call, mirror: str, checkpoint: Path) -> None:
    assert call("weights", "add", "mine", mirror).exit_code == 2
    wrong = call("weights", "add", "mine", mirror, "--sha256", "0" * 64)
    assert wrong.exit_code == 5
    assert "must have sha256 000000000000" in wrong.stderr
    assert call("weights", "add", "mine", mirror, "--sha256", _sha256(checkpoint)).exit_code == 0
    absent = call("weights", "add", "other", mirror + "x", "--sha256", "0" * 64)
    assert absent.exit_code == 5
    assert "could not be downloaded" in absent.stderr


def test_offline_means_offline(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_OFFLINE", "1")
    answer = call("weights", "add", "sam-vit-b")
    assert answer.exit_code == 2
    assert "MEDSEG_OFFLINE" in answer.stderr


def test_nothing_of_a_checkpoint_is_run(call: Call, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # pyright: ignore[reportReturnType]

    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    answer = call("weights", "add", "trap", tmp_path / "trap.pth")
    assert answer.exit_code == 5
    assert "run code" in answer.stderr
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "cut.safetensors").write_bytes(b"no weights")
    assert call("weights", "add", "cut", tmp_path / "cut.safetensors").exit_code == 5
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    assert "found 'epoch'" in call("weights", "add", "empty", tmp_path / "empty.pt").stderr


def test_a_public_name_stands_for_the_public_file(
    call: Call, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = call("weights", "add", "sam-vit-b", checkpoint)
    assert answer.exit_code == 5
    assert "not sam_vit_b_01ec64.pth as published" in answer.stderr
    table = {"tiny": known.KnownWeights(**{**_entry(), "sha256": _sha256(checkpoint)})}
    monkeypatch.setattr(known, "known_weights", lambda: table)
    call("weights", "add", "mine", checkpoint)
    brought = find_weights("mine")
    assert (brought.known, brought.trained, brought.licence) == ("tiny", True, "Apache-2.0")


def _entry() -> dict[str, object]:
    text = {"name": "tiny", "network": "sam", "file": "tiny.pth", "address": "https://example.org/tiny.pth"}
    return {**text, "bytes": 1, "licence": "Apache-2.0", "source": "nobody"}


def test_random_weights_are_told_from_their_norms(call: Call, tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    fresh = Sam("vit_b", **TINY).state_dict()
    assert looks_untrained(fresh)
    assert not looks_untrained(state)
    assert [network_of(x) for x in (fresh, {"a": torch.zeros(1)})] == ["sam", None]
    save_file(fresh, tmp_path / "fresh.safetensors")
    assert "untrained" in call("weights", "add", "fresh", tmp_path / "fresh.safetensors").stdout
    save_file(state, tmp_path / "said.safetensors", metadata={"trained": "false"})
    assert "untrained" in call("weights", "add", "said", tmp_path / "said.safetensors").stdout
