"""`medseg bundle export`: a model of ours as a MONAI bundle that carries its own code and proves itself."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg import __version__
from medseg.errors import MedsegError, UsageError
from medseg.weights import load_weights, sha256_of
from medseg_pipelines import nets
from medseg_pipelines.bundle import configs
from medseg_pipelines.bundle.archive import MANIFEST, METADATA, checksums, pack, write_json
from medseg_pipelines.bundle.check import Report, check_folder, require_tools
from medseg_pipelines.bundle.torchscript import LabelScores, save_script
from medseg_pipelines.bundle.vendor import copy_code, target_of
from medseg_pipelines.folders import whole_folder
from medseg_pipelines.portable import LabelInferer, LoadVolumed, PrepareVolumed
from medseg_pipelines.recipe import RECIPE_FILE, SegmentationRecipe, load_segmentation_recipe, recipe_folder
from medseg_pipelines.segmentation import body_of, preparation_of
from medseg_pipelines.words import RESEARCH_USE, UNTRAINED

SCHEMA = "medseg-bundle-1"
_STOCK = "configs/inference_stock.json"


def export_bundle(model: str | Path, target: Path) -> Report:
    """Write a bundle and check it; one that fails a check does not stay.

    Args:
        model: A name from `medseg models`, or a model folder.
        target: A new folder, or a new file that ends in .zip.

    Returns:
        What was checked.

    Raises:
        UsageError: There is no such model, or something is at `target` already.
        ModelMissing: The weights are absent or altered.
        MedsegError: The bundle failed a check; the message names it.
    """
    with _place(target) as folder:
        build(model, folder)
        report = check_folder(folder, model=model)
        if not report.passed:
            failed = next(point for point in report.points if point.fault)
            raise MedsegError(f"bundle failed '{failed.name}', nothing was written: {failed.fault}")
    return report


def build(model: str | Path, folder: Path) -> None:
    """Fill an empty folder with the bundle of a model, unchecked.

    Raises:
        UsageError: There is no such model.
        ModelMissing: The weights are absent or altered.
    """
    recipe, home = load_segmentation_recipe(model), recipe_folder(model)
    if recipe.network.name == nets.TRUSTED:
        raise UsageError(f"model '{recipe.name}' runs the code of a bundle; export that bundle, not the model")
    require_tools()
    network = nets.build(recipe.network.name, recipe.network.options).eval()
    load_weights(network, home / recipe.weights.file, sha256=recipe.weights.sha256)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    code = copy_code(_travelling(recipe, network), folder)
    write_json(folder / METADATA, configs.metadata(recipe))
    write_json(folder / "configs" / "inference.json", _inference(recipe, network))
    stock = configs.stock_inference(recipe)
    write_json(folder / _STOCK, stock)
    extra = {
        "metadata.json": json.dumps(configs.metadata(recipe, per_label=True)),
        "inference.json": json.dumps(stock),
    }
    scores = LabelScores(network, recipe.decode.table).eval()
    save_script(scores, folder / "models" / "model.ts", window=recipe.inference.window, extra=extra)
    _write_documents(recipe, home, folder)
    _write_manifest(recipe, home, folder, code)


@contextmanager
def _place(target: Path) -> Iterator[Path]:
    """A new folder that becomes the target, or its content, once it is done."""
    if target.suffix.lower() != ".zip":
        with whole_folder(target) as folder:
            yield folder
        return
    if target.exists():
        raise UsageError(f"output '{target.name}' is already there; choose another with -o")
    if not target.parent.is_dir():
        raise UsageError(f"output '{target.name}' needs an existing folder above it, found none; create it first")
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as place:
        folder = Path(place) / target.stem
        folder.mkdir()
        yield folder
        pack(folder, target)


def _travelling(recipe: SegmentationRecipe, network: nn.Module) -> list[type]:
    """The classes whose code the bundle carries."""
    own = not recipe.network.name.startswith(nets.MONAI_PREFIX)
    return [LoadVolumed, PrepareVolumed, LabelInferer, *([type(network)] if own else [])]


def _inference(recipe: SegmentationRecipe, network: nn.Module) -> dict[str, Any]:
    own = not recipe.network.name.startswith(nets.MONAI_PREFIX)
    target = target_of(type(network)) if own else recipe.network.name.removeprefix(nets.MONAI_PREFIX)
    inferer = {
        "_target_": target_of(LabelInferer),
        "window": list(recipe.inference.window),
        "overlap": recipe.inference.overlap,
        "table": [list(pair) for pair in recipe.decode.table],
        "multiple": int(getattr(network, "multiple", 1)),
        "whole_window": recipe.inference.whole_window,
        "body": _plain(body_of(recipe)),
    }
    return configs.inference(
        recipe,
        network={"_target_": target, **recipe.network.options},
        preparation={"_target_": target_of(PrepareVolumed), "keys": "image", **_plain(preparation_of(recipe))},
        inferer=inferer,
        loader=target_of(LoadVolumed),
    )


def _plain(content: dict[str, Any] | None) -> Any:
    """Tuples as lists, as they come back from a file."""
    return json.loads(json.dumps(content))


def _write_documents(recipe: SegmentationRecipe, home: Path, folder: Path) -> None:
    card = home / "CARD.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    documents = folder / "docs"
    documents.mkdir()
    (documents / "README.md").write_text(_readme(recipe, text), encoding="utf-8")
    (documents / "data_license.txt").write_text(_data_licence(recipe, text), encoding="utf-8")
    licence = distribution("medseg").read_text("licenses/LICENSE")
    if licence is None:
        raise MedsegError("export: the installed package must hold its LICENSE, it does not; reinstall it")
    (folder / "LICENSE").write_text(licence, encoding="utf-8")


def _readme(recipe: SegmentationRecipe, card: str) -> str:
    weights = "" if recipe.weights.trained else f"\n**{UNTRAINED}**\n"
    return f"""# {recipe.title}

