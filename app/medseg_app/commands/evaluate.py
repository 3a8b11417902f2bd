"""`medseg evaluate`: a label map against a reference."""

import json
import math
from pathlib import Path
from typing import Any

from medseg import io
from medseg.errors import UsageError
from medseg_app.output import print_json, print_line, print_table, tell
from medseg_pipelines.evaluation import Evaluation, Name, as_csv, as_json, evaluate
from medseg_pipelines.recipe import recipe_folder, recipe_names
from medseg_pipelines.results import LABELS_JSON


def run(prediction: Path, reference: Path, *, mapping: str | None, resample: bool, form: str) -> int:
    """Compare and print; returns the exit code.

    Args:
        prediction: A label map, or a result folder of `medseg infer`.
        reference: Another one.
        mapping: A JSON file that says what the reference's ids mean, or the name of one that ships with a model.
        resample: Bring the reference to the grid of the prediction.
        form: "table", "json" or "csv".
    """
    path, names = _labelled(prediction)
    table = _read_object(_map_path(mapping), "map") if mapping else None
    ours, theirs = io.read(path, kind="labels"), io.read(_labelled(reference)[0], kind="labels")
    found = evaluate(ours, theirs, names=names, mapping=table, resample=resample)
    if form == "json":
        print_json(as_json(found))
    elif form == "csv":
        print_line(as_csv(found).rstrip("\n"))
        for note in found.notes:
            tell(note)
    else:
        _print(found)
    return 0


def _map_path(mapping: str) -> Path:
    shipped = (recipe_folder(name) / "maps" / f"{mapping}.json" for name in recipe_names())
    return next((path for path in shipped if path.is_file()), Path(mapping))


def _labelled(path: Path) -> tuple[Path, list[Name]]:
    """The label map and its names, where a sidecar gives them."""
    sidecar = (path if path.is_dir() else path.parent) / LABELS_JSON
    if not sidecar.is_file():
        if path.is_dir():
            raise UsageError(f"folder '{path.name}' must hold {LABELS_JSON}, found none; give the label map itself")
        return path, []
    content = _read_object(sidecar, "sidecar")
    try:
        names = [_name(entry) for entry in content["labels"]]
        file = path / content["file"] if path.is_dir() else path
    except (KeyError, TypeError):
        raise UsageError(f"sidecar '{sidecar.name}' must name file and labels, it does not; segment again") from None
    return file, names if file.name == content["file"] else []


def _name(entry: dict[str, Any]) -> Name:
    side = entry.get("side")
    structure = entry["name"].removeprefix(f"{side} ") if side else entry["name"]
    return Name(id=entry["id"], name=entry["name"], structure=structure)


def _read_object(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{what} '{path.name}' is not there; check the path") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UsageError(f"{what} '{path.name}' must be one JSON object, it is not; see `medseg evaluate --help`")
    return content


def _print(found: Evaluation) -> None:
    rows = [
        (s.name, _number(s.dice, "{:.3f}"), _number(s.hd95_mm, "{:.2f}"), f"{s.ml:.2f}", f"{s.reference_ml:.2f}",
         _number(100 * s.volume_error, "{:+.1f}"))
        for s in found.scores
    ]  # fmt: skip
    mean = f"mean of {found.counted}"
    rows.append((mean, _number(found.mean_dice, "{:.3f}"), _number(found.mean_hd95_mm, "{:.2f}"), "", "", ""))
    columns = ("structure", "Dice", "HD95 mm", "ml", "reference ml", "error %")
    print_table(columns, rows, numeric=columns[1:])
    for note in found.notes:
        print_line(note)


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else form.format(value)
