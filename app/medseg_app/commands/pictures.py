"""Pictures in `medseg infer` and `medseg info`: what differs from volumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import InputRefused, UsageError
from medseg.io.pictures import ENDINGS, is_picture, read_picture
from medseg_app.output import duration_text, print_json, print_line, print_table, size_text, tell
from medseg_pipelines.events import Event
from medseg_pipelines.load import PRETRAINED
from medseg_pipelines.picture_case import PictureCase, choose_picture_model, judge_picture, read_picture_case
from medseg_pipelines.picture_frames import FramesCase, read_frames_case
from medseg_pipelines.recipe import (
    PictureRecipe,
    PictureRestorationRecipe,
    PretrainingRecipe,
    PromptRecipe,
    SupportRecipe,
    load_recipe,
)
from medseg_pipelines.scope import require_in_scope
from medseg_pipelines.words import RESTORED

if TYPE_CHECKING:
    from medseg_app.commands.infer import Request
    from medseg_app.progress import ProgressView
    from medseg_pipelines.picture_frames_results import FramesResult
    from medseg_pipelines.picture_restoration import PictureRestoration
    from medseg_pipelines.picture_restored import RestoredPicture
    from medseg_pipelines.picture_results import PictureResult
    from medseg_pipelines.picture_segmentation import PictureSegmentation

    PictureModel = PictureRestoration | PictureSegmentation

_RECIPES = (PictureRecipe, PictureRestorationRecipe)


def wants_picture(path: Path, request: Request) -> bool:
    """Whether an input is to be read as a picture: because it is one, or because the named model takes nothing else.

    Raises:
        InputRefused: The file is a picture and the model takes volumes.
        UsageError: Frames are wanted of what is no picture, or the named model takes no image at all.
    """
    wanted = _is_for_pictures(path, request.model)
    if request.frames is not None and not wanted:
        raise UsageError(f"--frames is for pictures, '{path.name}' is none; drop it, or take --time-point")
    return wanted


def _is_for_pictures(path: Path, model: str | None) -> bool:
    if model is None:
        return is_picture(path)
    recipe = load_recipe(model)
    if isinstance(recipe, PretrainingRecipe):
        raise UsageError(f"model '{recipe.name}' {PRETRAINED}")
    if isinstance(recipe, _RECIPES):
        return True
    if isinstance(recipe, PromptRecipe | SupportRecipe):
        return is_picture(path)
    if path.suffix.lower() in ENDINGS and path.is_file():
        raise InputRefused(f"{path.name}: model '{model}' takes volumes, got a picture; choose another with -m")
    return False


def picture_of(path: Path, request: Request) -> tuple[PictureCase | FramesCase, str, str]:
    """The case, the model, and why it is that one; of several frames the first of those wanted speaks for all."""
    case = (
        read_picture_case(path, memory_limit=request.memory_limit)
        if request.frames is None
        else read_frames_case(path, request.frames)
    )
    shown = (case.first() if isinstance(case, FramesCase) else case).picture
    if request.model is None:
        choice = choose_picture_model(shown)
        return case, choice.name, choice.reason
    recipe = load_recipe(request.model)
    if request.frames is not None and not isinstance(recipe, _RECIPES):
        raise UsageError(f"model {recipe.name} runs on one picture at a time: drop --frames, or choose another model")
    if isinstance(recipe, _RECIPES):
        findings = judge_picture(shown, recipe.scope)
        warnings = require_in_scope(findings, recipe.name, force=request.force_scope)
        for warning in warnings if request.dry_run else ():  # a run has them in its result
            tell(f"warning: {warning}")
    return case, request.model, "named by the user"


def run(
    model: PictureModel,
    case: PictureCase | FramesCase,
    target: Path,
    reason: str,
    request: Request,
    view: ProgressView,
) -> dict[str, Any]:
    """Run and save one picture, or the frames of a file; returns what is to be said of it."""
    options = _options(request)
    if isinstance(case, FramesCase):
        result = model.frames(case, progress=view, **options)
    else:
        result = model(case, progress=view, **options)
    view(Event(stage="writing", done=0, total=1, seconds_left=None))
    if len(request.inputs) > 1:
        target.parent.mkdir(exist_ok=True)
    result.save(target, overwrite=request.overwrite)
    view.pause()
    if request.verbose:
        for stage, seconds in result.manifest["seconds"].items():
            tell(f"{stage}: {duration_text(seconds)}")
        tell(f"peak memory: {size_text(result.manifest['peak_memory_bytes'])}")
    return {"input": case.record.name, "reason": reason, **_answer(result, target, quiet=request.json)}


def _options(request: Request) -> dict[str, Any]:
    """The fields of `RunOptions`."""
    if request.partition is not None:
        raise UsageError("--partition is for models that restore volumes; drop it")
    prompting = request.prompting
    return {
        "force_scope": request.force_scope,
        "memory_limit": request.memory_limit,
        "prompts": prompting.prompts(None),
        "propagate": prompting.propagate,
        "consensus": prompting.consensus,
        "window": prompting.grey_window(),
        "noise": request.noise,
        "keep_regions": request.save_regions,
        "support": request.support,
    }


def plan(
    model: PictureModel, case: PictureCase | FramesCase, target: Path, reason: str, request: Request
) -> dict[str, Any]:
    """What a run would take."""
    found = model.plan(case.first() if isinstance(case, FramesCase) else case)
    if isinstance(case, FramesCase):
        found = replace(found, tiles=found.tiles * len(case.chosen), seconds=found.seconds * len(case.chosen))
    if not request.json:
        print_line(f"would run on {case.record.name} with {model.recipe.name}")
        print_line(f"  size      {found.grid[0]} x {found.grid[1]} pixels as the network sees it")
        print_line(f"  tiles     {found.tiles}")
        print_line(f"  memory    {size_text(found.peak_bytes)} at most")
        print_line(f"  time      about {duration_text(found.seconds)} on {model.device} with {model.engine}")
        print_line(f"  output    {target}")
    return {
        "input": case.record.name,
        "model": model.recipe.name,
        "reason": reason,
        "output": str(target),
        "grid": list(found.grid[:2]),
        "tiles": found.tiles,
        "peak_memory_bytes": found.peak_bytes,
        "expected_seconds": found.seconds,
        "device": str(model.device),
        "engine": model.engine,
    }


def _answer(result: PictureResult | RestoredPicture | FramesResult, target: Path, *, quiet: bool) -> dict[str, Any]:
    """Print a saved result, and give it as plain data."""
    from medseg_pipelines.picture_frames_results import FramesResult  # torch is loaded by now
    from medseg_pipelines.picture_results import PictureResult

    if not quiet:
        for warning in result.warnings:
            tell(f"warning: {warning}")
    said = {"model": result.recipe.name, "output": str(target), "warnings": list(result.warnings)}
    if isinstance(result, FramesResult):
        return {**said, **_frames(result, target, quiet=quiet)}
    if isinstance(result, PictureResult):
        return {**said, **_segmented(result, target, quiet=quiet)}
    if not quiet:
        print_line(f"restored  {target / result.main_file}")
        print_line(f"residual  {target / 'residual.png'}")
        print_line(f"picture   {target / 'preview.png'}")
        print_line(RESTORED)
    return {**said, "restored": str(target / result.main_file), "quality": result.statistics()}


def _frames(result: FramesResult, target: Path, *, quiet: bool) -> dict[str, Any]:
    count, table = result.manifest["output"]["frames"], target / result.table
    if not quiet:
        print_line(f"frames    {count}")
        print_line(f"pages     {target / result.main_file}")
        print_line(f"figures   {table}")
        print_line(f"picture   {target / 'preview.png'}")
    return {"frames": count, "pages": str(target / result.main_file), "table": str(table)}


def _segmented(result: PictureResult, target: Path, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        rows = [(figure.label, figure.name, figure.number, figure.unit) for figure in result.figures]
        print_table(("label", "figure", "value", ""), rows, numeric=("value",))
        print_line(f"labels    {target / result.main_file}")
        print_line(f"overlay   {target / 'overlay.png'}")
        print_line(f"picture   {target / 'preview.png'}")
        print_line(f"figures   {target / 'statistics.csv'}")
    return {
        "labels": str(target / result.main_file),
        "figures": [{"label": f.label, "name": f.name, "value": f.value, "unit": f.unit} for f in result.figures],
    }


def describe(path: Path, *, json: bool) -> int:
    """Print what a picture is; returns the exit code, that of a refusal where `medseg infer` would refuse the file."""
    try:
        picture = read_picture(path)
    except InputRefused as refusal:
        if json:
            print_json({"name": path.name, "kind": "picture", "readable": False, "problem": str(refusal)})
        else:
            print_line(path.name)
            print_line(f"  error        {refusal}")
        return InputRefused.exit_code
    model, why = _model(picture)
    height, width = picture.size
    source, spacing = picture.source, picture.spacing
    content = {
        "name": path.name,
        "kind": "picture",
        "readable": True,
        "format": source.format if source else None,
        "values": source.mode if source else None,
        "width": width,
        "height": height,
        "turned": bool(source and source.turned),
        "spacing_mm": None if spacing is None else list(spacing),
        "model": model,
        "notes": list(picture.notes),
    }
    if json:
        print_json(content)
        return 0
    print_line(path.name)
    rows = {
        "format": f"{content['format']}, {content['values']}",
        "size": f"{width} x {height} pixels" + ", turned as the file says" * content["turned"],
        "spacing": "not stated" if spacing is None else f"{spacing[1]:.4g} x {spacing[0]:.4g} mm",
        "model": why,
    }
    for key, value in rows.items():
        print_line(f"  {key:<12} {value}")
    for note in picture.notes:
        print_line(f"  {'note':<12} {note}")
    return 0


def _model(picture: Any) -> tuple[str | None, str]:
    try:
        choice = choose_picture_model(picture)
    except InputRefused as refusal:
        return None, f"none: {refusal}"
    return choice.name, f"{choice.name}: {choice.reason}"
