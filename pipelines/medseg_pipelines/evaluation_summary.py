"""Many evaluated cases: means with bootstrap intervals, as JSON data and as CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg_pipelines.evaluation import Evaluation, ImageEvaluation
from medseg_pipelines.picture_evaluation import PictureEvaluation

CONFIDENCE = 0.95
DEFAULT_RESAMPLES = 2000

_FEW_CASES = 10
_IMAGE_ROW = "image"  # an image and a mask on a picture have one row, a label map one per structure


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of the evaluation: its key in files, and how it is shown."""

    key: str
    title: str
    unit: str = ""
    form: str = "{:.3f}"
    factor: float = 1.0  # from the value in files to the value shown
    best: float | None = None  # the value of perfect agreement, as shown


LABEL_MEASURES = (
    Measure(key="dice", title="Dice", best=1.0),
    Measure(key="nsd", title="NSD", best=1.0),
    Measure(key="hd95_mm", title="HD95", unit="mm", form="{:.2f}", best=0.0),
    Measure(key="asd_mm", title="ASD", unit="mm", form="{:.2f}", best=0.0),
    Measure(key="volume_error", title="Volume error", unit="%", form="{:+.1f}", factor=100.0, best=0.0),
)
IMAGE_MEASURES = (
    Measure(key="psnr_db", title="PSNR", unit="dB", form="{:.2f}"),
    Measure(key="ssim", title="SSIM", form="{:.4f}", best=1.0),
    Measure(key="nrmse", title="NRMSE", form="{:.4f}", best=0.0),
    Measure(key="edges", title="Edges", form="{:.3f}", best=1.0),
    Measure(key="flat_bias", title="Bias in flat tissue", unit="%", form="{:+.2f}", factor=100.0, best=0.0),
)
PICTURE_MEASURES = (
    Measure(key="f1", title="F1 (Dice)", best=1.0),
    Measure(key="sensitivity", title="Sensitivity", best=1.0),
    Measure(key="specificity", title="Specificity", best=1.0),
    Measure(key="mcc", title="MCC", best=1.0),
    Measure(key="auc", title="AUC", best=1.0),
    Measure(key="cldice", title="clDice", best=1.0),
)
_MEASURES = {"labels": LABEL_MEASURES, "image": IMAGE_MEASURES, "picture": PICTURE_MEASURES}
_KINDS = {Evaluation: "labels", ImageEvaluation: "image", PictureEvaluation: "picture"}

Found = Evaluation | ImageEvaluation | PictureEvaluation


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """An evaluated case."""

    case: str
    found: Found


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A case that could not be compared, and why."""

    case: str
    error: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over the cases with a finite value, and its interval; nan for what there is none of."""

    mean: float
    low: float
    high: float
    cases: int
    infinite: int  # cases left out of the mean, since their value is infinite


@dataclass(frozen=True, kw_only=True)
class Row:
    """One structure, or the image as a whole, over all cases.

    Attributes:
        name: Of the structure.
        values: Per measure, one value per case in the order of the cases; nan where it is not defined.
        estimates: Per measure, its mean and interval.
    """

    name: str
    values: dict[str, NDArray[np.float64]]
    estimates: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All cases of one kind.

    Attributes:
        kind: "labels", "image", or "picture" for masks on pictures.
        results: The cases.
        rows: One per structure; a single one for images.
        overall: The means over the structures of each case, over all cases; the only row again for images.
        failures: Cases that could not be compared.
        resamples: Of the bootstrap; 0 where there is only one case.
        seed: Of the bootstrap.
        notes: What has to be known beside the figures, one sentence each.
    """

    kind: str
    results: tuple[CaseResult, ...]
    rows: tuple[Row, ...]
    overall: Row
    failures: tuple[Failure, ...]
    resamples: int
    seed: int
    notes: tuple[str, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What was measured."""
        return _MEASURES[self.kind]


