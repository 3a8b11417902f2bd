"""`medseg weights`: take in, list, verify, delete."""

from dataclasses import asdict
from typing import Any

from medseg.errors import ModelMissing
from medseg_app.output import print_json, print_line, print_table, size_text, tell
from medseg_app.progress import ProgressView
from medseg_pipelines.events import Reporter
from medseg_pipelines.weights.cache import (
    BroughtWeights,
    add_weights,
    list_weights,
    remove_weights,
    verify_weights,
    weights_folder,
)
from medseg_pipelines.weights.known import known_weights


def add(name: str, source: str | None, *, sha256: str | None, overwrite: bool, json: bool, quiet: bool) -> int:
    """Take weights in; returns the exit code."""
    with ProgressView(quiet=quiet) as view:
        report = Reporter(view)
        report.start("reading")
        brought = add_weights(name, source, sha256=sha256, overwrite=overwrite, progress=report.advance)
        view.pause()
    if json:
        print_json(_plain(brought))
        return 0
    print_line(f"added {brought.name}: {brought.network or 'unknown network'}, {_size(brought)}, {brought.origin}")
    print_line(f"  sha256   {brought.sha256}")
    print_line(f"  file     {brought.path}")
    if brought.known is None and not quiet:
        tell("warning: not in the table of public checkpoints: make sure that you know who trained it, and on what")
    return 0


def show(*, json: bool) -> int:
    """List what is there and what could be; returns the exit code."""
    here = list_weights()
    absent = [known for known in known_weights().values() if known.name not in {brought.name for brought in here}]
    if json:
        content = {"weights": [_plain(brought) for brought in here], "public": [asdict(known) for known in absent]}
        print_json({"folder": str(weights_folder()), **content})
        return 0
    print_line(f"{weights_folder()}: {size_text(sum(brought.bytes for brought in here))}")
    rows = [
        (b.name, b.network or "?", size_text(b.bytes), b.licence or "?", b.origin, b.sha256[:12] + "...") for b in here
    ]
    if rows:
        print_table(("name", "network", "size", "licence", "origin", "sha256"), rows, numeric=("size",))
    print_line("\nPublic checkpoints that are not here (`medseg weights add NAME` downloads, `add NAME FILE` reads):")
    print_table(
        ("name", "network", "size", "licence", "address"),
        [(k.name, k.network, size_text(k.bytes), k.licence, k.address) for k in absent],
        numeric=("size",),
    )
    return 0


def verify(name: str | None, *, json: bool) -> int:
    """Compare files with their digests; returns the exit code."""
    names = [name] if name is not None else [brought.name for brought in list_weights()]
    problems: dict[str, str | None] = {}
    for each in names:
        try:
            verify_weights(each)
            problems[each] = None
        except ModelMissing as error:
            problems[each] = str(error)
    if json:
        print_json({"weights": [{"name": n, "intact": p is None, "problem": p} for n, p in problems.items()]})
    else:
        for each, problem in problems.items():
            print_line(f"{each}: intact") if problem is None else tell(f"error: {problem}")
    return ModelMissing.exit_code if any(problems.values()) else 0


def remove(name: str, *, json: bool) -> int:
    """Delete weights; returns the exit code."""
    freed = remove_weights(name)
    if json:
        print_json({"name": name, "bytes": freed})
    else:
        print_line(f"removed {name}: {size_text(freed)}")
    return 0


def _plain(brought: BroughtWeights) -> dict[str, Any]:
    return {**asdict(brought), "origin": brought.origin, "path": str(brought.path)}


def _size(brought: BroughtWeights) -> str:
    return f"{size_text(brought.bytes)}, {brought.parameters:,} parameters"
