"""`medseg infer`: each input to one result folder."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medseg.errors import Cancelled, MedsegError, ModelMissing, UsageError
from medseg.io import read
from medseg.volume import Grid
from medseg_app.commands import pictures
from medseg_app.commands.answers import answer
from medseg_app.commands.prompts import PromptRequest
from medseg_app.output import duration_text, print_json, print_line, size_text, tell
from medseg_app.progress import ProgressView
from medseg_pipelines.case import Case, read_case
from medseg_pipelines.events import Event
from medseg_pipelines.folders import check_target
from medseg_pipelines.formats import SEG_ENCODINGS, parse_formats, require_for_task
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import load_recipe
from medseg_pipelines.regions import named_partitioner
from medseg_pipelines.scope import choose_model, judge, require_in_scope
from medseg_pipelines.support_store import find_support_set
from medseg_pipelines.words import RESEARCH_USE

if TYPE_CHECKING:
    from medseg_pipelines.pipeline import Pipeline
    from medseg_pipelines.recipe import Scope

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", ".img")
_SOME_FAILED = 4


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    inputs: tuple[Path, ...]
    model: str | None
    out: Path | None
    formats: str = "nifti"
    seg_encoding: str = "binary"
    device: str = "auto"
    engine: str = "auto"
    time_point: int | None = None
    frames: str | None = None
    series: str | None = None
    correct_geometry: bool = False
    memory_limit: int | None = None
    force_scope: bool = False
    noise: float | None = None
    regions: Path | None = None
    save_regions: bool = False
    support: str | None = None
    partition: str | None = None
    prompting: PromptRequest = field(default_factory=PromptRequest)
    enforce_consistency: bool = False
    overwrite: bool = False
    dry_run: bool = False
    json: bool = False
    quiet: bool = False
    verbose: bool = False


def run(request: Request) -> int:
    """Restore or segment every input; returns the exit code.

    Raises:
        UsageError: The request cannot be met as a whole; nothing was begun.
        ModelMissing: The model cannot be loaded.
        InputRefused: The only input cannot be used.
    """
    _check_inputs(request)
    models: dict[str, Any] = {}
    answers = []
    with ProgressView(quiet=request.quiet) as view:
        for number, path in enumerate(request.inputs, start=1):
            view.start_case(number, len(request.inputs))
            try:
                answers.append(_one(path, request, models, view))
            except (ModelMissing, Cancelled):
                raise
            except Exception as error:  # whatever befalls one case of a batch, the others are still wanted
                if len(request.inputs) == 1:
                    raise
                view.pause()
                answers.append(_failure(path, error))
                tell(f"error: input {number} of {len(request.inputs)}: {answers[-1]['error']}")
    if request.json:
        print_json({"notice": RESEARCH_USE, "cases": answers})
    elif not request.dry_run:
        print_line(RESEARCH_USE)
    return _SOME_FAILED if any("error" in answer for answer in answers) else 0


def target_of(path: Path, request: Request, model: str) -> Path:
    """The result folder of an input: beside it, or where the user wants it."""
    whole = path.name if path.is_dir() else path.stem  # the name of a DICOM folder may have dots
    stem = next((path.name.removesuffix(end) for end in _ENDINGS if path.name.lower().endswith(end)), whole)
    name = f"{stem}_{model}"
    if request.out is None:
        return path.parent / name
    return request.out if len(request.inputs) == 1 else request.out / name


def _check_inputs(request: Request) -> None:
    """Find what is wrong with the request before anything heavy is loaded."""
    formats = parse_formats(request.formats)
    request.prompting.check(request.model)
    if request.seg_encoding not in SEG_ENCODINGS:
        raise UsageError(f"encoding must be one of {', '.join(SEG_ENCODINGS)}, got '{request.seg_encoding}'")
    for path in (*request.inputs, *([request.regions] if request.regions else ())):
        if not path.exists():
            raise UsageError(f"input '{path.name}' is not there; check the path")
    if request.out is not None and request.out.name.lower().endswith(_ENDINGS):
        raise UsageError(f"output '{request.out.name}' must be a folder, got the name of a file; drop its ending")
    _check_support(request)
    if request.model is not None:
        name = load_recipe(request.model).name
        require_for_task(formats, load_recipe(request.model).task)
        targets = [target_of(path, request, name) for path in request.inputs]
        if len(set(targets)) != len(targets):
            raise UsageError("inputs must differ in name to go into one folder, some are equal; run them one by one")
        if len(request.inputs) == 1 and not request.dry_run:
            check_target(targets[0], overwrite=request.overwrite)


def _check_support(request: Request) -> None:
    """A support set is there where the model follows one, and nowhere else."""
    follows = request.model is not None and load_recipe(request.model).task == "support-segmentation"
    if request.support is not None and not follows:
        raise UsageError("--support is for models that follow examples: add -m support-set, or drop it")
    if request.support is not None:
        find_support_set(request.support)
    elif follows:
        raise UsageError(
            f"model {request.model} needs a support set: add --support NAME (`medseg support list` names them)"
        )


def _one(path: Path, request: Request, models: dict[str, Any], view: ProgressView) -> dict[str, Any]:
    """Read, choose, run and save one input; returns what is to be said of it."""
    view(Event(stage="reading", done=0, total=1, seconds_left=None))
    if pictures.wants_picture(path, request):
        return _picture(path, request, models, view)
    case = read_case(
        path,
        time_point=request.time_point,
        memory_limit=request.memory_limit,
        series=request.series,
        correct_geometry=request.correct_geometry,
    )
    name, reason = _model_for(case, request)
    formats = parse_formats(request.formats)
    if formats:
        require_for_task(formats, load_recipe(name).task)
        _require_dicom(case)
    model, target = _ready(path, name, reason, request, models=models, view=view)
    if request.dry_run:
        return _plan(model, case, target, reason, request)
    result = model(case, progress=view, **_run_options(request, case.volume.grid))
    view(Event(stage="writing", done=0, total=1, seconds_left=None))
    if len(request.inputs) > 1:
        target.parent.mkdir(exist_ok=True)
    result.save(target, overwrite=request.overwrite, also=_dicom_writer(result, formats, request))
    view.pause()
    said = answer(result, target, quiet=request.json, verbose=request.verbose)
    if formats:
        said["dicom"] = sorted(str(found) for found in (target / "dicom").rglob("*.dcm"))
        if not request.json:
            print_line(f"dicom     {target / 'dicom'}" if said["dicom"] else "dicom     nothing was found to write")
    return {"input": path.name, "reason": reason, **said}


def _picture(path: Path, request: Request, models: dict[str, Any], view: ProgressView) -> dict[str, Any]:
    """As `_one`, for a picture."""
    case, name, reason = pictures.picture_of(path, request)
    if parse_formats(request.formats):
        raise UsageError(f"--format writes DICOM of volumes, '{path.name}' is a picture; its labels are PNG, drop it")
    model, target = _ready(path, name, reason, request, models=models, view=view)
    if request.dry_run:
        return pictures.plan(model, case, target, reason, request)
    return pictures.run(model, case, target, reason, request, view)


def _ready(
    path: Path, name: str, reason: str, request: Request, *, models: dict[str, Any], view: ProgressView
) -> tuple[Any, Path]:
    """Say which model it is, and give it with the folder of the result, which is free where one is written."""
    view.pause()
    title = load_recipe(name).name
    if not request.quiet:
        tell(f"model {title}: {reason}")
    target = target_of(path, request, title)
    if not request.dry_run:
        _check_target(target, request)
    if name not in models:
        models[name] = _load(name, request)
    if request.dry_run:
        view.pause()
    return models[name], target


def _load(name: str, request: Request) -> Any:
    """The model, ready to run."""
    wanted = request.prompting
    model = load_model(name, device=request.device, engine=request.engine, weights=wanted.weights)
    if wanted.embeddings is not None:
        if model.recipe.task != "prompting":
            raise UsageError(f"model {model.recipe.name} follows no prompts: it has nothing to keep in --embeddings")
        model.keep_embeddings(wanted.embeddings)  # pyright: ignore[reportAttributeAccessIssue] # told by its task
    return model


def _require_dicom(case: Case) -> None:
    from medseg_pipelines.dicom_out.writing import check_source  # highdicom, only where DICOM is asked for

    check_source(case.volume)


def _dicom_writer(result: Any, formats: tuple[str, ...], request: Request) -> Callable[[Path], None] | None:
    """What adds the DICOM objects to the result folder, if any were asked for."""
    if not formats:
        return None
    from medseg_pipelines.dicom_out.writing import writer

    return writer(result, formats, encoding="labelmap" if request.seg_encoding == "labelmap" else "binary")


def _run_options(request: Request, grid: Grid) -> dict[str, Any]:
    """The fields of `RunOptions`."""
    regions = None if request.regions is None else read(request.regions, kind="labels")
    return {
        "force_scope": request.force_scope,
        "memory_limit": request.memory_limit,
        "noise": request.noise,
        "regions": regions,
        "keep_regions": request.save_regions,
        "enforce_consistency": request.enforce_consistency,
        "support": request.support,
        "partition": None if request.partition is None else named_partitioner(request.partition),
        "prompts": request.prompting.prompts(grid),
        "propagate": request.prompting.propagate,
        "consensus": request.prompting.consensus,
        "window": request.prompting.grey_window(),
    }


def _model_for(case: Case, request: Request) -> tuple[str, str]:
    """The model and why it is that one."""
    if request.model is None:
        choice = choose_model(case.volume)
        return choice.name, choice.reason
    recipe = load_recipe(request.model)
    scope = cast("Scope", recipe.scope)  # models of pictures do not come here
    warnings = require_in_scope(judge(case.volume, scope), recipe.name, force=request.force_scope)
    for warning in warnings if request.dry_run else ():  # a run has them in its result
        tell(f"warning: {warning}")
    return request.model, "named by the user"


def _check_target(target: Path, request: Request) -> None:
    """Several results share the folder of `-o`, which need not be there yet."""
    if len(request.inputs) == 1 or target.parent.is_dir():
        check_target(target, overwrite=request.overwrite)
    else:
        check_target(target.parent, overwrite=False)


def _failure(path: Path, error: Exception) -> dict[str, Any]:
    known = isinstance(error, MedsegError)
    text = str(error) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
    return {"input": path.name, "error": text, "exit_code": error.exit_code if known else MedsegError.exit_code}


def _plan(model: "Pipeline", case: Case, target: Path, reason: str, request: Request) -> dict[str, Any]:
    plan = model.plan(case)
    answer = {
        "input": case.record.name,
        "model": model.recipe.name,
        "reason": reason,
        "output": str(target),
        "grid": list(plan.grid),
        "spacing_mm": [round(step, 4) for step in plan.spacing],
        "tiles": plan.tiles,
        "peak_memory_bytes": plan.peak_bytes,
        "expected_seconds": plan.seconds,
        "device": str(model.device),
        "engine": model.engine,
    }
    if not request.json:
        grid = " x ".join(str(n) for n in plan.grid)
        spacing = " x ".join(f"{step:g}" for step in plan.spacing)
        print_line(f"would run on {case.record.name} with {model.recipe.name}")
        print_line(f"  grid      {grid} voxels of {spacing} mm")
        print_line(f"  tiles     {plan.tiles}")
        print_line(f"  memory    {size_text(plan.peak_bytes)} at most")
        print_line(f"  time      about {duration_text(plan.seconds)} on {model.device} with {model.engine}")
        print_line(f"  output    {target}")
    return answer
