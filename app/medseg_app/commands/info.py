"""`medseg info`: what a file or a DICOM series is, from its headers."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseg import io
from medseg.errors import InputRefused
from medseg.io.pictures import is_picture
from medseg_app.output import print_json, print_line, size_text


def run(path: Path, *, series: str | None, correct_geometry: bool, json: bool) -> int:
    """Describe what lies behind a path; returns the exit code, that of a refusal where `medseg infer` would refuse it.

    Args:
        path: A file, or DICOM in any form.
        series: Which of several DICOM series to describe in detail.
        correct_geometry: Describe the grid that `--correct-geometry` would make.
        json: Print one JSON object.
    """
    if is_picture(path):
        from medseg_app.commands import pictures  # scikit-image is slow to load, and volumes do not need it

        return pictures.describe(path, json=json)
    found = io.inspect(path, series=series, correct_geometry=correct_geometry)
    if json:
        print_json(_plain(found))
    else:
        for line in _lines(found):
            print_line(line)
    return 0 if found.readable else InputRefused.exit_code


def _plain(found: io.Inspection) -> dict[str, Any]:
    content = {key: value for key, value in vars(found).items() if key not in ("affine", "problems", "series")}
    content["affine"] = None if found.affine is None else found.affine.tolist()
    content["readable"] = found.readable
    content["problems"] = [asdict(problem) for problem in found.problems]
    if found.series:
        content["series"] = [_plain_series(series) for series in found.series]
    return content


def _plain_series(series: io.SeriesSummary) -> dict[str, Any]:
    content = {key: value for key, value in vars(series).items() if key != "middle"}
    return content | {"problems": [asdict(problem) for problem in series.problems]}


def _lines(found: io.Inspection) -> list[str]:
    rows = {
        "format": found.format,
        "series": len(found.series) == 1 and _one_series(found.series[0]),
        "grid": found.shape and " x ".join(str(n) for n in found.shape) + " voxels",
        "spacing": found.spacing and " x ".join(f"{step:.4g}" for step in found.spacing) + " mm",
        "covers": found.spacing and found.shape and _covers(found.shape, found.spacing),
        "orientation": found.orientation and f"{found.orientation} (towards which side each axis points)",
        "values": found.dtype and f"{found.dtype}, {found.byte_order} endian{_scaling(found.scaling)}",
        "units": found.units,
        "form codes": found.qform_code is not None and f"qform {found.qform_code}, sform {found.sform_code}",
        "memory": found.memory and size_text(found.memory),
    }
    lines = [found.name, *(f"  {key:<12} {value}" for key, value in rows.items() if value)]
    if len(found.series) > 1:
        lines += [line for series in found.series for line in _series_lines(series)]
    lines += [f"  {problem.severity:<12} {problem.text}" for problem in found.problems]
    if found.problems:
        return lines
    return [*lines, "  no problems found in the header" + "s" * (found.format == "DICOM")]


def _one_series(series: io.SeriesSummary) -> str:
    return f"{series.modality}, {series.images} image{'s' * (series.images != 1)} in {series.files} file" + "s" * (
        series.files > 1
    )


def _series_lines(series: io.SeriesSummary) -> list[str]:
    """A series of several: what it is, and what is wrong with it."""
    kind = {"image": "", "localiser": ", localiser", "other": ", no images"}[series.kind]
    parts = [f"{series.modality}{kind}, {series.files} file{'s' * (series.files > 1)}"]
    if series.shape:
        parts.append(" x ".join(str(n) for n in series.shape) + " voxels")
    if series.spacing:
        parts.append(" x ".join(f"{step:.4g}" for step in series.spacing) + f" mm, {series.orientation}")
    if series.time_points > 1:
        parts.append(f"{series.time_points} time points")
    if series.series_number is not None:
        parts.append(f"number {series.series_number}")
    lines = [f"  {f'series {series.number}':<12} {'; '.join(parts)}", f"  {'':<12} {series.uid}"]
    return lines + [f"  {'':<12} {problem.severity}: {problem.text}" for problem in series.problems]


def _covers(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{n * step:.0f}" for n, step in zip(shape, spacing, strict=False)) + " mm"


def _scaling(scaling: tuple[float, float] | None) -> str:
    if scaling is None or scaling == (1.0, 0.0):
        return ""
    return f", stored times {scaling[0]:g} plus {scaling[1]:g}"
