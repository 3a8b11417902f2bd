"""One run of a model on an upload: the result folder of `medseg infer`, and copies of it to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medseg.errors import UsageError
from medseg.io.prompts import FORMAT, read_prompts
from medseg_app.jobs.offered import BY_EXAMPLE, PROMPTING, runs_on_picture
from medseg_app.jobs.opening import image_in
from medseg_app.jobs.supporting import support_set_of
from medseg_app.jobs.views import extras
from medseg_pipelines.case import read_case
from medseg_pipelines.events import Event
from medseg_pipelines.formats import parse_formats, require_for_task
from medseg_pipelines.load import load_model
from medseg_pipelines.picture_case import read_picture_case
from medseg_pipelines.recipe import Recipe, load_recipe

_loaded: dict[tuple[str, str], Any] = {}  # the last model; loading one costs as much as many a run


def run(task: dict[str, Any], progress: Callable[[Event], object]) -> None:
    """Run the requested model and write its result folder.

    Raises:
        InputRefused: The image cannot be used, or is not what the model was made for.
        UsageError: The request cannot be met.
        ModelMissing: The weights are absent or altered.
    """
    request = task["request"]
    progress(Event(stage="reading", done=0, total=1, seconds_left=None))
    recipe = load_recipe(request["model"])
    image = image_in(task["upload"], task["folder"])
    options = _options(task, recipe)
    if runs_on_picture(recipe, image):
        case = read_picture_case(image, memory_limit=task["memory_limit"])
        result = _model(request)(case, progress=progress, **options)
        progress(Event(stage="writing", done=0, total=1, seconds_left=None))
        result.save(task["folder"] / "result")
        return
    formats = parse_formats(",".join(request.get("formats", [])))
    require_for_task(formats, recipe.task)
    case = read_case(
        image,
        time_point=request.get("time_point"),
        memory_limit=task["memory_limit"],
        series=request.get("series"),
        correct_geometry=request.get("correct_geometry", False),
    )
    result = _model(request)(case, progress=progress, **options)
    progress(Event(stage="writing", done=0, total=1, seconds_left=None))
    result.save(task["folder"] / "result", also=extras(result, formats))


def _options(task: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """What the model is asked beside the image: prompts, examples, the noise level."""
    request, folder = task["request"], task["folder"]
    options: dict[str, Any] = {"force_scope": request.get("confirmed", False), "memory_limit": task["memory_limit"]}
    if recipe.task == "restoration":
        options |= {"keep_regions": True, "noise": request.get("noise")}
    if recipe.task == PROMPTING and request.get("prompts"):
        file = folder / "prompts.json"
        file.write_text(json.dumps({"format": FORMAT, **request["prompts"]}), encoding="utf-8")
        options |= {"prompts": read_prompts(file), "propagate": request.get("propagate", True)}
    if recipe.task == BY_EXAMPLE and request.get("support"):
        options |= {"support": support_set_of(folder.parent / request["support"]), "keep_doubt": True}
    return options


def _model(request: dict[str, Any]) -> Any:
    """The model, loaded once for all runs in a row that want it."""
    key = (request["model"], request.get("device", "auto"))
    if Path(request["model"]).is_absolute() or "/" in request["model"]:
        raise UsageError("model must be a name from the list, got a path; choose one of the list")
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_model(key[0], device=key[1])
    return _loaded[key]
