"""The picture of an evaluation: per structure and measure a box plot, the single cases as dots, means as numbers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medseg import __version__
from medseg_pipelines.drawing import AMBER, BACKGROUND, MUTED, PANEL, TEXT, font
from medseg_pipelines.evaluation_summary import Estimate, Measure, Row, Summary
from medseg_pipelines.words import RESEARCH_USE

_SCALE = 2  # everything is drawn at twice its size and halved at the end, which smooths dots and lines
_EDGE = 28  # px of the finished picture, as all sizes here
_NAMES = 300  # at most
_PLOT = 210
_INFINITE = 24  # beside a plot, for cases without a finite value
_MEAN = 106
_GAP = 26
_ROW = 46
_LONE_ROW = 96  # of an image, which has no structures
_HEAD = 150
_AXIS = 44
_LINE = 24
_DOT = 3.2
_BOX = 13
_MOST_ROWS = 60
_FEWEST_FOR_BOX = 5  # quartiles of fewer cases are not worth a box
_WHISKER = 1.5  # box lengths (Tukey)

_GRID = (58, 63, 72)
_RED = (255, 112, 112)
_BOX_FILL = (38, 82, 122)
_BOX_LINE = (110, 178, 235)

Color = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One measure: where it stands and what its axis shows."""

    measure: Measure
    left: float
    ticks: tuple[float, ...]  # as shown, ascending; the axis runs from the first to the last

    def x(self, value: float) -> float:
        """The place of a value as shown."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.left + _PLOT * (value - low) / (high - low)


class _Pen:
    """Draws in px of the finished picture on a canvas of twice its size."""

    def __init__(self, width: float, height: float) -> None:
        self.canvas = Image.new("RGB", (round(width * _SCALE), round(height * _SCALE)), BACKGROUND)
        self._draw = ImageDraw.Draw(self.canvas)

    def finished(self) -> Image.Image:
        return self.canvas.reduce(_SCALE)

    def box(
        self, left: float, top: float, right: float, bottom: float, *, fill: Color, line: Color | None = None
    ) -> None:
        self._draw.rectangle(_scaled(left, top, right, bottom), fill=fill, outline=line, width=_SCALE)

    def line(self, x0: float, y0: float, x1: float, y1: float, color: Color, width: float = 1.0) -> None:
        self._draw.line(_scaled(x0, y0, x1, y1), fill=color, width=round(width * _SCALE))

    def dot(self, x: float, y: float) -> None:
        self._draw.ellipse(_scaled(x - _DOT, y - _DOT, x + _DOT, y + _DOT), fill=TEXT, outline=BACKGROUND)

    def triangle(self, x: float, y: float) -> None:
        self._draw.polygon(_scaled(x - 5, y - 6, x - 5, y + 6, x + 6, y), fill=_RED)

    def text(
        self, x: float, y: float, text: str, size: int, color: Color, *, anchor: str = "la", width: float = math.inf
    ) -> None:
        """Text at `size`, or as much smaller as it needs to stay within `width`."""
        while size > 10 and text_width(text, size) > width:
            size -= 1
        self._draw.text((x * _SCALE, y * _SCALE), text, font=font(size * _SCALE), fill=color, anchor=anchor)


def draw_evaluation(summary: Summary) -> Image.Image:
    """The picture of an evaluation, dark for reading rooms.

    Args:
        summary: What is shown; of more than 60 structures the first 60, and the mean of all.
    """
    rows = _named_rows(summary)
    height = _ROW if summary.kind == "labels" else _LONE_ROW
    names = min(_NAMES, max(text_width(name, 18) for name in rows) + 24)
    pitch = _PLOT + _INFINITE + _MEAN + _GAP
    panels = [
        _Panel(measure=measure, left=_EDGE + names + number * pitch, ticks=_axis(measure, list(rows.values())))
        for number, measure in enumerate(summary.measures)
    ]
    width = 2 * _EDGE + names + pitch * len(panels) - _GAP
    notes = list(_wrapped(_notes(summary), width - 2 * _EDGE))
    bottom = _HEAD + height * len(rows)
    pen = _Pen(width, bottom + _AXIS + _LINE * (len(notes) + 2) + 16)
    pen.text(_EDGE, 20, "Agreement with the reference", 28, TEXT)
    pen.text(_EDGE, 60, _subtitle(summary), 17, MUTED, width=width - 2 * _EDGE)
    for number in range(0, len(rows), 2):
        top = _HEAD + number * height
        pen.box(_EDGE - 10, top, width - _EDGE + 10, top + height - 1, fill=PANEL)
    for panel in panels:
        _draw_axis(pen, panel, bottom, "mean" if len(summary.results) > 1 else "value")
    for number, (name, row) in enumerate(rows.items()):
        top = _HEAD + number * height
        pen.text(_EDGE, top + height / 2, name, 18, TEXT, anchor="lm", width=names - 16)
        for panel in panels:
            if panel.measure.key in row.values:
                _draw_row(pen, panel, row, top, height)
    for number, note in enumerate(notes):
        pen.text(_EDGE, bottom + _AXIS + 12 + number * _LINE, note, 16, MUTED)
    pen.text(_EDGE, bottom + _AXIS + 20 + len(notes) * _LINE, RESEARCH_USE, 18, AMBER)
    return pen.finished()


def _named_rows(summary: Summary) -> dict[str, Row]:
    """What is drawn, from top to bottom: the structures and their mean, or the image as a whole."""
    if summary.kind != "labels":
        return {"whole image": summary.overall}
    return {**{row.name: row for row in summary.rows[:_MOST_ROWS]}, "mean of structures": summary.overall}


def text_width(text: str, size: int) -> float:
    """px that a text takes at a size in px."""
    return font(size).getlength(text)


def _subtitle(summary: Summary) -> str:
    cases = len(summary.results)
    parts = [f"medseg {__version__}", f"{cases} case{'s' if cases > 1 else ''}"]
    if cases > 1:
        parts.append("Dot: one case")
    if cases >= _FEWEST_FOR_BOX:
        parts.append("Box: middle half, its line the median, whiskers up to 1.5 box lengths")
    if cases > 1:
        parts.append("Number: mean over cases, with its 95% interval below")
    if any(estimate.infinite for row in summary.rows for estimate in row.estimates.values()):
        parts.append("Red: infinite values and how many")
    return ".  ".join(parts)


def _notes(summary: Summary) -> list[str]:
    notes = list(summary.notes)
    if len(summary.rows) > _MOST_ROWS:
        notes.append(f"{len(summary.rows) - _MOST_ROWS} more structures stand in evaluation.csv.")
    if summary.failures:
        notes.append(f"{len(summary.failures)} more cases could not be compared.")
    return notes


def _wrapped(notes: Sequence[str], width: float) -> Iterator[str]:
    for note in notes:
        line = ""
        for word in note.split():
            if line and text_width(f"{line} {word}", 16) > width:
                yield line
                line = ""
            line = f"{line} {word}".strip()
        yield line


def _axis(measure: Measure, rows: Sequence[Row]) -> tuple[float, ...]:
    """Round ticks that hold all finite values; perfect agreement is an end of the axis, or its middle."""
    values = np.concatenate([_shown(measure, row.values[measure.key]) for row in rows if measure.key in row.values])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if measure.best == 1.0:
        low, high = next((start for start in (0.8, 0.5, 0.0) if low >= start), low), 1.0
    elif measure.best == 0.0:
        low, high = (-max(-low, high), max(-low, high)) if low < 0 else (0.0, high)
    return round_ticks(low, high)


def round_ticks(low: float, high: float) -> tuple[float, ...]:
    """Four to seven round numbers, evenly spaced, from at most `low` to at least `high`."""
    span = high - low if high - low > 1e-9 * max(abs(low), abs(high), 1e-3) else max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return tuple(round(step * number, 10) for number in range(first, last + 1))


def _shown(measure: Measure, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values * measure.factor


def _draw_axis(pen: _Pen, panel: _Panel, bottom: float, number: str) -> None:
    """Titles of the plot and of the numbers beside it, grid lines, ticks; perfect agreement is a brighter line."""
    measure = panel.measure
    pen.text(panel.left, _HEAD - 52, f"{measure.title} {measure.unit}".rstrip(), 20, TEXT)
    hint = "more is better" if measure.best is None else f"{measure.best:g} is perfect"
    pen.text(panel.left, _HEAD - 26, hint, 14, MUTED)
    pen.text(panel.left + _PLOT + _INFINITE + _MEAN, _HEAD - 26, number, 14, MUTED, anchor="ra")
    for tick in panel.ticks:
        perfect = tick == measure.best
        pen.line(panel.x(tick), _HEAD, panel.x(tick), bottom + 5, MUTED if perfect else _GRID)
        pen.text(panel.x(tick), bottom + 10, f"{tick:g}", 15, MUTED, anchor="ma")


def _draw_row(pen: _Pen, panel: _Panel, row: Row, top: float, height: float) -> None:
    """Box above, dots below, the mean at the right."""
    measure = panel.measure
    values = _shown(measure, row.values[measure.key])
    finite = np.sort(values[np.isfinite(values)])
    if len(finite) >= _FEWEST_FOR_BOX:
        _draw_box(pen, panel, finite, top + height * 0.32)
        _draw_dots(pen, panel, finite, top + height * 0.74, room=height * 0.2)
    else:
        _draw_dots(pen, panel, finite, top + height / 2, room=height * 0.4)
    estimate = row.estimates[measure.key]
    if estimate.infinite:
        x = panel.left + _PLOT + 14
        pen.triangle(x, top + height * 0.3)
        pen.text(x, top + height * 0.72, str(estimate.infinite), 14, _RED, anchor="mm")
    _draw_mean(pen, panel, estimate, top + height / 2)


def _draw_box(pen: _Pen, panel: _Panel, values: NDArray[np.float64], y: float) -> None:
    first, median, third = (float(value) for value in np.percentile(values, (25, 50, 75)))
    reach = _WHISKER * (third - first)
    ends = float(values[values >= first - reach].min()), float(values[values <= third + reach].max())
    pen.line(panel.x(ends[0]), y, panel.x(ends[1]), y, _BOX_LINE)
    for end in ends:
        pen.line(panel.x(end), y - 4, panel.x(end), y + 4, _BOX_LINE)
    box = panel.x(first), y - _BOX / 2, max(panel.x(third), panel.x(first) + 1), y + _BOX / 2
    pen.box(*box, fill=_BOX_FILL, line=_BOX_LINE)
    pen.line(panel.x(median), y - _BOX / 2, panel.x(median), y + _BOX / 2, TEXT, 2.5)


def _draw_dots(pen: _Pen, panel: _Panel, values: NDArray[np.float64], y: float, room: float) -> None:
    """Each value in the lane nearest to the middle where it covers no other, as far as there is room."""
    lanes = sorted(np.arange(-room, room + 0.1, _DOT), key=abs)
    last = dict.fromkeys(lanes, -math.inf)
    for value in values:
        x = panel.x(float(value))
        lane = next((lane for lane in lanes if x - last[lane] > 2 * _DOT), lanes[0])
        last[lane] = x
        pen.dot(x, y + lane)


def _draw_mean(pen: _Pen, panel: _Panel, estimate: Estimate, y: float) -> None:
    measure, right = panel.measure, panel.left + _PLOT + _INFINITE + _MEAN
    if estimate.cases == 0:
        pen.text(right, y, "-", 17, MUTED, anchor="rm")
        return
    mean, low, high = (
        measure.form.format(measure.factor * value) for value in (estimate.mean, estimate.low, estimate.high)
    )
    if math.isnan(estimate.low):
        pen.text(right, y, mean, 17, TEXT, anchor="rm")
        return
    pen.text(right, y - 9, mean, 17, TEXT, anchor="rm")
    pen.text(right, y + 12, f"{low} to {high}", 14, MUTED, anchor="rm")


def _scaled(*values: float) -> list[int]:
    return [round(value * _SCALE) for value in values]
