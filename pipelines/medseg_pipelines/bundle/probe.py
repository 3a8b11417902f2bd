"""Runs bundles where nothing of ours can be imported, and writes down what happened.

Started by `check.py` as `python -I probe.py REQUEST REPORT`; no bundle is run from its own folder. It imports nothing
of this package: what it finds must hold on a machine that has MONAI and the extras MONAI declares, and no more.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

BLOCKED = frozenset(
    {
        "medseg",
        "medseg_app",
        "medseg_configs",
        "medseg_kernels",
        "medseg_pipelines",
        "triton",
        "SimpleITK",
        "pydantic",
        "safetensors",
        "typer",
    }
)


class _Wall(MetaPathFinder):
    """Refuses what the bundle must not need."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{fullname} is not installed here", name=fullname)


def main(request_file: str, report_file: str) -> None:
    """Do what the requests say, one bundle after the other; reports hold, per step, None or the error."""
    requests = json.loads(Path(request_file).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, _Wall())
    reports = []
    for request in requests:
        path = list(sys.path)
        os.chdir(request["work"])
        reports.append(_tried(request["bundle"], request["commands"]))
        sys.path[:] = path
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]  # the code of the next bundle has the same name
    Path(report_file).write_text(json.dumps(reports), encoding="utf-8")


def _tried(bundle: str, commands: dict[str, list[str]]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for name, words in commands.items():
        report[name] = _error(lambda words=words: _command(words))
    report["properties"] = _error(lambda: _properties(bundle))
    report["weights"] = _error(lambda: _weights(bundle))
    report["script"] = _error(lambda: _script(bundle))
    report["strangers"] = sorted(BLOCKED & {name.split(".")[0] for name in sys.modules})
    return report


def _error(step: Callable[[], None]) -> str | None:
    try:
        step()
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and not error.code:
            return None
        traceback.print_exc()
        causes = f" ({error.__cause__})" if error.__cause__ else ""
        return f"{type(error).__name__}: {' '.join(str(error).split())}{causes}"
    return None


def _command(words: list[str]) -> None:
    """`python -m monai.bundle` with these arguments."""
    sys.argv = ["monai.bundle", *words]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)


def _parser(bundle: str) -> Any:
    from monai.bundle.config_parser import ConfigParser

    parser = ConfigParser()
    parser.read_config(f"{bundle}/configs/inference.json")
    parser["bundle_root"] = bundle
    return parser


def _properties(bundle: str) -> None:
    from monai.bundle.workflows import ConfigWorkflow

    # there is nothing to train on here, and no data cannot be shuffled
    workflows = {"infer": ("inference.json", {}), "train": ("train.json", {"train#dataloader#shuffle": False})}
    for kind, (name, changes) in workflows.items():
        if not Path(bundle, "configs", name).is_file():
            continue
        workflow = ConfigWorkflow(
            config_file=f"{bundle}/configs/{name}",
            meta_file=f"{bundle}/configs/metadata.json",
            workflow_type=kind,
            bundle_root=bundle,
            logging_file=False,
            **changes,
        )
        workflow.initialize()
        missing = workflow.check_properties()
        if missing:
            raise ValueError(f"properties of {name} are missing: {missing}")


def _weights(bundle: str) -> None:
    import torch

    network = _parser(bundle).get_parsed_content("network_def")
    network.load_state_dict(torch.load(f"{bundle}/models/model.pt", weights_only=True), strict=True)


def _script(bundle: str) -> None:
    """Run model.ts on the sample and keep what it gives."""
    import torch

    extra = {"metadata.json": "", "inference.json": ""}
    script = torch.jit.load(f"{bundle}/models/model.ts", _extra_files=extra).eval()
    json.loads(extra["metadata.json"])
    if "scripts" in json.dumps(json.loads(extra["inference.json"])):
        raise ValueError("the configuration inside model.ts must use stock transforms only")
    with torch.inference_mode():
        torch.save(script(torch.load("sample.pt", weights_only=True)), "script.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
