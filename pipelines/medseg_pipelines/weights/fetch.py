"""A file from an address, and the digests of a file."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ModelMissing, UsageError

_CHUNK = 1 << 20
_PATIENCE = 60.0  # seconds without a byte
_OFFLINE = "MEDSEG_OFFLINE"

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Digests:
    """What a file is recognised by."""

    sha256: str
    md5: str  # some publishers state nothing else; it recognises, it does not protect


def is_address(source: str) -> bool:
    """Whether a source is an address and no path."""
    return "://" in source


def fetch(address: str, target: Path, *, checked: bool, progress: Advance | None = None) -> None:
    """Download a file.

    Args:
        address: https, or http where the digest of the file is known.
        target: File to write.
        checked: Whether the digest will be compared.
        progress: Called with bytes done and all bytes (0: unknown); may raise to stop.

    Raises:
        UsageError: The address is of another kind, or this machine is to stay offline.
        ModelMissing: Nothing, or not all of it, came.
    """
    scheme = urllib.parse.urlsplit(address).scheme
    if scheme != "https" and not (scheme == "http" and checked):
        raise UsageError(f"address must start with https:// (http:// needs --sha256), got '{scheme}://'")
    if os.environ.get(_OFFLINE, "0") not in ("", "0"):
        raise UsageError(f"{_OFFLINE} is set: nothing is downloaded; give the file instead of its address")
    name = Path(urllib.parse.urlsplit(address).path).name
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE) as answer, target.open("wb") as file:
            total, done = int(answer.headers.get("Content-Length") or 0), 0
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(done, total)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ModelMissing(f"'{name}' could not be downloaded ({reason}); try again, or give the file itself") from None
    if total and done != total:
        raise ModelMissing(f"'{name}' must have {total} bytes, {done} came; try again")


def digests_of(path: Path) -> Digests:
    """Both digests of a file, read once."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
    return Digests(sha256.hexdigest(), md5.hexdigest())
