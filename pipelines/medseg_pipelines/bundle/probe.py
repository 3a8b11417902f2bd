"""Runs a bundle where nothing of ours can be imported, and writes down what happened.

Started by `check.py` as `python -I probe.py REQUEST REPORT`, from a folder that is not the bundle's. It imports nothing
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
    """Do what the request says; the report holds, per step, None or the error."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    sys.meta_path.insert(0, _Wall())
    os.chdir(Path(report_file).parent)
    report: dict[str, Any] = {}
    for name, arguments in request["commands"].items():
        report[name] = _error(lambda words=arguments: _command(words))
    bundle = request["bundle"]
    report["properties"] = _error(lambda: _properties(bundle))
    report["weights"] = _error(lambda: _weights(bundle))
    report["script"] = _error(lambda: _script(bundle, request["window"], request["table"]))
    report["strangers"] = sorted(BLOCKED & {name.split(".")[0] for name in sys.modules})
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


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

    workflow = ConfigWorkflow(
        config_file=f"{bundle}/configs/inference.json",
        meta_file=f"{bundle}/configs/metadata.json",
        workflow_type="infer",
        bundle_root=bundle,
    )
    workflow.initialize()
    missing = workflow.check_properties()
    if missing:
        raise ValueError(f"properties are missing: {missing}")


def _weights(bundle: str) -> None:
    import torch

    network = _parser(bundle).get_parsed_content("network_def")
    network.load_state_dict(torch.load(f"{bundle}/models/model.pt", weights_only=True), strict=True)


def _script(bundle: str, window: list[int], table: list[list[int]]) -> None:
    """Load model.ts and compare its label map with that of the network, decoded as the recipe says."""
    import torch

    extra = {"metadata.json": "", "inference.json": ""}
    script = torch.jit.load(f"{bundle}/models/model.ts", _extra_files=extra).eval()
    config = json.loads(extra["inference.json"])
    json.loads(extra["metadata.json"])
    if "scripts" in json.dumps(config):
        raise ValueError("the configuration inside model.ts must use stock transforms only")
    network = _parser(bundle).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(f"{bundle}/models/model.pt", weights_only=True))
    image = torch.rand((1, 1, *window), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scores, found = network(image)[0], script(image)[0].argmax(0)
    best = scores[: len(table)].argmax(0)
    side = (scores[len(table)] > 0).long() if len(scores) > len(table) else torch.zeros_like(best)
    expected = torch.tensor(table)[best, side]
    labels = torch.tensor(sorted({label for pair in table for label in pair}))
    differ = float((labels[found] != expected).float().mean())
    if differ > 1e-3:  # voxels where two scores are equal to rounding
        raise ValueError(f"model.ts differs from the network in {differ:.2%} of the voxels")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
