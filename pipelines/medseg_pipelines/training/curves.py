"""The curves of a training run as a picture, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from medseg_pipelines.drawing import EDGE, MUTED, PANEL, TEXT, Caption, font, framed

CURVES = "curves.png"
_WIDTH, _HEIGHT, _GAP = 1200, 300, 24  # px of the picture, of one panel, between panels
_POINTS = 200  # of the smooth line, each a mean over its share of the run
_COLOURS = ((120, 190, 255), (255, 196, 84), (140, 225, 150), (240, 130, 160))
_NOT_CURVES = {"step", "seconds"}


def read_curves(log: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of every figure in a log; of a step that was repeated after a resume the last counts."""
    found: dict[str, dict[int, float]] = {}
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name, value in entry.items():
            if name not in _NOT_CURVES:
                found.setdefault(name, {})[entry["step"]] = value
    return {name: (np.array(sorted(of)), np.array([of[step] for step in sorted(of)])) for name, of in found.items()}


def write_curves(log: Path, out: Path, title: str) -> None:
    """Draw one panel per figure: single steps as dots, their running mean as a line.

    Args:
        log: One JSON object per line.
        out: The picture; replaced at once.
        title: Of the picture.
    """
    curves = read_curves(log)
    if not curves:
        return
    last = max(int(steps[-1]) for steps, _ in curves.values())
    body = len(curves) * (_HEIGHT + _GAP)
    canvas, top = framed(_WIDTH, body, Caption(title=title, subtitle=f"{last} steps", convention=""))
    draw = ImageDraw.Draw(canvas)
    for number, (name, (steps, values)) in enumerate(curves.items()):
        box = (EDGE, top + number * (_HEIGHT + _GAP), _WIDTH - EDGE, top + number * (_HEIGHT + _GAP) + _HEIGHT)
        _panel(draw, box, name, steps, values, _COLOURS[number % len(_COLOURS)])
    _replace(canvas, out)


def _panel(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    name: str,
    steps: np.ndarray,
    values: np.ndarray,
    colour: tuple[int, int, int],
) -> None:
    left, top, right, bottom = box
    draw.rectangle(box, fill=PANEL)
    low, high = np.percentile(values, (0.5, 99.5))  # single outliers would flatten the rest
    if high <= low:
        low, high = low - 0.5, high + 0.5
    across = left + 90 + (steps - steps[0]) / max(1, steps[-1] - steps[0]) * (right - left - 110)
    up = bottom - 34 - (np.clip(values, low, high) - low) / (high - low) * (_HEIGHT - 80)
    faint = tuple((c + 2 * p) // 3 for c, p in zip(colour, PANEL, strict=True))
    draw.point([xy for point in zip(across, up, strict=True) for xy in point], fill=faint)
    shares = np.array_split(np.arange(len(steps)), min(_POINTS, len(steps)))
    line = [(float(across[share].mean()), float(up[share].mean())) for share in shares]
    if len(line) > 1:
        draw.line(line, fill=colour, width=3)
    draw.text((left + 14, top + 10), name, font=font(20), fill=TEXT)
    for value, height in ((high, top + 46), (low, bottom - 34)):
        draw.text((left + 80, height), f"{value:.3g}", font=font(16), fill=MUTED, anchor="rm")
    draw.text((across[0], bottom - 6), f"step {steps[0]}", font=font(16), fill=MUTED, anchor="lb")
    draw.text((right - 14, bottom - 6), f"step {steps[-1]}", font=font(16), fill=MUTED, anchor="rb")


def _replace(canvas: Image.Image, out: Path) -> None:
    partial = out.with_suffix(".partial")
    canvas.save(partial, format="PNG")
    partial.replace(out)
