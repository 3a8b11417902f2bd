"""`medseg bundle`: models as MONAI bundles, checked, and MONAI bundles as models."""

from pathlib import Path

from medseg.errors import MedsegError
from medseg_app.output import print_json, print_line, print_table
from medseg_pipelines.bundle.check import Report, check_bundle
from medseg_pipelines.bundle.export import export_bundle
from medseg_pipelines.bundle.importing import import_bundle
from medseg_pipelines.words import EXAMPLES_TRAVEL, RESEARCH_USE


def export(model: str, out: Path, *, support: str | None, overwrite: bool, json: bool) -> int:
    """Write and check a bundle; returns the exit code."""
    report = export_bundle(model, out, support=support, overwrite=overwrite)
    _show(report, out, json=json)
    if support is not None and not json:
        print_line(f"note      {EXAMPLES_TRAVEL}")
    return 0


def check(path: Path, *, model: str | None, json: bool) -> int:
    """Check a bundle; returns the exit code, 1 where a point failed."""
    report = check_bundle(path, model=model)
    _show(report, path, json=json)
    return 0 if report.passed else MedsegError.exit_code


def load(path: Path, *, name: str | None, trust_code: str | None, json: bool) -> int:
    """Import a bundle; returns the exit code."""
    model = import_bundle(path, name=name, trust_code=trust_code)
    if json:
        print_json({"model": model.name, "folder": str(model.folder), "notes": list(model.notes)})
        return 0
    print_line(f"imported as {model.name}: medseg infer INPUT -m {model.name}")
    print_line(f"folder    {model.folder}")
    for note in model.notes:
        print_line(f"note      {note}")
    print_line(RESEARCH_USE)
    return 0


def _show(report: Report, path: Path, *, json: bool) -> None:
    if json:
        points = [{"name": point.name, "passed": point.fault is None, "fault": point.fault} for point in report.points]
        print_json({"notice": RESEARCH_USE, "bundle": str(path), "passed": report.passed, "points": points})
        return
    print_table(("point", "", "fault"), [(p.name, "failed" if p.fault else "ok", p.fault or "") for p in report.points])
    print_line(f"bundle    {path}")
