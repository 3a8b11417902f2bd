"""Who may come in: a file of hashed passwords, sessions in memory, and patience that runs out with wrong passwords."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import threading
import time
from pathlib import Path

from medseg.errors import UsageError

_COST = {"n": 2**14, "r": 8, "p": 1}
_SESSION = 12 * 3600.0  # seconds
_FREE_TRIES = 3
_LONGEST_WAIT = 900.0  # seconds
_REMEMBERED = 10_000  # names and addresses that failed
_NOBODY = "scrypt$AAAAAAAAAAAAAAAAAAAAAA==$" + "A" * 43 + "="


def hash_password(password: str) -> str:
    """What stands in the file for a password.

    Raises:
        UsageError: It is too short.
    """
    if len(password) < 10:
        raise UsageError(f"password must have at least 10 characters, got {len(password)}; take a longer one")
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, **_COST)
    return "$".join(("scrypt", base64.b64encode(salt).decode(), base64.b64encode(digest).decode()))


def read_accounts(path: Path) -> dict[str, str]:
    """User name to hash, from lines of `name:hash`.

    Raises:
        UsageError: The file is not there, open to others, or says something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise UsageError(
            f"accounts '{path.name}' must be a readable file; make it with `medseg account FILE`"
        ) from None
    if path.stat().st_mode & 0o077:
        raise UsageError(f"accounts '{path.name}' must be readable by its owner only; use chmod 600")
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, digest = line.partition(":")
        if line.strip() and (not name or not digest.startswith("scrypt$") or digest.count("$") != 2):
            raise UsageError(f"accounts line {number} must be NAME:HASH; make it with `medseg account FILE NAME`")
        if line.strip():
            found[name] = digest.strip()
    if not found:
        raise UsageError(f"accounts '{path.name}' must name somebody, it is empty; use `medseg account FILE NAME`")
    return found


class Throttled(UsageError):
    """Too many wrong passwords; the message says how long to wait."""


class Accounts:
    """Log in, log out, and know who is in.

    Args:
        accounts: User name to hash.
    """

    def __init__(self, accounts: dict[str, str]) -> None:
        self._accounts = accounts
        self._lock = threading.Lock()
        self._sessions: dict[str, tuple[str, float]] = {}
        self._failures: dict[str, tuple[int, float]] = {}

    def log_in(self, name: str, password: str, address: str) -> str | None:
        """A session token, or None where name and password do not fit.

        Raises:
            Throttled: There were too many failures for this name or from this address.
        """
        if not self.fits(name, password, address):
            return None
        token = secrets.token_urlsafe(32)
        with self._lock:
            now = time.time()
            self._sessions = {key: kept for key, kept in self._sessions.items() if kept[1] > now}
            self._sessions[_key(token)] = (name, now + _SESSION)
        return token

    def fits(self, name: str, password: str, address: str) -> bool:
        """Whether name and password fit; unknown names take as long as known ones.

        Raises:
            Throttled: There were too many failures for this name or from this address.
        """
        keys = (f"name {name}", f"address {address}")
        with self._lock:
            wait = max(self._wait(key) for key in keys)
            if wait > 0:
                raise Throttled(f"too many wrong passwords; wait {wait:.0f} s")
        _, salt, expected = self._accounts.get(name, _NOBODY).split("$")
        digest = hashlib.scrypt(password.encode(), salt=base64.b64decode(salt), **_COST)
        fits = hmac.compare_digest(digest, base64.b64decode(expected)) and name in self._accounts
        with self._lock:
            for key in keys:
                if fits:
                    self._failures.pop(key, None)
                else:
                    self._failures[key] = (self._failures.get(key, (0, 0.0))[0] + 1, time.time())
            while len(self._failures) > _REMEMBERED:
                self._failures.pop(next(iter(self._failures)))
        return fits

    def user(self, token: str | None) -> str | None:
        """Who a session belongs to."""
        name, until = self._sessions.get(_key(token or ""), ("", 0.0))
        return name if until > time.time() else None

    def log_out(self, token: str) -> None:
        """End a session."""
        with self._lock:
            self._sessions.pop(_key(token), None)

    def _wait(self, key: str) -> float:
        """Seconds until another try; it doubles with every failure."""
        count, last = self._failures.get(key, (0, 0.0))
        if count < _FREE_TRIES:
            return 0.0
        return last + min(_LONGEST_WAIT, 2.0 ** (count - _FREE_TRIES + 1)) - time.time()


def _key(token: str) -> str:
    """What is kept of a token, so that a look into the memory lets nobody in."""
    return hashlib.sha256(token.encode()).hexdigest()
