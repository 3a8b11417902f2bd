"""Keyed pseudonyms: the same key and value give the same answer, and without the key nobody can try values out."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from medseg.errors import UsageError

SHORTEST_KEY = 16  # bytes
LONGEST_SHIFT = 3650  # days


class Pseudonyms:
    """Maps identifiers by HMAC-SHA256.

    Args:
        key: Secret, at least 16 bytes.

    Raises:
        ValueError: The key is shorter.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < SHORTEST_KEY:
            raise ValueError(f"key must have {SHORTEST_KEY} bytes or more, got {len(key)}")
        self._key = key

    def uid(self, value: str) -> str:
        """A UID for a UID: 2.25 and 128 bits, at most 44 characters."""
        return f"2.25.{int.from_bytes(self._digest('uid', value)[:16])}"

    def short(self, value: str) -> str:
        """Sixteen characters, fit for every text attribute of DICOM: 70 bits, so that no two patients share one."""
        number = int.from_bytes(self._digest("name", value.strip()))
        letters = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
        return "ID" + "".join(letters[number >> 5 * place & 31] for place in range(14))

    def days(self, value: str) -> int:
        """Days by which the dates of this patient move into the past, 1 to 3650."""
        return 1 + int.from_bytes(self._digest("days", value.strip())[:8]) % LONGEST_SHIFT

    def _digest(self, purpose: str, value: str) -> bytes:
        return hmac.digest(self._key, f"{purpose}\0{value}".encode(), "sha256")


def read_key(path: Path) -> bytes:
    """The key in a file of the user's own.

    Raises:
        UsageError: There is no such file, others may read it, or it is too short.
    """
    try:
        mode, key = path.stat().st_mode, path.read_bytes().strip()
    except OSError:
        raise UsageError(f"key '{path.name}' must be a readable file, it is not; check the path") from None
    if stat.S_IMODE(mode) & 0o077:
        raise UsageError(f"key '{path.name}' must be readable by its owner alone, others may read it; chmod 600 it")
    if len(key) < SHORTEST_KEY:
        raise UsageError(f"key '{path.name}' must have {SHORTEST_KEY} bytes or more, got {len(key)}; use a longer one")
    return key


def create_key(path: Path) -> bytes:
    """A new random key, written for its owner alone; an existing file is never touched.

    Raises:
        FileExistsError: There is a file of that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    key = secrets.token_hex(32).encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return key
