"""An evaluation as a folder: figures as JSON and CSV, the picture, and what was compared."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg import __version__
from medseg_pipelines.case import hash_file
from medseg_pipelines.evaluation_cases import Pair, volume_file
from medseg_pipelines.evaluation_picture import draw_evaluation
from medseg_pipelines.evaluation_summary import Summary, as_csv, as_json
from medseg_pipelines.folders import RESULT_MARK, whole_folder
from medseg_pipelines.words import RESEARCH_USE

SCHEMA = "medseg-evaluation-1"


def save_report(
    summary: Summary, pairs: Sequence[Pair], folder: Path, *, options: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write `evaluation.json`, `.csv`, `.png` and a manifest; the folder appears whole or not at all.

    Args:
        summary: What was found.
        pairs: What was compared; the manifest holds the hashes of the files, and no path.
        folder: Where; its parent must exist.
        options: By which options, plain JSON data.
        overwrite: Replace an earlier result.

    Raises:
        UsageError: The folder is there already, or its parent is not.
    """
    with whole_folder(folder, overwrite=overwrite) as partial:
        _write_json(partial / "evaluation.json", {"notice": RESEARCH_USE, **as_json(summary)})
        (partial / "evaluation.csv").write_text(as_csv(summary), encoding="utf-8")
        draw_evaluation(summary).save(partial / "evaluation.png", optimize=True)
        files = {path.name: hash_file(path)[0] for path in sorted(partial.iterdir())}
        manifest = {
            "schema": SCHEMA,
            "notice": RESEARCH_USE,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "version": __version__,
            "options": dict(options),
            "cases": [_hashes(pair) for pair in pairs],
            "files": files,
        }
        _write_json(partial / RESULT_MARK, manifest)


def _hashes(pair: Pair) -> dict[str, str]:
    files = {"prediction": pair.prediction, "reference": pair.reference}
    return {"case": pair.case, **{f"{name}_sha256": hash_file(volume_file(path))[0] for name, path in files.items()}}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
