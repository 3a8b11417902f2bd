"""The table of public checkpoints: where they lie, how to recognise them, under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

_TABLE = "known_weights.yaml"


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """A public checkpoint.

    Attributes:
        name: What it is called here.
        network: Name of its network.
        file: What its publisher calls it.
        address: Where it can be fetched.
        bytes: Its size.
        licence: Of the weights.
        source: Who published it.
        sha256: Of the file, where known.
        md5: Of the file, where the publisher states nothing better.
    """

    name: str
    network: str
    file: str
    address: str
    bytes: int
    licence: str
    source: str
    sha256: str | None = None
    md5: str | None = None

    def is_file_of(self, sha256: str, md5: str) -> bool:
        """Whether a file with these digests is the published one."""
        return self.sha256 == sha256 if self.sha256 else self.md5 == md5

    def advice(self) -> str:
        """What to do to get it, in one clause."""
        return (
            f"`medseg weights add {self.name}` fetches {self.file} ({self.bytes / 1e6:.0f} MB, {self.licence}) from "
            f"{self.address}; without a network, copy it here and run `medseg weights add {self.name} {self.file}`"
        )


@cache
def known_weights() -> dict[str, KnownWeights]:
    """The table, by name."""
    path = Path(str(files("medseg_configs"))) / _TABLE
    content: dict[str, dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: KnownWeights(name=name, **entry) for name, entry in content.items()}


def recognised(sha256: str, md5: str) -> KnownWeights | None:
    """The public checkpoint that a file is, by its digests; None where it is none of the table."""
    return next((known for known in known_weights().values() if known.is_file_of(sha256, md5)), None)
