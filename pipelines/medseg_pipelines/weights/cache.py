"""The one folder of weights that users bring: `weights` below `MEDSEG_HOME`, a folder for each.

Whatever comes in is read as data, stored as safetensors, and never read as anything else again.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import ModelMissing, UsageError
from medseg_pipelines.case import hash_file
from medseg_pipelines.folders import check_target, whole_folder
from medseg_pipelines.home import home
from medseg_pipelines.weights.fetch import Digests, digests_of, fetch, is_address
from medseg_pipelines.weights.known import KnownWeights, known_weights, recognised

if TYPE_CHECKING:
    from torch import Tensor

ORIGIN_FILE = "origin.json"
WEIGHTS_FILE = "weights.safetensors"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Advance = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class BroughtWeights:
    """Weights in the folder, and what is known of them.

    Attributes:
        name: What they are called here.
        network: Name of their network; None where their names tell none.
        source: Name of the file they came from, without its folder.
        sha256: Of that file.
        stored_sha256: Of the file that is kept.
        bytes: Size of the file that is kept.
        parameters: How many numbers.
        known: Name in the table of public checkpoints; None for anybody else's.
        licence: Of the weights; None where unknown.
        trained: False where nothing has been learned: the file says so, or no norm has moved; None where unknown.
    """

    name: str
    network: str | None
    source: str
    sha256: str
    stored_sha256: str
    bytes: int
    parameters: int
    known: str | None
    licence: str | None
    trained: bool | None

    @property
    def path(self) -> Path:
        """The file."""
        return weights_folder() / self.name / WEIGHTS_FILE

    @property
    def origin(self) -> str:
        """Where they come from, in words."""
        if self.trained is False:
            return "untrained"
        return f"published as {known_weights()[self.known].file}" if self.known else "unknown origin"


def weights_folder() -> Path:
    """Where weights are kept; need not be there yet."""
    return home() / "weights"


def add_weights(
    name: str,
    source: str | Path | None = None,
    *,
    sha256: str | None = None,
    overwrite: bool = False,
    progress: Advance | None = None,
) -> BroughtWeights:
    """Take weights into the folder.

    Args:
        name: Letters, digits, dots, dashes. A name of the table stands for that very file.
        source: A file or an address; may be absent for a name of the table, which knows the address.
        sha256: What the file must hash to.
        overwrite: Replace weights of that name.
        progress: Of a download: bytes done and all bytes; may raise to stop.

    Raises:
        UsageError: The name or the address is none, or the name is taken.
        ModelMissing: The file is absent, damaged, another one than wanted, or holds anything else than weights.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"name of weights must be letters, digits, dots and dashes, got '{name}'")
    known = known_weights().get(name)
    if source is None and known is None:
        raise UsageError(
            f"'{name}' is no public checkpoint ({', '.join(known_weights())}); give its file or address after the name"
        )
    place = str(source) if source is not None or known is None else known.address
    target = weights_folder() / name
    target.parent.mkdir(parents=True, exist_ok=True)
    check_target(target, overwrite=overwrite, mark=ORIGIN_FILE)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        path = Path(place)
        if is_address(place):
            path = Path(scratch) / (Path(place.split("?")[0]).name or "weights")
            fetch(place, path, checked=bool(sha256 or known), progress=progress)
        if not path.is_file():
            raise UsageError(f"file '{path.name}' is not there; check the path")
        digests = digests_of(path)
        _require_expected(path, digests, sha256, known)
        return _store(name, path, digests, target, overwrite=overwrite)


def list_weights() -> list[BroughtWeights]:
    """Everything in the folder, by name."""
    return [_read(path.parent) for path in sorted(weights_folder().glob(f"*/{ORIGIN_FILE}"))]


def find_weights(name: str) -> BroughtWeights:
    """Weights by their name.

    Raises:
        ModelMissing: They are not there; the message says what to fetch and how.
    """
    folder = weights_folder() / name
    if _NAME.fullmatch(name) and (folder / ORIGIN_FILE).is_file():
        return _read(folder)
    known = known_weights().get(name)
    if known:
        raise ModelMissing(f"weights '{name}' are not here: {known.advice()}")
    raise ModelMissing(
        f"weights '{name}' are not here: `medseg weights add {name} FILE` takes them from a file, "
        "`medseg weights list` shows what is here"
    )


def verify_weights(name: str) -> BroughtWeights:
    """Weights whose file is still what it was when they were added.

    Raises:
        ModelMissing: They are not there, or the file was changed or lost.
    """
    brought = find_weights(name)
    if not brought.path.is_file() or hash_file(brought.path)[0] != brought.stored_sha256:
        raise ModelMissing(f"weights '{name}' are lost or were changed since; add them again with --overwrite")
    return brought


def load_brought(name: str) -> tuple[BroughtWeights, dict[str, Tensor]]:
    """Weights by their name, checked and read.

    Raises:
        ModelMissing: They are not there, or the file was changed or lost.
    """
    from medseg.checkpoints import read_checkpoint  # loads torch

    brought = verify_weights(name)
    return brought, read_checkpoint(brought.path)


def remove_weights(name: str) -> int:
    """Delete weights; returns the bytes that came free.

    Raises:
        ModelMissing: They are not there.
    """
    brought = find_weights(name)
    shutil.rmtree(weights_folder() / brought.name)
    return brought.bytes


def _require_expected(path: Path, digests: Digests, sha256: str | None, known: KnownWeights | None) -> None:
    if sha256 is not None and digests.sha256 != sha256.lower():
        raise ModelMissing(
            f"'{path.name}' must have sha256 {sha256[:12]}..., got {digests.sha256[:12]}...; fetch it again"
        )
    if known and not known.is_file_of(digests.sha256, digests.md5):
        raise ModelMissing(
            f"'{path.name}' is not {known.file} as published ({known.bytes} bytes), got {path.stat().st_size} bytes "
            f"with sha256 {digests.sha256[:12]}...; fetch it again, or add it under another name than '{known.name}'"
        )


def _store(name: str, path: Path, digests: Digests, target: Path, *, overwrite: bool) -> BroughtWeights:
    """Read the weights as data and put them into the folder."""
    from medseg.checkpoints import looks_untrained, network_of, read_checkpoint, read_metadata  # loads torch
    from medseg.weights import save_weights

    state = read_checkpoint(path)
    known = recognised(digests.sha256, digests.md5)
    untrained = read_metadata(path).get("trained") == "false" or looks_untrained(state)
    with whole_folder(target, overwrite=overwrite, mark=ORIGIN_FILE) as partial:
        stored = save_weights(state, partial / WEIGHTS_FILE)
        brought = BroughtWeights(
            name=name,
            network=known.network if known else network_of(state),
            source=path.name,
            sha256=digests.sha256,
            stored_sha256=hash_file(stored)[0],
            bytes=stored.stat().st_size,
            parameters=sum(value.numel() for value in state.values()),
            known=known.name if known else None,
            licence=known.licence if known else None,
            trained=True if known else False if untrained else None,
        )
        (partial / ORIGIN_FILE).write_text(json.dumps(asdict(brought), indent=2) + "\n", encoding="utf-8")
    return brought


def _read(folder: Path) -> BroughtWeights:
    try:
        content: dict[str, Any] = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
        return BroughtWeights(**content)
    except (ValueError, TypeError):
        raise ModelMissing(
            f"weights '{folder.name}': {ORIGIN_FILE} cannot be read; delete that folder and add them again"
        ) from None
