"""A result folder appears whole or not at all, whenever the process is stopped."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import UsageError

_PARTIAL = ".partial"
_REPLACED = ".replaced"
RESULT_MARK = "manifest.json"  # only a folder that holds one is ever replaced


def check_target(target: Path, *, overwrite: bool, mark: str = RESULT_MARK) -> None:
    """Find out before a long run whether its result may be put at `target`.

    Args:
        target: Where a folder shall appear.
        overwrite: Replace an earlier result.
        mark: The file that an earlier result holds.

    Raises:
        UsageError: Something is there that must not be replaced, or the folder above is missing.
    """
    if not target.parent.is_dir():
        raise UsageError(f"output '{target.name}' needs an existing folder above it, found none; create it first")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise UsageError(f"output '{target.name}' is already there; add --overwrite, or choose another with -o")
    if not (target / mark).is_file():
        raise UsageError(f"output '{target.name}' is no earlier result, it is not replaced; choose another with -o")


@contextmanager
def whole_folder(target: Path, *, overwrite: bool = False, mark: str = RESULT_MARK) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target` at the end; an error or a kill leaves nothing there.

    Args:
        target: Where the folder shall appear.
        overwrite: Replace an earlier result.
        mark: The file by which an earlier result is known.

    Raises:
        UsageError: See `check_target`.
    """
    check_target(target, overwrite=overwrite, mark=mark)
    _clean_up(target)
    partial, lock = _locked_folder(target)
    try:
        yield partial
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        check_target(target, overwrite=overwrite, mark=mark)  # another run may have been quicker
        _put_in_place(partial, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _put_in_place(partial: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        partial.rename(target)
        return
    replaced = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_REPLACED}")
    target.rename(replaced)
    try:
        partial.rename(target)
    except OSError:
        replaced.rename(target)
        raise
    shutil.rmtree(replaced)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock; the system drops the lock when the process dies."""
    while True:
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{_PARTIAL}")
        partial.mkdir()
        lock = _lock(partial)
        if lock is not None and partial.exists():  # else another run took it for a dead one's between the two lines
            return partial, lock


def _clean_up(target: Path) -> None:
    """Remove what dead processes left, and bring back a result that one of them had moved away."""
    for left in target.parent.glob(f".{target.name}.*{_PARTIAL}"):
        lock = _lock(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    for replaced in target.parent.glob(f".{target.name}.*{_REPLACED}"):
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(target)


def _lock(folder: Path) -> int | None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