{recipe.summary}

{recipe.intended_use} {RESEARCH_USE}
{weights}
## Run

    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE \\
        --dataset_dir IMAGES --output_dir LABELS

It needs MONAI with nibabel, scipy, pytorch-ignite and fire; medseg itself is not needed. The label maps are those of
`medseg infer -m {recipe.name}`, voxel by voxel, but images outside the scope of the model are not refused here.

`models/model.ts` with `configs/inference_stock.json` is for consumers that take TorchScript and stock transforms only:
windows of {" x ".join(str(n) for n in recipe.inference.window)} voxels, one channel per label. MONAI resamples in
another way, so those label maps are close to the others and not the same.

There is no `train.json`: training draws synthetic images with code that only medseg has, `medseg train {recipe.name}`.

{_without_title(card)}"""


def _without_title(card: str) -> str:
    return re.sub(r"\A\s*# .*\n", "", card)


def _data_licence(recipe: SegmentationRecipe, card: str) -> str:
    """What the card says of data, else where to ask."""
    sections = re.split(r"^## ", card, flags=re.MULTILINE)[1:]
    about = [section for section in sections if re.match(r".*\b(data|licen[cs]e)", section, flags=re.IGNORECASE)]
    told = "\n\n".join(section.strip() for section in about)
    return f"""Model: {recipe.name}, {recipe.licence}

{told or "The model's card names no training data; ask its authors before you redistribute it."}
"""


def _write_manifest(recipe: SegmentationRecipe, home: Path, folder: Path, code: list[str]) -> None:
    content = {
        "schema": SCHEMA,
        "notice": RESEARCH_USE,
        "medseg": __version__,
        "model": {
            "name": recipe.name,
            "licence": recipe.licence,
            "recipe_sha256": sha256_of(home / RECIPE_FILE),
            "weights_sha256": recipe.weights.sha256,
            "trained": recipe.weights.trained,
        },
        "code": code,
        "files": checksums(folder),
    }
    write_json(folder / MANIFEST, content)
