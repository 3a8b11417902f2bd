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
from medseg.errors import MedsegError, ModelMissing, UsageError
from medseg.weights import sha256_of
from medseg_pipelines import nets
from medseg_pipelines.bundle import configs
from medseg_pipelines.bundle.archive import MANIFEST, METADATA, checksums, pack, write_json
from medseg_pipelines.bundle.check import Report, check_folder, require_tools
from medseg_pipelines.bundle.kinds import Kind, kind_of
from medseg_pipelines.bundle.torchscript import close
from medseg_pipelines.bundle.vendor import copy_code
from medseg_pipelines.folders import whole_folder
from medseg_pipelines.load import no_weights
from medseg_pipelines.recipe import RECIPE_FILE, Recipe, load_recipe, recipe_folder, template_names
from medseg_pipelines.support_store import load_support_set
from medseg_pipelines.words import RESEARCH_USE

SCHEMA = "medseg-bundle-1"
_STOCK = "configs/inference_stock.json"
TRAINING = "configs/train.json"


def export_bundle(model: str | Path, target: Path, *, support: str | None = None, overwrite: bool = False) -> Report:
    """Write a bundle and check it; one that fails a check does not stay.

    Args:
        model: A name from `medseg models`, or a model folder.
        target: A new folder, or a new file that ends in .zip.
        support: Name of the support set that a model which segments by example will follow; no other takes one.
        overwrite: Replace a bundle that is at `target` already.

    Returns:
        What was checked.

    Raises:
        UsageError: There is no such model or support set, or something is at `target` already that must stay.
        ModelMissing: The weights are absent or altered.
        MedsegError: The bundle failed a check; the message names it, and nothing was replaced.
    """
    with _place(target, overwrite) as folder:
        build(model, folder, support=support)
        report = check_folder(folder, model=model)
        if not report.passed:
            failed = next(point for point in report.points if point.fault)
            raise MedsegError(f"bundle failed '{failed.name}', nothing was written: {failed.fault}")
    return report


def build(model: str | Path, folder: Path, *, support: str | None = None) -> None:
    """Fill an empty folder with the bundle of a model, unchecked.

    Raises:
        UsageError: There is no such model or support set, or it cannot be a bundle.
        ModelMissing: The weights are absent or altered.
        MedsegError: Its TorchScript form does not give what the network gives.
    """
    recipe, home = load_recipe(model), recipe_folder(model)
    if recipe.network.name == nets.TRUSTED:
        raise UsageError(f"model '{recipe.name}' runs the code of a bundle; export that bundle, not the model")
    kind = kind_of(recipe, support=None if support is None else load_support_set(support))
    if str(model) in template_names():
        raise ModelMissing(no_weights(str(model), "export RUN"))
    require_tools()
    network = kind.loaded(home)
    (folder / "models").mkdir()
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    training = kind.training()
    code = [*kind.code(), *([type(network)] if kind.own_network else []), *(training.code if training else [])]
    copied = copy_code(code, folder, leave_out=kind.left_out())
    write_json(folder / METADATA, configs.metadata(kind))
    write_json(folder / "configs" / "inference.json", configs.inference(kind, network))
    stock = configs.stock_inference(kind)
    if stock:
        write_json(folder / _STOCK, stock)
    if training:
        write_json(folder / TRAINING, configs.training(kind, network, training))
    _write_script(kind, network, stock or {}, folder)
    _write_documents(kind, home, folder)
    _write_manifest(recipe, home, folder, copied)


@contextmanager
def _place(target: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder that becomes the target, or its content, once it is done."""
    if target.suffix.lower() != ".zip":
        with whole_folder(target, overwrite=overwrite, mark=MANIFEST) as folder:
            yield folder
        return
    if target.exists() and not (overwrite and target.is_file()):
        raise UsageError(f"output '{target.name}' is already there; add --overwrite, or choose another with -o")
    if not target.parent.is_dir():
        raise UsageError(f"output '{target.name}' needs an existing folder above it, found none; create it first")
    with tempfile.TemporaryDirectory(prefix=f".{target.stem}.", dir=target.parent) as place:
        folder = Path(place) / target.stem
        folder.mkdir()
        yield folder
        pack(folder, target)


def _write_script(kind: Kind[Any], network: nn.Module, stock: configs.Part, folder: Path) -> None:
    recorded, sample = kind.recorded(network), kind.sample(1)
    with torch.inference_mode():
        if not close(recorded(sample), kind.served(network)(sample)):
            raise MedsegError("export: the recorded network must give what the network gives, it does not; report it")
    extra = {
        "metadata.json": json.dumps(configs.metadata(kind, script=True)),
        "inference.json": json.dumps(stock),
    }
    torch.jit.save(recorded, str(folder / "models" / "model.ts"), _extra_files=extra)


def _write_documents(kind: Kind[Any], home: Path, folder: Path) -> None:
    card = home / "CARD.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    documents = folder / "docs"
    documents.mkdir()
    (documents / "README.md").write_text(_readme(kind, text), encoding="utf-8")
    (documents / "data_license.txt").write_text(_data_licence(kind, text), encoding="utf-8")
    licence = distribution("medseg").read_text("licenses/LICENSE")
    if licence is None:
        raise MedsegError("export: the installed package must hold its LICENSE, it does not; reinstall it")
    (folder / "LICENSE").write_text(licence, encoding="utf-8")


def _readme(kind: Kind[Any], card: str) -> str:
    recipe, words = kind.recipe, kind.words()
    remarks = "".join(f"\n**{each}**\n" for each in kind.remarks())
    return f"""# {recipe.title}

{recipe.summary}

{recipe.intended_use} {RESEARCH_USE}
{remarks}
## Run

    python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE \\
        --dataset_dir IMAGES --output_dir RESULTS

It needs MONAI with {", ".join(kind.packages)} and fire; medseg itself is not needed. {words.result}.
Images outside the scope of the model are not refused here.

`models/model.ts`{" with `configs/inference_stock.json`" if kind.stock_steps() else ""} is for consumers that take
TorchScript and stock transforms only: {words.script}.

## Train further

{_training_words(kind)}

{_without_title(card)}"""


def _training_words(kind: Kind[Any]) -> str:
    training = kind.training()
    if training is None:
        return f"There is no `train.json`: {kind.words().no_training}."
    images, labels = training.folders
    options = ", ".join(f"`--{name}`" for name in training.options)
    return f"""    python -m monai.bundle run --config_file BUNDLE/configs/train.json --bundle_root BUNDLE \\
        --dataset_dir DATA --output_dir TUNED

DATA holds `{images}` and, with names that sort alike, `{labels}`: {training.content}.
Further options: {options}. Run the result with `--checkpoint TUNED/model.pt`. The first training of this model drew its
images with code that only medseg has (`medseg train {kind.recipe.name}`)."""


def _without_title(card: str) -> str:
    return re.sub(r"\A\s*# .*\n", "", card)


def _data_licence(kind: Kind[Any], card: str) -> str:
    """What the card says of data, else where to ask."""
    sections = re.split(r"^## ", card, flags=re.MULTILINE)[1:]
    about = [section for section in sections if re.match(r".*\b(data|licen[cs]e)", section, flags=re.IGNORECASE)]
    told = "\n\n".join(section.strip() for section in about)
    told = told or "The model's card names no training data; ask its authors before you redistribute it."
    parts = [f"Model: {kind.recipe.name}, {kind.recipe.licence}", told, kind.notice() or ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def _write_manifest(recipe: Recipe, home: Path, folder: Path, code: list[str]) -> None:
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
