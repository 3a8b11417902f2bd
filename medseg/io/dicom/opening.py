"""From a path to one opened series, to its volume, or to what is wrong with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from medseg.errors import InputRefused
from medseg.io.checks import decoded_bytes, judge
from medseg.io.dicom.listing import Found, Listing, choose, list_series
from medseg.io.dicom.pixels import same_pixels
from medseg.io.dicom.series import DicomSeries
from medseg.io.dicom.stack import build_stack
from medseg.io.header import Header, Inspection, Problem, SeriesSummary
from medseg.volume import Grid


def open_series(path: Path, *, series: str | None = None, correct: bool = False) -> tuple[DicomSeries, Header]:
    """The series behind a path, and the header of its volume; errors in it are not raised but listed there.

    Args:
        path: A folder, a zip archive, a DICOMDIR or a file.
        series: Number in the listing, or UID; needed where there are several.
        correct: Resample what is tilted or uneven to a regular grid, and guess positions that are not stated.

    Raises:
        InputRefused: No DICOM, or several series and none chosen.
        UsageError: There is no such series.
    """
    listing = list_series(path)
    found, notes = choose(listing, series)
    return _opened(listing, found, notes, correct=correct)


def inspect_series(
    path: Path, *, series: str | None = None, correct: bool = False, memory_limit: int | None = None
) -> Inspection:
    """What lies behind a path: every series, and in detail the one that would be read."""
    try:
        listing = list_series(path)
    except InputRefused as refusal:
        return Inspection(path.name, problems=(Problem("error", str(refusal)),))
    summaries = tuple(_summary(found, correct=correct) for found in listing.series)
    try:
        found, notes = choose(listing, series)
        opened, header = _opened(listing, found, notes, correct=correct)
    except InputRefused as refusal:
        problems = (Problem("error", str(refusal)), *listing.problems)
        return Inspection(path.name, format="DICOM", problems=problems, series=summaries)
    usable = opened.stack.affine is not None
    affine, problems = judge(header, time_point=None, memory_limit=memory_limit) if usable else (None, header.problems)
    grid = None if affine is None else Grid(opened.shape, affine)
    return Inspection(
        path.name,
        format="DICOM",
        shape=header.shape if usable else None,
        spacing=grid and grid.spacing,
        orientation=grid and grid.orientation,
        affine=grid and grid.affine,
        dtype=header.source.dtype.name if opened.slices[0].instance.rows else None,
        byte_order=header.source.byte_order,
        scaling=(header.source.slope, header.source.intercept),
        units="mm",
        memory=decoded_bytes(header) if usable else None,
        problems=tuple(sorted(problems, key=lambda problem: ("error", "warning", "note").index(problem.severity))),
        series=summaries,
    )


def _opened(listing: Listing, found: Found, notes: tuple[Problem, ...], *, correct: bool) -> tuple[DicomSeries, Header]:
    if not found.planes:
        raise InputRefused(found.flaw or "expected images, got none; give the series that holds them")
    stack = build_stack(found.planes, correct=correct, same_pixels=same_pixels)
    opened = DicomSeries(found, stack)
    return opened, opened.header((*notes, *listing.problems))


def _summary(found: Found, *, correct: bool) -> SeriesSummary:
    first = found.instances[0]
    summary = SeriesSummary(
        number=found.number,
        uid=found.uid,
        series_number=first.series_number,
        modality=found.modality,
        kind="localiser" if found.localiser else "image" if found.planes else "other",
        files=len(found.instances),
    )
    if not found.planes:
        return replace(summary, problems=(Problem("error", found.flaw or "expected images, got none"),))
    stack = build_stack(found.planes, correct=correct, same_pixels=same_pixels)
    opened = DicomSeries(found, stack)
    grid = None if stack.affine is None else Grid(opened.shape, stack.affine)
    slices = stack.phases[0]
    return replace(
        summary,
        images=len(found.planes),
        shape=opened.shape if grid else (first.columns, first.rows, len(found.planes)),
        spacing=grid and grid.spacing,
        orientation=grid and grid.orientation,
        time_points=len(stack.phases),
        problems=stack.problems,
        middle=None if found.flaw else slices[len(slices) // 2],
    )
