"""The report of a result: one self-contained page with its own print style."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment

from medseg_pipelines.folders import RESULT_MARK
from medseg_pipelines.words import RADIOLOGICAL, RESEARCH_USE, RESTORED, UNTRAINED_BANNER

PAGE = files("medseg_app") / "page"


def strings() -> dict[str, Any]:
    """Every sentence of the page, by part and name."""
    return json.loads((PAGE / "static" / "strings.en.json").read_text(encoding="utf-8"))


def report(folder: Path) -> str:
    """The report of a result folder as HTML.

    Args:
        folder: As `medseg infer` writes it.
    """
    manifest = json.loads((folder / RESULT_MARK).read_text(encoding="utf-8"))
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (PAGE / "report.html").read_text(encoding="utf-8")
    )
    return template.render(
        t=strings()["report"],
        manifest=manifest,
        structures=statistics.get("structures"),
        figures=_figures(statistics),
        rounding=statistics.get("rounding"),
        meaning=statistics.get("status", {}),
        preview=base64.b64encode((folder / "preview.png").read_bytes()).decode(),
        research_use=RESEARCH_USE,
        convention=RADIOLOGICAL,
        restored=RESTORED if "restor" in manifest["model"]["task"] or "super" in manifest["model"]["task"] else None,
        untrained=None if manifest["model"]["trained"] else UNTRAINED_BANNER,
    )


def _figures(statistics: dict[str, Any]) -> dict[str, str]:
    """Single figures of a restored image, in words."""
    return {
        name.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in statistics.items()
        if isinstance(value, int | float | str) and name not in ("notice", "rounding")
    }