def bootstrap_intervals(
    values: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap intervals of column means (Efron 1979): whole cases are drawn with replacement.

    Args:
        values: (cases, K), one column per figure; nan where a case has none, which a mean then leaves out.
        resamples: How often to draw, positive.
        rng: Source of randomness.

    Returns:
        Lower and upper ends, (K,) each, that hold `CONFIDENCE` of the resampled means; nan for columns with fewer than
        two values.
    """
    known = np.isfinite(values)
    cases = len(values)
    drawn = rng.multinomial(cases, np.full(cases, 1 / cases), size=resamples)  # how often each case was drawn
    with np.errstate(invalid="ignore"):
        means = (drawn @ np.where(known, values, 0.0)) / (drawn @ known)
    enough = known.sum(axis=0) > 1
    ends = np.full((2, values.shape[1]), math.nan)
    tail = 100 * (1 - CONFIDENCE) / 2
    if enough.any():
        ends[:, enough] = np.nanpercentile(means[:, enough], (tail, 100 - tail), axis=0)
    return ends[0], ends[1]


def summarise(
    results: Sequence[CaseResult],
    *,
    failures: Sequence[Failure] = (),
    resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Summary:
    """Means over cases with their intervals.

    Args:
        results: The cases, at least one, all of one kind.
        failures: Cases that could not be compared.
        resamples: Of the bootstrap, positive.
        seed: Of the bootstrap; equal seeds give equal intervals.

    Raises:
        ValueError: There is no case, or there are several kinds.
    """
    kinds = {_KINDS[type(result.found)] for result in results}
    if len(kinds) != 1:
        raise ValueError(f"results must be at least one and of one kind, got {len(results)} of {sorted(kinds)}")
    tables = [_figures(result.found) for result in results]
    names = list(dict.fromkeys(name for table in tables for name in table))
    columns = [(name, key) for name in names for key in next(table[name] for table in tables if name in table)]
    values = np.array([[table.get(name, {}).get(key, math.nan) for name, key in columns] for table in tables])
    low, high = bootstrap_intervals(values, resamples, np.random.default_rng(seed))
    rows: dict[str, Row] = {name: Row(name=name, values={}, estimates={}) for name in names}
    for number, (name, key) in enumerate(columns):
        rows[name].values[key] = values[:, number]
        rows[name].estimates[key] = _estimate(values[:, number], float(low[number]), float(high[number]))
    overall = rows.pop("") if kinds == {"labels"} else rows[_IMAGE_ROW]
    return Summary(
        kind=kinds.pop(),
        results=tuple(results),
        rows=tuple(rows.values()),
        overall=overall,
        failures=tuple(failures),
        resamples=resamples if len(results) > 1 else 0,
        seed=seed,
        notes=(*dict.fromkeys(note for result in results for note in result.found.notes), _interval_note(len(results))),
    )


def _figures(found: Found) -> dict[str, dict[str, float]]:
    """Per row its figures; "" is the row of the means over structures."""
    if not isinstance(found, Evaluation):
        return {_IMAGE_ROW: {measure.key: getattr(found, measure.key) for measure in _MEASURES[_KINDS[type(found)]]}}
    figures = {score.name: {k: v for k, v in asdict(score).items() if k != "name"} for score in found.scores}
    means = {"dice": found.mean_dice, "nsd": found.mean_nsd, "hd95_mm": found.mean_hd95_mm, "asd_mm": found.mean_asd_mm}
    return {**figures, "": means}


def _estimate(values: NDArray[np.float64], low: float, high: float) -> Estimate:
    finite = values[np.isfinite(values)]
    return Estimate(
        mean=float(finite.mean()) if finite.size else math.nan,
        low=low,
        high=high,
        cases=int(finite.size),
        infinite=int(np.isinf(values).sum()),
    )


def _interval_note(cases: int) -> str:
    if cases == 1:
        return "One case: there is no confidence interval."
    text = f"Intervals hold the mean over {cases} cases with {CONFIDENCE:.0%} confidence (percentile bootstrap)"
    return f"{text}; from so few cases they are too narrow." if cases < _FEW_CASES else f"{text}."


def as_json(summary: Summary) -> dict[str, Any]:
    """The summary as plain JSON data; what is not defined is null, an infinite value the text "inf"."""
    cases = [{"case": result.case, **_case(result.found)} for result in summary.results]
    bootstrap = {"resamples": summary.resamples, "seed": summary.seed, "confidence": CONFIDENCE}
    prefix = "mean_" if summary.kind == "labels" else ""
    content: dict[str, Any] = {
        "kind": summary.kind,
        **{prefix + key: value for key, value in _flat(summary.overall.estimates).items()},
        "bootstrap": bootstrap if summary.resamples else None,
        "cases": cases,
        "failed": [asdict(failure) for failure in summary.failures],
        "notes": list(summary.notes),
    }
    if summary.kind == "labels":
        content["structures"] = [
            {"name": row.name, "cases": counted(row), **_flat(row.estimates)} for row in summary.rows
        ]
    return _plain(content)


def counted(row: Row) -> int:
    """In how many cases a structure is in one of both label maps at least."""
    return int(np.isfinite(row.values["dice"]).sum())


def as_csv(summary: Summary) -> str:
    """One row per case and structure, or per case for images, with a header row; an empty field is not defined."""
    rows: list[dict[str, Any]] = []
    for result in summary.results:
        if isinstance(result.found, Evaluation):
            scores = (asdict(score) for score in result.found.scores)
            rows += [{"case": result.case, "structure": score.pop("name"), **score} for score in scores]
        else:
            rows.append({"case": result.case, **_case(result.found)})
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else ["case"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_plain(rows))
    return out.getvalue()


def _case(found: Found) -> dict[str, Any]:
    content = asdict(found)
    del content["notes"]
    return {"structures" if key == "scores" else key: value for key, value in content.items()}


def _flat(estimates: Mapping[str, Estimate]) -> dict[str, float | int]:
    """Each mean under the key of its measure, the ends of its interval beside it; infinite values are counted."""
    flat: dict[str, float | int] = {}
    for key, estimate in estimates.items():
        alone = estimate.cases == 0 and estimate.infinite > 0
        flat[key] = math.inf if alone else estimate.mean
        flat |= {f"{key}_low": estimate.low, f"{key}_high": estimate.high}
        if estimate.infinite:
            flat[f"{key}_infinite"] = estimate.infinite
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return round(value, 6) if isinstance(value, float) else value
