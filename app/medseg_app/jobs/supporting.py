"""A support set made of cases of one visitor: images, and label maps that were brought or made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medseg import io
from medseg.errors import InputRefused
from medseg.io.pictures import is_picture
from medseg.volume import Volume
from medseg_app.jobs.correcting import label_file, labels_of
from medseg_app.jobs.opening import image_in
from medseg_pipelines.case import read_case
from medseg_pipelines.events import Event
from medseg_pipelines.folders import RESULT_MARK, whole_folder
from medseg_pipelines.results import write_json
from medseg_pipelines.support import create_support_set
from medseg_pipelines.support_sheet import contact_sheet
from medseg_pipelines.support_store import MARK, SupportSet, read_support_set
from medseg_pipelines.words import RESEARCH_USE

SHEET = "sheet.png"
_SET = "set"


def make_support_set(task: dict[str, Any], progress: Callable[[Event], object]) -> None:
    """Make a set; it lies in the result of the job and nowhere else, and goes with it.

    Raises:
        InputRefused: A case is not there any more or cannot be used.
        UsageError: The request cannot be met.
    """
    request, cases = task["request"], []
    for number, case in enumerate(request["cases"], start=1):
        progress(Event(stage="reading", done=number - 1, total=len(request["cases"]), seconds_left=None))
        cases.append(_case(case, task, number))
    images, labels, meanings = zip(*cases, strict=True)
    named = {int(number): name for number, name in request["names"].items()}  # JSON has no numbers for keys
    progress(Event(stage="writing", done=0, total=1, seconds_left=None))
    with whole_folder(task["folder"] / "result") as folder:
        made = create_support_set(
            request["name"],
            images,
            labels,
            names=named or _common(labels, meanings),
            modality=request["modality"],
            plane=request["plane"],
            folder=folder / _SET,
        )
        contact_sheet(made).save(folder / SHEET, optimize=True)
        card = made.card.model_dump(mode="json")
        write_json(folder / RESULT_MARK, {"notice": RESEARCH_USE, "card": card, "warnings": []})


def support_set_of(job: Path) -> SupportSet:
    """The set that a job made.

    Args:
        job: Its folder; what networks make of the set is kept there too.

    Raises:
        InputRefused: It was removed or damaged.
    """
    folder = job / "result" / _SET
    if not (folder / MARK).is_file():
        raise InputRefused("support set is not there any more; choose another, or make it again")
    return read_support_set(folder, cache=job / "cache")


def _case(case: dict[str, Any], task: dict[str, Any], number: int) -> tuple[Any, Any, dict[int, str]]:
    """Image, label map, and what its ids mean where a model made it."""
    uploads, jobs = task["upload"].parent, task["folder"].parent
    image = _found(uploads / case["upload"], task["folder"] / f"image{number}", number)
    meaning = {}
    if case.get("job"):
        result = jobs / case["job"] / "result"
        if not result.is_dir():
            raise InputRefused(f"case {number}: its label map is not there any more; choose another")
        label, meaning = label_file(result), {each.id: each.name for each in labels_of(result)}
    else:
        label = _found(uploads / case["labels"], task["folder"] / f"labels{number}", number)
    if is_picture(image):
        return image, label, meaning
    limit = task["memory_limit"]
    chosen = {key: case.get(key) for key in ("series", "time_point")}
    corrected = bool(case.get("correct_geometry"))
    volume = read_case(image, memory_limit=limit, correct_geometry=corrected, **chosen).volume
    return volume, io.read(label, kind="labels", memory_limit=limit), meaning


def _found(upload: Path, scratch: Path, number: int) -> Path:
    if not upload.is_dir():
        raise InputRefused(f"case {number}: its files are not there any more; bring them again")
    scratch.mkdir()
    return image_in(upload, scratch)


def _common(labels: tuple[Any, ...], meanings: tuple[dict[int, str], ...]) -> dict[int, str] | None:
    """The structures that every case has and that models have named; None where somebody else drew one of them."""
    if not all(meanings):
        return None
    there = [set(np.unique(each.voxels).tolist()) for each in labels if isinstance(each, Volume)]
    shared = set.intersection(*(set(each) for each in meanings), *there)
    return {number: meanings[0][number] for number in sorted(shared)} or None
