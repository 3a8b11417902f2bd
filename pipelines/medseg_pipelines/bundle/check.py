"""`medseg bundle check`: ten points, most of them tried out in a process that cannot import medseg."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from medseg.errors import MedsegError, UsageError
from medseg_pipelines.bundle.archive import MANIFEST, METADATA, checksums, file_names, opened, read_json
from medseg_pipelines.bundle.kinds import Kind, kind_of
from medseg_pipelines.bundle.kinds.support import support_set_of
from medseg_pipelines.bundle.torchscript import close
from medseg_pipelines.bundle.vendor import OURS, foreign_imports
from medseg_pipelines.recipe import Recipe, load_recipe, recipe_folder
from medseg_pipelines.words import RESEARCH_USE

SCHEMA_FILE = Path(__file__).with_name("metadata_schema.json")
SAMPLE, OUTPUT = "sample.pt", "script.pt"
_PROBE = Path(__file__).with_name("probe.py")
_REQUIRED = (
    "LICENSE",
    MANIFEST,
    METADATA,
    "configs/inference.json",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
    "models/model.ts",
)
_TOOLS = ("fire", "ignite", "jsonschema")
_PATIENCE = 3600  # seconds for the probe: a large model on a busy machine


@dataclass(frozen=True)
class Point:
    """One point of the check; `fault` says what is wrong, None that nothing is."""

    name: str
    fault: str | None


@dataclass(frozen=True)
class Report:
    """All ten points, in their order, and what became of further commands."""

    points: tuple[Point, ...]
    further: dict[str, str | None] = field(default_factory=dict)  # None or the error

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return all(point.fault is None for point in self.points)


def check_bundle(path: Path, *, model: str | Path | None = None) -> Report:
    """Check a bundle that `medseg bundle export` wrote, and compare it with the model as medseg itself runs it.

    Args:
        path: A folder or a zip.
        model: Name or folder of the model; by default the name that the bundle bears.

    Raises:
        UsageError: There is nothing at `path`, or no model or support set to compare with.
        InputRefused: It is no bundle, or an archive that tries to harm.
    """
    with opened(path) as folder:
        return check_folder(folder, model=model)


def check_folder(
    folder: Path, *, model: str | Path | None = None, further: dict[str, list[str]] | None = None
) -> Report:
    """The same for an unpacked bundle, and further commands of `monai.bundle`, by name."""
    require_tools()
    folder = folder.absolute()  # what checks it works in a folder of its own
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        return Report((Point("files", f"missing: {', '.join(missing)}"),))
    told = read_json(folder / MANIFEST)
    metadata = read_json(folder / METADATA)
    model = model or str(metadata.get("name", ""))
    kind = kind_of(_recipe(model), support=support_set_of(metadata))
    with tempfile.TemporaryDirectory(prefix="medseg-check-") as place:
        work = Path(place)
        scan = work / "images" / kind.SPECIMEN
        scan.parent.mkdir()
        kind.write_specimen(scan)
        (found,) = probe([Trial(folder=folder, work=work, kind=kind, further=further or {})])
        points = (
            Point("files", _documents(folder)),
            Point("checksums", _checksums(folder, told)),
            Point("code", _code(folder)),
            Point("metadata", found["verify_metadata"]),
            Point("properties", found["properties"]),
            Point("weights", found["weights"] or _same_weights(told, kind.recipe)),
            Point("network", found["verify_net_in_out"]),
            Point("run without medseg", found["run"] or _strangers(found)),
            Point("same voxels as medseg infer", found["run"] or kind.fault(model, scan, work / "results")),
            Point("model.ts", found["script"] or script_fault(kind, model, work)),
        )
    return Report(points, {name: found[name] for name in further or {}})


def require_tools() -> None:
    """Find out whether `monai.bundle` can run here.

    Raises:
        MedsegError: Packages of the extra `bundle` are not installed.
    """
    missing = [name for name in _TOOLS if find_spec(name) is None]
    if missing:
        raise MedsegError(f"bundles need {', '.join(missing)}, not installed here; pip install 'medseg[bundle]'")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A bundle to be run by MONAI alone.

    Attributes:
        folder: Of the bundle.
        work: Holds `images`; gets `results`, and the output of `model.ts` on `kind.sample(1)` as `script.pt`.
        kind: Of the model.
        further: Commands of `monai.bundle` beyond those of the check, by name.
    """

    folder: Path
    work: Path
    kind: Kind[Any]
    further: dict[str, list[str]] = field(default_factory=dict)

    @property
    def request(self) -> dict[str, Any]:
        """What `probe.py` is told."""
        config, meta = str(self.folder / "configs" / "inference.json"), str(self.folder / METADATA)
        root = ["--bundle_root", str(self.folder)]
        places = ["--dataset_dir", str(self.work / "images"), "--output_dir", str(self.work / "results")]
        commands = {
            "verify_metadata": ["verify_metadata", "--meta_file", meta, "--filepath", str(SCHEMA_FILE)],
            "verify_net_in_out": [
                *["verify_net_in_out", "network_def", "--meta_file", meta, "--config_file", config],
                *["--device", "cpu", *root],
            ],
            "run": ["run", "--config_file", config, "--meta_file", meta, "--device", "cpu", *root, *places],
            **self.further,
        }
        return {"bundle": str(self.folder), "work": str(self.work), "commands": commands}


