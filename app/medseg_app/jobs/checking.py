"""The first look at an upload: what it is, what is wrong with it, which models it is for, and a copy to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseg import io
from medseg.errors import InputRefused
from medseg.io.pictures import is_picture
from medseg.volume import Volume
from medseg_app.jobs import thumbnails
from medseg_app.jobs.offered import offered_names, takes
from medseg_app.jobs.opening import image_in
from medseg_app.jobs.views import VIEWS, write_view
from medseg_pipelines.case import read_case
from medseg_pipelines.events import Event
from medseg_pipelines.folders import RESULT_MARK, whole_folder
from medseg_pipelines.picture_case import judge_picture, read_picture_case
from medseg_pipelines.recipe import PromptRecipe, Recipe, Scope, load_recipe
from medseg_pipelines.results import write_json
from medseg_pipelines.scope import Finding, judge
from medseg_pipelines.sections import PictureScope
from medseg_pipelines.support import usual_plane

_HOUNSFIELD = -500.0  # air; MR has no such values
_THUMBNAIL = f"{VIEWS}/thumbnail.png"


def check(task: dict[str, Any], progress: Callable[[Event], object]) -> None:
    """Look at an upload and write what was found as the result of the job.

    Raises:
        InputRefused: The image cannot be used.
    """
    progress(Event(stage="reading", done=0, total=1, seconds_left=None))
    options = task["request"]
    with whole_folder(task["folder"] / "result") as folder:
        (folder / VIEWS).mkdir()
        image = image_in(task["upload"], task["folder"])
        found = _check(image, folder, options, task["memory_limit"])
        write_json(folder / RESULT_MARK, found)


def _check(image: Path, folder: Path, options: dict[str, Any], memory_limit: int) -> dict[str, Any]:
    if is_picture(image):
        return _picture(image, folder, memory_limit)
    wanted = {"series": options.get("series"), "correct_geometry": options.get("correct_geometry", False)}
    found = io.inspect(image, memory_limit=memory_limit, **wanted)
    choices = [series for series in found.series if series.kind == "image" and series.shape]
    listed = _listed(choices, folder / VIEWS)
    if not found.readable and len(choices) > 1 and wanted["series"] is None:
        return {"kind": "series", "series": listed, "findings": []}
    case = read_case(image, memory_limit=memory_limit, time_point=options.get("time_point"), **wanted)
    volume = case.volume
    step = write_view(volume, folder / "view.nii")
    thumbnails.of_volume(volume, folder / _THUMBNAIL)
    texts = [{"grade": problem.severity, "text": problem.text} for problem in found.problems]
    texts += [{"grade": "note", "text": note} for note in volume.notes if note not in {t["text"] for t in texts}]
    if step > 1:
        texts.append({"grade": "note", "text": f"shown with every {step}. voxel; models and files use all of them"})
    modality = next((s.modality for s in found.series if s.uid == case.record.series), None) or _modality(volume)
    return {
        "kind": "volume",
        "facts": {
            "format": found.format,
            "shape": list(volume.shape),
            "spacing_mm": [round(length, 4) for length in volume.spacing],
            "covers_mm": [round(n * s) for n, s in zip(volume.shape, volume.spacing, strict=True)],
            "orientation": volume.orientation,
            "plane": usual_plane(volume),
            "modality": modality,
        },
        "thumbnail": _THUMBNAIL,
        "series": listed,
        "dicom": found.format == "DICOM",
        "findings": texts,
        "models": _models(lambda scope: judge(volume, scope), picture=False),
    }


def _picture(image: Path, folder: Path, memory_limit: int) -> dict[str, Any]:
    from PIL import Image

    case = read_picture_case(image, memory_limit=memory_limit)
    Image.fromarray(case.picture.eight_bit()).save(folder / "view.png")
    thumbnails.of_picture(case.picture, folder / _THUMBNAIL)
    height, width = case.picture.size
    return {
        "kind": "picture",
        "facts": {"format": case.picture.source and case.picture.source.format, "shape": [width, height]},
        "thumbnail": _THUMBNAIL,
        "series": [],
        "dicom": False,
        "findings": [{"grade": "note", "text": note} for note in case.picture.notes],
        "models": _models(lambda scope: judge_picture(case.picture, scope), picture=True),
    }


def _listed(choices: Sequence[io.SeriesSummary], folder: Path) -> list[dict[str, Any]]:
    """What the list of series shows of each; with thumbnails where there is more than one to choose from."""
    names = thumbnails.of_series(choices, folder) if len(choices) > 1 else {}
    kept = ("number", "modality", "files", "images", "shape", "spacing", "orientation", "time_points")
    return [
        {
            **{name: getattr(series, name) for name in kept},
            "problems": [asdict(problem) for problem in series.problems],
            "thumbnail": f"{VIEWS}/{names[series.number]}" if series.number in names else None,
        }
        for series in choices
    ]


def _modality(volume: Volume) -> str:
    """A guess that only chooses the window presets."""
    return "CT" if float(volume.voxels[::4, ::4, ::4].min()) < _HOUNSFIELD else "MR"


def _models(verdict: Callable[[Any], Sequence[Finding]], *, picture: bool) -> list[dict[str, Any]]:
    """Every model, those that fit first; each with what speaks against it."""
    cards = []
    for recipe in map(load_recipe, offered_names()):
        fits, reasons = "no", [f"made for {'volumes' if picture else 'pictures'}"]
        if takes(recipe, picture=picture):
            judged = isinstance(recipe.scope, PictureScope) == picture  # the others take pictures of any kind
            findings = _judged(verdict, recipe.scope) if judged else ()
            reasons = [finding.text for finding in findings]
            fits = min((finding.grade for finding in findings), key=("outside", "doubtful").index, default="yes")
        cards.append({**_card(recipe), "fits": fits, "reasons": reasons})
    return sorted(cards, key=lambda card: ("yes", "doubtful", "outside", "no").index(card["fits"]))


def _judged(verdict: Callable[[Any], Sequence[Finding]], scope: Scope | PictureScope) -> Sequence[Finding]:
    try:
        return verdict(scope)
    except InputRefused as refusal:
        return (Finding("outside", str(refusal)),)


def _card(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "title": recipe.title,
        "task": recipe.task,
        "summary": recipe.summary,
        "intended_use": recipe.intended_use,
        "modalities": list(recipe.scope.modalities),
        "anatomy": recipe.scope.anatomy,
        "licence": recipe.licence,
        "trained": recipe.weights.trained,
        "accepts": list(recipe.prompting.accepts) if isinstance(recipe, PromptRecipe) else [],
    }
