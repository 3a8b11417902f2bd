"""`medseg bundle import`: a foreign MONAI bundle as a model folder, without running any of its code."""

from __future__ import annotations

import colorsys
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from torch import nn

from medseg.errors import InputRefused, MedsegError, UsageError
from medseg.weights import load_weights, save_weights, sha256_of
from medseg_pipelines import nets
from medseg_pipelines.bundle.archive import METADATA, opened, read_json
from medseg_pipelines.bundle.checkpoint import read_state
from medseg_pipelines.bundle.reading import read_config
from medseg_pipelines.bundle.understanding import Understood, understand
from medseg_pipelines.case import hash_file
from medseg_pipelines.folders import whole_folder
from medseg_pipelines.recipe import RECIPE_FILE, SegmentationRecipe, imported_models, recipe_names
from medseg_pipelines.words import RESEARCH_USE

_WEIGHTS = "weights.safetensors"
_KEPT = ("LICENSE", "docs/data_license.txt")
_LONGEST = 400  # characters of a text that others wrote
_ANYTHING = {
    "anatomy": "body part the model was made for",
    "spacing": [0.01, 100.0],
    "field_of_view": [1.0, 1.0, 1.0],
    "field_of_view_limit": [5000.0, 5000.0, 5000.0],
}


@dataclass(frozen=True)
class Imported:
    """A bundle that is a model now.

    Attributes:
        name: By which every command knows it.
        folder: Where it was stored.
        notes: Where its results may differ from MONAI's own.
    """

    name: str
    folder: Path
    notes: tuple[str, ...]


def import_bundle(path: Path, *, name: str | None = None, trust_code: str | None = None) -> Imported:
    """Make a bundle usable as a model of ours.

    Args:
        path: A folder or a zip.
        name: For the model; by default what the bundle calls itself.
        trust_code: The sha256 of the bundle, by which the user takes responsibility for the code of its network: it
            will be run whenever the model is loaded. Transforms are never run, whoever trusts them.

    Raises:
        UsageError: There is nothing at `path`, the name is taken, or the sha256 is that of something else.
        InputRefused: It is no bundle, tries to harm, or something in it was not understood; the message lists all.
        ModelMissing: The weights do not fit the network.
    """
    with opened(path) as folder:
        digest = hash_file(path)[0] if path.is_file() else nets.folder_digest(folder)
        if trust_code is not None and trust_code.lower() != digest:
            raise UsageError(
                f"--trust-code must be the sha256 of this bundle, {digest}; read its code before you use it"
            )
        metadata = read_json(folder / METADATA)
        model = _model_name(name or str(metadata.get("name") or folder.name))
        target = imported_models() / model
        if target.exists():
            raise UsageError(f"model '{model}' is there already; choose another with --name, or delete its folder")
        found = _understood(folder, digest, trusted=trust_code is not None)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(target) as partial:
            _fill(partial, folder, metadata, found, model, trusted=trust_code is not None)
    return Imported(model, target, tuple(found.notes))


def _understood(folder: Path, digest: str, *, trusted: bool) -> Understood:
    config = read_config(folder)
    found = understand(config, trusted_network=trusted)
    if config.faults:
        own_code = any(fault.startswith("network_def") for fault in config.faults)
        advice = f"; to run its network's code, which you have read, add --trust-code {digest}" if own_code else ""
        raise InputRefused(f"bundle was not understood, nothing of it was run: {'; '.join(config.faults)}{advice}")
    return found


