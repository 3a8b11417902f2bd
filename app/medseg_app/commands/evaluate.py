"""`medseg evaluate`: label maps or images against their references."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from medseg.errors import InputRefused, MedsegError, UsageError
from medseg_app.output import print_json, print_line, print_table, tell
from medseg_app.progress import ProgressView
from medseg_pipelines.evaluation import evaluate, evaluate_images
from medseg_pipelines.evaluation_cases import Pair, Pairing, WantedKind, find_pairs, load_pair
from medseg_pipelines.evaluation_report import save_report
from medseg_pipelines.evaluation_summary import (
    CaseResult,
    Estimate,
    Failure,
    Found,
    Measure,
    Summary,
    as_csv,
    as_json,
    counted,
    summarise,
)
from medseg_pipelines.events import Event
from medseg_pipelines.folders import check_target
from medseg_pipelines.picture_evaluation import evaluate_pictures, is_picture_pair
from medseg_pipelines.recipe import recipe_folder, recipe_names

_KINDS = ("auto", "labels", "image")
_SOME_FAILED = 4
_LISTED = 20  # unpaired cases that an error names


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; see the help texts of the command."""

    prediction: Path
    reference: Path | None
    mapping: str | None = None
    kind: str = "auto"
    time_point: int | None = None
    resample: bool = False
    allow_unpaired: bool = False
    tolerance: float = 1.0
    data_range: float | None = None
    resamples: int = 2000
    seed: int = 0
    out: Path | None = None
    overwrite: bool = False
    form: Literal["table", "json", "csv"] = "table"
    quiet: bool = False


def run(request: Request) -> int:
    """Compare, print, and save where wanted; returns the exit code.

    Raises:
        UsageError: The request cannot be met as a whole.
        InputRefused: The only case, or every case, cannot be compared.
    """
    _check(request)
    table = _read_map(request.mapping) if request.mapping else None
    pairing = find_pairs(request.prediction, request.reference)
    _require_paired(pairing, request)
    results, failures = _compare_all(pairing.pairs, request, table)
    summary = summarise(results, failures=failures, resamples=request.resamples, seed=request.seed)
    if request.out is not None:
        options = {"tolerance_mm": request.tolerance, "data_range": request.data_range, "resampled": request.resample}
        save_report(summary, pairing.pairs, request.out, options=options, overwrite=request.overwrite)
    _show(summary, request)
    return _SOME_FAILED if failures else 0


def _check(request: Request) -> None:
    """Find what is wrong with the request before anything is read."""
    if request.kind not in _KINDS:
        raise UsageError(f"--kind must be one of {', '.join(_KINDS)}, got '{request.kind}'")
    if not (math.isfinite(request.tolerance) and request.tolerance >= 0):
        raise UsageError(f"--tolerance must be finite and not negative in mm, got {request.tolerance}")
    span = request.data_range
    if span is not None and not (math.isfinite(span) and span > 0):
        raise UsageError(f"--data-range must be finite and positive, got {span}")
    if request.out is not None:
        check_target(request.out, overwrite=request.overwrite)


def _read_map(mapping: str) -> dict[str, Any]:
    """A map that ships with a model, by its name, or one of the user's own."""
    shipped = (recipe_folder(name) / "maps" / f"{mapping}.json" for name in recipe_names())
    path = next((path for path in shipped if path.is_file()), Path(mapping))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"map '{path.name}' is not there; check the path") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UsageError(f"map '{path.name}' must be one JSON object, it is not; see `medseg evaluate --help`")
    return content


def _require_paired(pairing: Pairing, request: Request) -> None:
    lonely = pairing.unpaired
    if not pairing.pairs:
        raise UsageError("no case is in both folders; cases pair by file name without ending, a table pairs others")
    if not lonely:
        return
    if not request.allow_unpaired:
        more = f" and {len(lonely) - _LISTED} more" if len(lonely) > _LISTED else ""
        raise UsageError(
            f"every case must be in both folders, {len(lonely)} are not: {', '.join(lonely[:_LISTED])}{more}; "
            "add what is missing, or leave them out with --allow-unpaired"
        )
    for name in lonely:
        tell(f"left out: {name}")