def further_commands(folder: Path, out: Path) -> dict[str, list[str]]:
    """What a user of MONAI may do with a bundle beyond the check.

    Args:
        folder: Of the bundle.
        out: Gets `again.ts` from `ckpt_export`, and in `stock` what the stock configuration makes of the folder
            `images` in the place where it is run.
    """
    root, configs = ["--bundle_root", str(folder)], folder / "configs"
    commands = {
        "ckpt_export": [
            *["ckpt_export", "network_def", "--filepath", str(out / "again.ts"), "--use_trace", "True", *root],
            *["--config_file", str(configs / "inference.json"), "--meta_file", str(folder / METADATA)],
            *["--ckpt_file", str(folder / "models" / "model.pt")],
        ]
    }
    if (configs / "inference_stock.json").is_file():
        places = ["--dataset_dir", "images", "--output_dir", str(out / "stock"), "--device", "cpu"]
        commands["run_stock"] = ["run", "--config_file", str(configs / "inference_stock.json"), *root, *places]
    return commands


def probe(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Run bundles in a process of their own that cannot import medseg, from folders that are not theirs.

    Returns:
        For each, per step None or the error, and under "strangers" what was imported against the rules.

    Raises:
        MedsegError: The process gave no answer.
    """
    for trial in trials:
        torch.save(trial.kind.sample(1), trial.work / SAMPLE)
    with tempfile.TemporaryDirectory(prefix="medseg-probe-") as place:
        asked, answer = Path(place) / "request.json", Path(place) / "report.json"
        asked.write_text(json.dumps([trial.request for trial in trials]), encoding="utf-8")
        # as many threads as here: the order of sums, and with it the last bit, may depend on their number
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONDONTWRITEBYTECODE": "1"}
        told = subprocess.run(
            [sys.executable, "-I", "-B", str(_PROBE), str(asked), str(answer)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        if not answer.is_file():
            last = (told.stderr.strip().splitlines() or ["no word"])[-1]
            raise MedsegError(f"check: the process that runs the bundle must answer, it ended with {last}")
        return json.loads(answer.read_text(encoding="utf-8"))


def _recipe(model: str | Path) -> Recipe:
    try:
        return load_recipe(model)
    except UsageError:
        raise UsageError(f"bundle of '{model}': there is no model of that name to compare it with; add -m") from None


def _checksums(folder: Path, told: dict[str, Any]) -> str | None:
    wanted, found = told.get("files", {}), checksums(folder)
    differ = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"these files are not what {MANIFEST} says: {', '.join(differ)}" if differ else None


def _code(folder: Path) -> str | None:
    """What the code of the bundle imports from outside, beyond what MONAI brings."""
    for name in file_names(folder):
        if name.endswith(".py"):
            ours = foreign_imports((folder / name).read_text(encoding="utf-8")) & set(OURS)
            if ours:
                return f"{name} imports {', '.join(sorted(ours))}"
    return None


def _same_weights(told: dict[str, Any], recipe: Recipe) -> str | None:
    found = told.get("model", {}).get("weights_sha256")
    return None if found == recipe.weights.sha256 else "the bundle was made from other weights than the model has now"


def _strangers(found: dict[str, Any]) -> str | None:
    return f"it imported {', '.join(found['strangers'])}" if found["strangers"] else None


def script_fault(kind: Kind[Any], model: str | Path, work: Path) -> str | None:
    """Whether model.ts gave in the other process what the network gives here."""
    network = kind.loaded(recipe_folder(model))
    with torch.inference_mode():
        wanted = kind.served(network)(kind.sample(1))
    found = torch.load(work / OUTPUT, weights_only=True)
    return None if close(found, wanted) else "model.ts gives something else than the network"


def _documents(folder: Path) -> str | None:
    text = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    return None if RESEARCH_USE in text else "docs/README.md must say that this is for research use only"
