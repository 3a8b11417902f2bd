"""Prompts as a JSON file; masks lie beside it as volumes of their own."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from medseg.errors import InputRefused, UsageError
from medseg.io import read, write
from medseg.prompts import Box, Mask, Place, Point, Prompt, Prompts

FORMAT = "medseg-prompts-1"
_KEYS = {
    "point": ({"at"}, {"inside", "label"}),
    "box": ({"first", "last"}, {"axes", "label"}),
    "mask": ({"file"}, {"label"}),
}


def write_prompts(prompts: Prompts, path: Path) -> Path:
    """Write a JSON file, and beside it one volume for each mask.

    Args:
        prompts: What to write.
        path: The file, overwritten; masks become `NAME_mask1.nii.gz` and so on.
    """
    items: list[dict[str, Any]] = []
    masks = 0
    for item in prompts.items:
        if isinstance(item, Mask):
            masks += 1
            file = path.with_name(f"{path.stem}_mask{masks}.nii.gz")
            write(item.volume, file)
            items.append({"kind": "mask", "label": item.label, "file": file.name})
        else:
            items.append(_plain(item))
    names = {str(label): name for label, name in prompts.names.items()}
    content = {"format": FORMAT, "space": prompts.space, "names": names, "prompts": items}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_prompts(path: Path) -> Prompts:
    """Prompts from their file, everything in it checked.

    Raises:
        UsageError: There is no such file, or none of a mask.
        InputRefused: It says something wrong; the message names the prompt.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"prompts '{path.name}' are not there; check the path") from None
    except ValueError:
        raise InputRefused(f"prompts '{path.name}' must be JSON, they are not") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputRefused(f"prompts '{path.name}' must be a table that says format {FORMAT}, they do not")
    space, listed = content.get("space", "mm"), content.get("prompts")
    if space not in ("mm", "px") or not isinstance(listed, list) or not listed:
        raise InputRefused(f"prompts '{path.name}' must say space mm or px and list at least one prompt")
    items: list[Prompt] = []
    for number, entry in enumerate(listed, start=1):
        try:
            items.append(_read(entry, lambda file: read(path.parent / Path(file).name, kind="labels")))
        except (TypeError, ValueError, KeyError) as error:
            raise InputRefused(f"prompts '{path.name}': number {number}: {error}") from None
    return Prompts(items=tuple(items), names=_names(content.get("names", {}), path), space=space)


def _plain(item: Point | Box) -> dict[str, Any]:
    if isinstance(item, Point):
        return {"kind": "point", "label": item.label, "at": list(item.at), "inside": item.inside}
    axes = [list(axis) for axis in item.axes]
    return {"kind": "box", "label": item.label, "first": list(item.first), "last": list(item.last), "axes": axes}


def _read(entry: Any, load: Any) -> Prompt:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if kind not in _KEYS:
        raise ValueError(f"kind must be one of {', '.join(_KEYS)}, got {kind!r}")
    needed, allowed = _KEYS[kind]
    keys = entry.keys() - {"kind"}
    if not needed <= keys or keys - needed - allowed:
        raise ValueError(f"a {kind} needs {', '.join(sorted(needed))} and may have {', '.join(sorted(allowed))}")
    label = entry.get("label", 1)
    if not isinstance(label, int) or not 1 <= label <= 255:
        raise ValueError(f"label must be a whole number from 1 to 255, got {label!r}")
    if kind == "mask":
        return Mask(volume=load(str(entry["file"])), label=label)
    if kind == "point":
        inside = entry.get("inside", True)
        if not isinstance(inside, bool):
            raise ValueError(f"inside must be true or false, got {inside!r}")
        return Point(at=_place(entry["at"]), inside=inside, label=label)
    box = {"first": _place(entry["first"]), "last": _place(entry["last"]), "label": label}
    if "axes" in entry:
        x, y, z = (_place(axis) for axis in entry["axes"])
        box["axes"] = (x, y, z)
    return Box(**box)


def _place(values: Any) -> Place:
    numbers = values if isinstance(values, list) else []
    good = len(numbers) == 3 and all(isinstance(v, int | float) and isfinite(v) for v in numbers)
    if not good:
        raise ValueError(f"a place must be three numbers, got {values!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _names(names: Any, path: Path) -> dict[int, str]:
    try:
        return {int(label): str(name) for label, name in names.items()}
    except (AttributeError, ValueError):
        raise InputRefused(f"prompts '{path.name}': names must be a table from label to name") from None