def _compare_all(
    pairs: tuple[Pair, ...], request: Request, table: dict[str, Any] | None
) -> tuple[list[CaseResult], list[Failure]]:
    results: list[CaseResult] = []
    failures: list[Failure] = []
    with ProgressView(quiet=request.quiet) as view:
        for number, pair in enumerate(pairs, start=1):
            view(Event(stage="comparing", done=number - 1, total=len(pairs), seconds_left=None))
            try:
                found = _compare(pair, request, table)
                if results and type(results[0].found) is not type(found):
                    raise InputRefused(
                        "cases must be all labels, all images or all pictures; --kind says what they are"
                    )
                results.append(CaseResult(case=pair.case, found=found))
            except MedsegError as error:
                if len(pairs) == 1 or isinstance(error, UsageError):  # a wrong map is wrong for every case
                    raise
                failures.append(Failure(case=pair.case, error=str(error)))
                view.pause()
                tell(f"error: case {number} of {len(pairs)}: {error}")
    if not results:
        raise InputRefused(f"none of {len(pairs)} cases could be compared; the lines above say why")
    return results, failures


def _compare(pair: Pair, request: Request, table: dict[str, Any] | None) -> Found:
    if is_picture_pair(pair.prediction, pair.reference):
        return evaluate_pictures(pair.prediction, pair.reference)
    kind = cast("WantedKind", request.kind)  # checked before
    loaded = load_pair(pair, kind=kind, time_point=request.time_point)
    ours, theirs = loaded.prediction, loaded.reference
    if ours.kind == "image":
        if table is not None:
            raise UsageError("--map is for label maps, got images; leave it out or say --kind labels")
        return evaluate_images(ours, theirs, data_range=request.data_range, resample=request.resample)
    return evaluate(
        ours,
        theirs,
        names=loaded.names,
        mapping=table,
        tolerance=request.tolerance,
        resample=request.resample,
    )


def _show(summary: Summary, request: Request) -> None:
    if request.form == "json":
        print_json(as_json(summary))
        return
    if request.form == "csv":
        print_line(as_csv(summary).rstrip("\n"))
        for note in summary.notes:
            tell(note)
        return
    if summary.kind != "labels":
        _print_images(summary)
    elif len(summary.results) == 1:
        _print_case(summary)
    else:
        _print_structures(summary)
    for note in summary.notes:
        print_line(note)
    if request.out is not None:
        print_line(f"figures   {request.out / 'evaluation.csv'}")
        print_line(f"picture   {request.out / 'evaluation.png'}")


def _print_case(summary: Summary) -> None:
    """One label map: every figure, and both volumes."""
    rows = []
    for row in summary.rows:
        figures = [_text(measure, row.estimates[measure.key]) for measure in summary.measures]
        rows.append((row.name, *figures, *(f"{row.estimates[key].mean:.2f}" for key in ("ml", "reference_ml"))))
    number = sum(counted(row) for row in summary.rows)
    rows.append((f"mean of {number}", *_overall(summary), "", ""))
    columns = ("structure", *_titles(summary.measures), "ml", "reference ml")
    print_table(columns, rows, numeric=columns[1:])


def _print_structures(summary: Summary) -> None:
    """Many label maps: means over cases with their intervals."""
    rows = [
        (row.name, str(counted(row)), *(_text(measure, row.estimates[measure.key]) for measure in summary.measures))
        for row in summary.rows
    ]
    rows.append(("mean of structures", str(len(summary.results)), *_overall(summary)))
    columns = ("structure", "cases", *_titles(summary.measures))
    print_table(columns, rows, numeric=columns[1:])


def _print_images(summary: Summary) -> None:
    estimates = summary.overall.estimates
    rows = []
    for measure, title in zip(summary.measures, _titles(summary.measures), strict=True):
        values = summary.overall.values[measure.key]
        ends = [measure.form.format(value) for value in (values.min(), values.max())]
        rows.append((title, str(len(values)), _text(measure, estimates[measure.key]), *ends))
    columns = ("measure", "cases", "mean", "lowest", "highest")
    print_table(columns, rows, numeric=columns[1:])


def _titles(measures: tuple[Measure, ...]) -> tuple[str, ...]:
    return tuple(f"{measure.title} {measure.unit}".rstrip() for measure in measures)


def _overall(summary: Summary) -> list[str]:
    estimates = summary.overall.estimates
    return [_text(measure, estimates[measure.key]) if measure.key in estimates else "" for measure in summary.measures]


def _text(measure: Measure, estimate: Estimate) -> str:
    """The mean with its interval, and how many cases are infinite; "-" where nothing is defined."""
    infinite = estimate.infinite
    if estimate.cases == 0:
        return "inf" if infinite == 1 else f"{infinite} inf" if infinite else "-"
    mean, low, high = (
        measure.form.format(measure.factor * value) for value in (estimate.mean, estimate.low, estimate.high)
    )
    interval = "" if math.isnan(estimate.low) else f" [{low}, {high}]"
    return f"{mean}{interval}" + (f" + {infinite} inf" if infinite else "")
