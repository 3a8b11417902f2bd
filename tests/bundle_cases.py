"""Models made small, their bundles, and all of those run in one process that cannot import medseg."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medseg import io
from medseg_pipelines.bundle import check, export
from medseg_pipelines.bundle.kinds import Kind, kind_of
from medseg_pipelines.bundle.kinds.kind import Training
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe, recipe_folder
from medseg_pipelines.support_store import load_support_set
from tiny_model import head

_TRAINING = {
    "segmentation": {},
    "restoration": {"crop": 32, "batch_size": 1},
    "picture-segmentation": {"crop": 64, "batch_size": 1},
}
_SMALLER = {
    "segmentation": {"inference": {"window": [64, 32, 32]}},
    "picture-segmentation": {"inference": {"window": 96}},
    "super-resolution": {"upscaling": {"window": [16, 16, 16]}},
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A bundle that was run.

    Attributes:
        model: Folder of the model.
        bundle: Folder of the bundle.
        work: Holds `images` and `results`; of tiny models also `stock`, `tuned` and `again.ts`.
        kind: Of the model.
        found: What MONAI said, per step.
    """

    model: Path
    bundle: Path
    work: Path
    kind: Kind[Any]
    found: dict[str, Any]

    @property
    def scan(self) -> Path:
        """The image that it ran on."""
        return self.work / "images" / self.kind.SPECIMEN


def small_copy(name: str, folder: Path) -> Path:
    """A shipped model with its own weights, and windows small enough for tests."""
    home = recipe_folder(name)
    content = yaml.safe_load((home / RECIPE_FILE).read_text(encoding="utf-8"))
    for section, changes in _SMALLER.get(content["task"], {}).items():
        content[section].update(changes)
    if "diameter" in content.get("preparation", {}):
        content["preparation"]["diameter"] = 150
    folder.mkdir()
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    (folder / content["weights"]["file"]).symlink_to(home / content["weights"]["file"])
    return folder


def run_cases(models: Mapping[str, Path], place: Path, supports: Mapping[str, str]) -> dict[str, Case]:
    """Bundles of models, run where medseg cannot be imported; of models named tiny all that MONAI can do with them.

    Args:
        models: Folders by name.
        place: Gets a folder for each.
        supports: Support sets of those that follow one.
    """
    trials = {name: _trial(model, place / name, supports.get(name), "tiny" in name) for name, model in models.items()}
    reports = check.probe(list(trials.values()))
    return {
        name: Case(model=models[name], bundle=trial.folder, work=trial.work, kind=trial.kind, found=found)
        for (name, trial), found in zip(trials.items(), reports, strict=True)
    }


def _trial(model: Path, work: Path, support: str | None, every: bool) -> check.Trial:
    bundle = work / "bundle"
    kind = kind_of(load_recipe(model), support=None if support is None else load_support_set(support))
    for folder in (bundle, work / "images"):
        folder.mkdir(parents=True)
    kind.write_specimen(work / "images" / kind.SPECIMEN)
    export.build(model, bundle, support=support)
    return check.Trial(folder=bundle, work=work, kind=kind, further=_further(bundle, work, kind) if every else {})


def _further(bundle: Path, work: Path, kind: Kind[Any]) -> dict[str, list[str]]:
    """Export of the checkpoint, a run of the stock configuration, and a short training."""
    commands = check.further_commands(bundle, work)
    if (bundle / "configs" / "train.json").is_file():
        _write_pair(work / "data", kind)
        options = {"max_epochs": 2, "device": "cpu", **_TRAINING[kind.recipe.task]}
        if kind.recipe.task == "segmentation":
            crop = _training(kind).options["crop"]
            most = 32 if crop[-1] == 1 else 16  # batch norms want more than one cell of a slice
            options["crop"] = str([min(most, side) for side in crop]).replace(" ", "")
        given = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        places = ["--dataset_dir", str(work / "data"), "--output_dir", str(work / "tuned")]
        config = ["--config_file", str(bundle / "configs" / "train.json"), "--bundle_root", str(bundle)]
        commands["train"] = ["run", *config, *places, *given]
    return commands


def _training(kind: Kind[Any]) -> Training:
    training = kind.training()
    assert training is not None
    return training


def _write_pair(data: Path, kind: Kind[Any]) -> None:
    """One image and what a network is to learn of it."""
    images, targets = (data / name for name in _training(kind).folders)
    for folder in (images, targets):
        folder.mkdir(parents=True)
    if kind.recipe.task == "segmentation":
        io.write(head(), images / "a.nii.gz")
        io.write(head().with_voxels((head().voxels > 300).astype(np.uint8), kind="labels"), targets / "a.nii.gz")
    else:
        kind.write_specimen(images / kind.SPECIMEN)
        kind.write_specimen(targets / kind.SPECIMEN)
