"""`medseg doctor`: whether this machine is ready, and what runs on it."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from medseg.errors import MedsegError
from medseg_app.output import print_json, print_table, size_text
from medseg_pipelines.case import hash_file
from medseg_pipelines.recipe import load_recipe, recipe_folder, recipe_names

_PACKAGES = ("medseg", "torch", "monai", "numpy", "scipy", "nibabel", "SimpleITK", "safetensors", "Pillow")


@dataclass(frozen=True)
class Check:
    """One finding: "fail" keeps models from running, "warn" costs speed or comfort."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str


def run(*, json: bool) -> int:
    """Check and print; returns 1 where anything fails."""
    parts: list[Callable[[], list[Check]]] = [_system, _packages, _compute, _models, _offline]
    checks = [check for part in parts for check in part()]
    if json:
        print_json({"ready": _ready(checks), "checks": [asdict(check) for check in checks]})
    else:
        print_table(("", "what", "found"), [(check.state, check.name, check.text) for check in checks])
    return 0 if _ready(checks) else 1


def _ready(checks: list[Check]) -> bool:
    return all(check.state != "fail" for check in checks)


def _system() -> list[Check]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return [
        Check("Python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        Check("processors", "ok", str(os.cpu_count())),
        Check("memory", "ok" if memory > 4e9 else "warn", f"{size_text(memory)}, a run takes up to 3 GB"),
        Check("disk", "ok" if free > 1e9 else "warn", f"{size_text(free)} free for temporary files"),
    ]


def _packages() -> list[Check]:
    checks = []
    for name in _PACKAGES:
        try:
            checks.append(Check(name, "ok", version(name)))
        except PackageNotFoundError:
            checks.append(Check(name, "fail", "absent: reinstall medseg"))
    return checks


def _compute() -> list[Check]:
    """Devices and engines; the one check that has to load torch."""
    import torch

    from medseg_pipelines import engines

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        gpu = Check("GPU", "ok", ", ".join(f"cuda:{i} {name}" for i, name in enumerate(names)))
    else:
        gpu = Check("GPU", "ok", "none, runs on the CPU")
    return [
        gpu,
        Check("threads", "ok", str(torch.get_num_threads())),
        Check("engines", "ok", ", ".join(engines.available())),
    ]


def _models() -> list[Check]:
    checks = []
    for name in recipe_names():
        try:
            recipe = load_recipe(name)
        except MedsegError as error:
            checks.append(Check(f"model {name}", "fail", str(error)))
            continue
        checks.append(_weights(name, recipe_folder(name) / recipe.weights.file, recipe.weights.sha256))
    return checks


def _weights(name: str, path: Path, sha256: str) -> Check:
    if not path.is_file():
        return Check(f"model {name}", "fail", "weights are missing: reinstall the package")
    if hash_file(path)[0] != sha256:
        return Check(f"model {name}", "fail", "weights have another sha256 than the recipe: reinstall the package")
    return Check(f"model {name}", "ok", f"weights of {size_text(path.stat().st_size)} are intact")


def _offline() -> list[Check]:
    return [Check("offline", "ok", "models ship with the package; nothing is fetched or reported")]