def _fill(
    partial: Path, bundle: Path, metadata: dict[str, Any], found: Understood, model: str, *, trusted: bool
) -> None:
    """SegmentationRecipe, weights, card and licences of the model."""
    if trusted:
        shutil.copytree(bundle, partial / nets.TRUSTED_FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
        options = {"sha256": nets.folder_digest(partial / nets.TRUSTED_FOLDER)}
        found.network = {"name": nets.TRUSTED, "options": options}
    weights = save_weights(read_state(bundle / "models"), partial / _WEIGHTS)
    network = _built(found.network, partial)
    load_weights(network, weights)
    content = _recipe(metadata, found, model)
    content["weights"] = {
        "file": _WEIGHTS,
        "sha256": sha256_of(weights),
        "trained": True,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
    }
    try:
        recipe = SegmentationRecipe.model_validate(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise InputRefused(f"bundle was not understood: {where}: {_text(fault['msg'], '')}") from None
    channels = recipe.network.options.get("out_channels", recipe.decode.outputs)
    if channels != recipe.decode.outputs:
        raise InputRefused(f"bundle was not understood: it tells of {recipe.decode.outputs} channels, gives {channels}")
    (partial / RECIPE_FILE).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    (partial / "CARD.md").write_text(_card(metadata, found), encoding="utf-8")
    for name in _KEPT:
        if (bundle / name).is_file():
            shutil.copyfile(bundle / name, partial / Path(name).name)


def _built(network: dict[str, Any], folder: Path) -> nn.Module:
    """The network with the options that the bundle gives, whatever they are."""
    try:
        return nets.build(network["name"], network["options"], folder=folder)
    except MedsegError:
        raise
    except Exception as error:  # options of others can be wrong in every way
        raise InputRefused(f"bundle: its network cannot be built: {_text(error, type(error).__name__)}") from None


def _recipe(metadata: dict[str, Any], found: Understood, model: str) -> dict[str, Any]:
    labels, table = _labels(metadata, found)
    image = _entry(metadata, "inputs", "image")
    told = f"{image.get('modality', '')} {image.get('format', '')}".upper()
    kinds = {"CT": "CT" in told or "HOUNSFIELD" in told, "MR": "MR" in told}
    modalities = [kind for kind, holds in kinds.items() if holds] or list(kinds)
    return {
        "name": model,
        "task": "segmentation",
        "title": _text(metadata.get("name"), model),
        "summary": _text(metadata.get("description") or metadata.get("task"), "An imported MONAI bundle."),
        "intended_use": _text(metadata.get("intended_use"), "Its authors state none. Not a medical device."),
        "licence": _text(metadata.get("copyright"), "not stated; see LICENSE in its folder"),
        "network": found.network,
        "labels": labels,
        "decode": {"table": table, "body": found.body},
        "preparation": found.preparation,
        "inference": {**found.inference, "bytes_per_voxel": 1000},  # not measured: rather too much than too little
        "scope": {"modalities": modalities, **_ANYTHING},
    }


def _labels(metadata: dict[str, Any], found: Understood) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """Labels and decoding: channel i of the network is label i, 0 is background."""
    output = _entry(metadata, "outputs", "pred")
    names = output.get("channel_def")
    names = names if isinstance(names, dict) else {}
    if found.table is None:
        channels = output.get("num_channels")
        if not isinstance(channels, int) or not 2 <= channels <= 1000:
            raise InputRefused(f"bundle must say how many channels (2 to 1000) its network gives, it says {channels}")
        table = [[channel, channel] for channel in range(channels)]
    else:
        table = found.table
    ids = sorted({entry for pair in table for entry in pair if entry})
    return [_label(number, _text(names.get(str(number)), f"class {number}")) for number in ids], table


def _label(number: int, name: str) -> dict[str, Any]:
    hue = (number * 0.618034) % 1.0  # neighbours far apart
    color = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.65, 0.9)]
    side = next((side for side in ("left", "right") if name.startswith(f"{side} ")), None)
    return {"id": number, "name": name, "color": color, "side": side}


def _entry(metadata: dict[str, Any], group: str, name: str) -> dict[str, Any]:
    form = metadata.get("network_data_format")
    entries = form.get(group) if isinstance(form, dict) else None
    entry = entries.get(name) if isinstance(entries, dict) else None
    if not isinstance(entry, dict):
        raise InputRefused(f"bundle metadata must describe {group}.{name} in network_data_format, it does not")
    return entry


def _model_name(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
    if not name:
        raise UsageError(f"model name must hold letters or digits, got {text[:60]!r}; choose one with --name")
    if name in recipe_names():
        raise UsageError(f"model '{name}' ships with this package; choose another name with --name")
    return name


def _text(value: Any, otherwise: str) -> str:
    """A line that others wrote, without what could move a terminal's cursor."""
    words = "".join(letter if letter.isprintable() else " " for letter in str(value or "")).split()
    return " ".join(words)[:_LONGEST] or otherwise


def _card(metadata: dict[str, Any], found: Understood) -> str:
    notes = "\n".join(f"- {note}" for note in found.notes) or "- none known"
    return f"""Imported from a MONAI bundle, version {_text(metadata.get("version"), "unknown")}.
{_text(metadata.get("description"), "")}

Authors: {_text(metadata.get("authors"), "not stated")}. Its scope is unknown here: no image is refused.

Differences from MONAI's own run:
{notes}

{RESEARCH_USE}
"""
