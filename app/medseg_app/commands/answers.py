"""What is said of a result: to a reader at the screen, and as data for a program."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg_app.output import duration_text, print_line, print_table, size_text, tell
from medseg_pipelines.statistics import STATUS_MEANING, Structure
from medseg_pipelines.words import RESTORED

if TYPE_CHECKING:
    from medseg_pipelines.restored import RestoredResult
    from medseg_pipelines.results import LabelResult, Result
    from medseg_pipelines.superresolved import FinerResult


def answer(result: "Result", target: Path, *, quiet: bool, verbose: bool) -> dict[str, Any]:
    """Print a saved result, and give it as plain data.

    Args:
        result: As it was saved.
        target: Its folder.
        quiet: Print nothing on stdout.
        verbose: Tell times and memory on stderr.
    """
    from medseg_pipelines.restored import RestoredResult
    from medseg_pipelines.results import LabelResult  # torch is loaded by now
    from medseg_pipelines.superresolved import FinerResult

    if not quiet:
        for warning in result.warnings:
            tell(f"warning: {warning}")
    specific: dict[str, Any] = {}
    if isinstance(result, LabelResult):
        specific = _labels(result, target, quiet=quiet)
    elif isinstance(result, RestoredResult):
        specific = _restored(result, target, quiet=quiet)
    elif isinstance(result, FinerResult):
        specific = _finer(result, target, quiet=quiet)
    agreed = getattr(result, "agreement", ())
    if agreed:
        specific["agreement"] = [each.as_json() for each in agreed]
        if not quiet:
            print_line(
                f"agreement {'; '.join(f'{each.name} {each.words}' for each in agreed)} (between runs, not with truth)"
            )
    specific |= _prompting(result, quiet=quiet)
    if verbose:
        for stage, seconds in result.manifest["seconds"].items():
            tell(f"{stage}: {duration_text(seconds)}")
        tell(f"peak memory: {size_text(result.manifest['peak_memory_bytes'])}")
    return {"model": result.recipe.name, "output": str(target), "warnings": list(result.warnings), **specific}


def _prompting(result: "Result", *, quiet: bool) -> dict[str, Any]:
    """What was encoded and drawn for prompts; nothing of other results."""
    told = result.manifest.get("prompting")
    if not told:
        return {}
    seconds = told["seconds"]
    if not quiet:
        print_line(
            f"prompts   masks drawn: {told['decoded']}, in {seconds['decoding']:.2f} s; "
            f"slices encoded: {told['encoded']}, in {seconds['encoding']:.2f} s"
        )
    return {"prompting": {name: told[name] for name in ("encoded", "decoded", "seconds")}}


def _labels(result: "LabelResult", target: Path, *, quiet: bool) -> dict[str, Any]:
    if not quiet:
        print_table(("structure", "right ml", "left ml", ""), _rows(result), numeric=("right ml", "left ml"))
        found = {structure.status for structure in result.statistics}
        for status, meaning in STATUS_MEANING.items():
            if status in found - {"complete"}:
                print_line(f"{status}: {meaning}")
        print_line(f"labels    {target / result.main_file}")
        print_line(f"picture   {target / 'preview.png'}")
        print_line(f"volumes   {target / 'statistics.csv'}")
    return {
        "labels": str(target / result.main_file),
        "structures": [{"id": s.id, "name": s.name, "ml": s.ml, "status": s.status} for s in result.statistics],
    }


def _restored(result: "RestoredResult", target: Path, *, quiet: bool) -> dict[str, Any]:
    residual = target / f"residual{result.ending}"
    if not quiet:
        quality, unit = result.quality, result.recipe.unit
        print_line(f"noise     {quality.noise_before:.3g} before, {quality.noise_after:.3g} after ({unit}, estimated)")
        print_line(f"changed   {quality.mean_change:+.2g} in the mean, {quality.largest_change:.3g} {unit} at most")
        print_line(f"restored  {target / result.main_file}")
        print_line(f"residual  {residual}")
        print_line(f"regions   {target / 'regions.png'}")
        print_line(f"picture   {target / 'preview.png'}")
        print_line(RESTORED)
    return {
        "restored": str(target / result.main_file),
        "residual": str(residual),
        "quality": {"unit": result.recipe.unit, **result.quality.as_json()},
    }


def _finer(result: "FinerResult", target: Path, *, quiet: bool) -> dict[str, Any]:
    difference = target / result.difference_file
    if not quiet:
        for line in result.lines():
            print_line(line)
        print_line(f"restored    {target / result.main_file}")
        print_line(f"difference  {difference}")
        print_line(f"picture     {target / 'preview.png'}")
        print_line(RESTORED)
    return {
        "restored": str(target / result.main_file),
        "difference": str(difference),
        "grid": result.manifest["grid"],
        **result.statistics(),
    }


def _rows(result: "LabelResult") -> list[tuple[str, str, str, str]]:
    """One row per structure; what has no side stands in the first column of numbers, as a whole."""
    by_id = {structure.id: structure for structure in result.statistics}
    rows: dict[str, dict[str | None, Structure]] = {}
    for label in result.labels:
        rows.setdefault(label.structure, {})[label.side] = by_id[label.id]
    lines = []
    for name, sides in rows.items():
        whole = sides.get(None)
        cells = [_ml(sides.get("right")), _ml(sides.get("left"))] if whole is None else [_ml(whole), "both"]
        remarks = sorted({s.status for s in sides.values()} - {"complete"})
        lines.append((name, cells[0], cells[1], ", ".join(remarks)))
    return lines


def _ml(structure: Structure | None) -> str:
    if structure is None:
        return ""
    return "not assessed" if structure.ml is None else f"{structure.ml:.2f}"
