"""`medseg audit verify` and `medseg account`: what whoever runs a server needs besides `medseg serve`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from medseg.errors import UsageError
from medseg_app.output import print_json, print_line
from medseg_app.server.accounts import hash_password
from medseg_app.server.audit import verify


def check(path: Path, *, json: bool) -> int:
    """Verify an audit log and print its length and last hash."""
    number, last = verify(path)
    if json:
        print_json({"entries": number, "last_hash": last})
    else:
        print_line(f"{number} entries, each follows from the one before; last hash {last}")
    return 0


def add_account(path: Path, name: str, password: str) -> int:
    """Add or replace a user in the file of accounts.

    Raises:
        UsageError: The name or the password will not do.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise UsageError("user name must be letters, digits, dot, dash or underscore, up to 64; choose another")
    digest = hash_password(password)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if line.partition(":")[0] != name]
    draft = path.with_name(f".{path.name}.partial")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write("\n".join([*kept, f"{name}:{digest}"]) + "\n")
    draft.replace(path)
    print_line(f"{name} may log in")
    return 0
