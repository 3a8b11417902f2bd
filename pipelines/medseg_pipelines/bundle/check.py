"""`medseg bundle check`: ten points, most of them tried out in a process that cannot import medseg."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg import io
from medseg.errors import MedsegError, UsageError
from medseg.volume import Volume
from medseg_pipelines.bundle.archive import MANIFEST, METADATA, checksums, file_names, opened, read_json
from medseg_pipelines.bundle.configs import POSTFIX
from medseg_pipelines.bundle.vendor import OURS, foreign_imports
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import SegmentationRecipe, load_segmentation_recipe
from medseg_pipelines.words import RESEARCH_USE

SCHEMA_FILE = Path(__file__).with_name("metadata_schema.json")
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
    """All ten points, in their order."""

    points: tuple[Point, ...]

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
        UsageError: There is nothing at `path`, or no model to compare with.
        InputRefused: It is no bundle, or an archive that tries to harm.
    """
    with opened(path) as folder:
        return check_folder(folder, model=model)


def check_folder(folder: Path, *, model: str | Path | None = None) -> Report:
    """The same for an unpacked bundle."""
    require_tools()
    missing = [name for name in _REQUIRED if not (folder / name).is_file()]
    if missing:
        return Report((Point("files", f"missing: {', '.join(missing)}"),))
    told = read_json(folder / MANIFEST)
    model = model or str(read_json(folder / METADATA).get("name", ""))
    recipe = _recipe(model)
    with tempfile.TemporaryDirectory(prefix="medseg-check-") as place:
        work = Path(place)
        scan = work / "images" / "specimen.nii.gz"
        scan.parent.mkdir()
        io.write(specimen(recipe), scan)
        found = probe(folder, work, recipe)
        points = (
            Point("files", _documents(folder)),
            Point("checksums", _checksums(folder, told)),
            Point("code", _code(folder)),
            Point("metadata", found["verify_metadata"]),
            Point("properties", found["properties"]),
            Point("weights", found["weights"] or _same_weights(told, recipe)),
            Point("network", found["verify_net_in_out"]),
            Point("run without medseg", found["run"] or _strangers(found)),
            Point("same voxels as medseg infer", found["run"] or _compare(model, scan, work / "labels")),
            Point("model.ts", found["script"]),
        )
    return Report(points)


def require_tools() -> None:
    """Find out whether `monai.bundle` can run here.

    Raises:
        MedsegError: Packages of the extra `bundle` are not installed.
    """
    missing = [name for name in _TOOLS if find_spec(name) is None]
    if missing:
        raise MedsegError(f"bundles need {', '.join(missing)}, not installed here; pip install 'medseg[bundle]'")


def probe(
    folder: Path, work: Path, recipe: SegmentationRecipe, *, more: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """Run the bundle in a process of its own that cannot import medseg, from a folder that is not the bundle's.

    Args:
        folder: Of the bundle.
        work: Holds `images`; gets `labels`.
        recipe: Of the model.
        more: Further commands of `monai.bundle`, by name.

    Returns:
        Per step None or the error, and under "strangers" what was imported against the rules.

    Raises:
        MedsegError: The process gave no answer.
    """
    config, meta = str(folder / "configs" / "inference.json"), str(folder / METADATA)
    root = ["--bundle_root", str(folder)]
    places = ["--dataset_dir", str(work / "images"), "--output_dir", str(work / "labels"), "--device", "cpu"]
    request = {
        "bundle": str(folder),
        "window": list(recipe.inference.window),
        "table": [list(pair) for pair in recipe.decode.table],
        "commands": {
            "verify_metadata": ["verify_metadata", "--meta_file", meta, "--filepath", str(SCHEMA_FILE)],
            "verify_net_in_out": [
                *["verify_net_in_out", "network_def", "--meta_file", meta, "--config_file", config],
                *["--device", "cpu", *root],
            ],
            "run": ["run", "--config_file", config, "--meta_file", meta, *root, *places],
            **(more or {}),
        },
    }
    asked, answer = work / "request.json", work / "report.json"
    asked.write_text(json.dumps(request), encoding="utf-8")
    # as many threads as here: the order of sums, and with it the last bit, may depend on their number
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-I", "-B", str(_PROBE), str(asked), str(answer)]
    told = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    if not answer.is_file():
        last = (told.stderr.strip().splitlines() or ["no word"])[-1]
        raise MedsegError(f"check: the process that runs the bundle must answer, it ended with {last}")
    return json.loads(answer.read_text(encoding="utf-8"))


def specimen(recipe: SegmentationRecipe) -> Volume:
    """An oblique, anisotropic image with grey values of a soft body, a little longer than one window."""
    spacing = recipe.preparation.spacing or (1.0, 1.0, 1.0)
    margin = 2 * (recipe.preparation.foreground_margin or 0.0)
    extents = [
        share * n * step for share, n, step in zip((1.2, 0.9, 0.8), recipe.inference.window, spacing, strict=True)
    ]
    steps = np.array(spacing) * (1.0, 1.2, 1.5)
    shape = [max(16, round(1.1 * extent / step)) for extent, step in zip(extents, steps, strict=True)]
    axes = np.meshgrid(*[np.linspace(-1.1, 1.1, n) for n in shape], indexing="ij")
    body = [max(0.5, (extent - margin) / extent) for extent in extents]
    radius = np.sqrt(sum((axis / share) ** 2 for axis, share in zip(axes, body, strict=True)))
    noise = np.random.default_rng(0).normal(size=shape)
    waves = np.sin(9 * axes[0]) * np.cos(7 * axes[1]) + np.sin(5 * axes[2])
    voxels = np.where(radius < 1, 300 + 120 * waves + 90 * axes[0] + 15 * noise, 4 * np.abs(noise))
    tilt = np.array([[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag(steps * (-1, 1, 1))
    affine[:3, 3] = (40.0, -35.5, 12.25)
    return Volume(np.clip(voxels, 0, None).round().astype(np.int16), affine)


def _recipe(model: str | Path) -> SegmentationRecipe:
    try:
        return load_segmentation_recipe(model)
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


def _same_weights(told: dict[str, Any], recipe: SegmentationRecipe) -> str | None:
    found = told.get("model", {}).get("weights_sha256")
    return None if found == recipe.weights.sha256 else "the bundle was made from other weights than the model has now"


def _strangers(found: dict[str, Any]) -> str | None:
    return f"it imported {', '.join(found['strangers'])}" if found["strangers"] else None


def _compare(model: str | Path, scan: Path, labels: Path) -> str | None:
    """How the bundle's label map differs from that of the application."""
    written = labels / f"{scan.name.removesuffix('.nii.gz')}_{POSTFIX}.nii.gz"
    if not written.is_file():
        return "the run wrote no label map"
    found = io.read(written, kind="labels")
    expected = load_model(model, device="cpu")(scan, force_scope=True).volume
    if not found.grid.equals(expected.grid, tolerance=1e-4):  # mm; the file holds the affine in float32
        return f"grid {found.shape} at {found.spacing} mm, expected {expected.shape} at {expected.spacing} mm"
    differ = int(np.count_nonzero(found.voxels != expected.voxels))
    return f"{differ} of {found.voxels.size} voxels differ" if differ else None


def _documents(folder: Path) -> str | None:
    text = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    return None if RESEARCH_USE in text else "docs/README.md must say that this is for research use only"
