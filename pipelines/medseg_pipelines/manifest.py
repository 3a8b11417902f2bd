"""The record of one run: enough to repeat it and to tell whether the repetition is equal bit for bit."""

import json
import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medseg.errors import InputRefused, UsageError
from medseg_pipelines.recipe import Recipe
from medseg_pipelines.words import RESEARCH_USE

SCHEMA = "medseg-manifest-1"

_PACKAGES = ("medseg", "torch", "monai", "numpy", "scipy", "scikit-image", "nibabel", "SimpleITK")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computed the result."""

    device: str  # as torch names it
    device_name: str
    engine: str
    threads: int


def build_manifest(
    *,
    recipe: Recipe,
    recipe_sha256: str,
    image: dict[str, Any],
    output: dict[str, Any],
    machine: Machine,
    options: dict[str, Any],
    seconds: dict[str, float],
    warnings: tuple[str, ...],
) -> dict[str, Any]:
    """The manifest of a run as plain JSON data; it names no path, no person and no machine.

    Args:
        recipe: The model.
        recipe_sha256: Of the file of its recipe.
        image: What was read, by which a replay recognises it.
        output: What came of it, with the `voxels_sha256` that a replay compares.
        machine: Where.
        options: What the user asked for.
        seconds: Per stage.
        warnings: One sentence each.
    """
    return {
        "schema": SCHEMA,
        "notice": RESEARCH_USE,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": recipe.name,
            "task": recipe.task,
            "licence": recipe.licence,
            "recipe_sha256": recipe_sha256,
            "weights_sha256": recipe.weights.sha256,
            "trained": recipe.weights.trained,
        },
        "input": image,
        "options": options,
        "output": output,
        "machine": {**asdict(machine), "cpus": os.cpu_count(), "system": platform.system(), "cpu": platform.machine()},
        "versions": _versions(),
        "seconds": seconds,
        "peak_memory_bytes": _peak_memory(),
        "warnings": list(warnings),
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest from its file, checked as far as a replay relies on it.

    Raises:
        UsageError: There is no such file.
        InputRefused: It is not a manifest of this kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"manifest '{path.name}' is not there; give the manifest.json of a result") from None
    except ValueError:
        raise InputRefused(
            f"manifest '{path.name}' must be JSON, it is not; give the manifest.json of a result"
        ) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise InputRefused(f"manifest '{path.name}' must say schema {SCHEMA}, it does not; it is from another version")
    wanted = {"model": "weights_sha256", "input": "sha256", "output": "voxels_sha256", "machine": "threads"}
    for section, key in wanted.items():
        if key not in content.get(section, {}):
            raise InputRefused(f"manifest '{path.name}' must hold {section}.{key}, it does not; it was cut or edited")
    return content


def version_changes(manifest: dict[str, Any]) -> list[str]:
    """Packages that are no longer what they were when the manifest was written, each as "name old, now new"."""
    before, now = manifest.get("versions", {}), _versions()
    names = sorted(before.keys() | now.keys())
    return [f"{n} {before.get(n, 'absent')}, now {now.get(n, 'absent')}" for n in names if before.get(n) != now.get(n)]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _peak_memory() -> int:
    """Bytes that this process held at most so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
