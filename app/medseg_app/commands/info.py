"""`medseg info`: what a file is, from its header."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medseg import io
from medseg.errors import InputRefused
from medseg_app.output import print_json, print_line, size_text


def run(path: Path, *, json: bool) -> int:
    """Describe one file; returns the exit code, that of a refusal where `medseg infer` would refuse the file."""
    found = io.inspect(path)
    if json:
        print_json(_plain(found))
    else:
        for line in _lines(found):
            print_line(line)
    return 0 if found.readable else InputRefused.exit_code


def _plain(found: io.Inspection) -> dict[str, Any]:
    content = {key: value for key, value in vars(found).items() if key not in ("affine", "problems")}
    content["affine"] = None if found.affine is None else found.affine.tolist()
    content["readable"] = found.readable
    content["problems"] = [asdict(problem) for problem in found.problems]
    return content


def _lines(found: io.Inspection) -> list[str]:
    rows = {
        "format": found.format,
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
    lines += [f"  {problem.severity:<12} {problem.text}" for problem in found.problems]
    return lines if found.problems else [*lines, "  no problems found in the header"]


def _covers(shape: tuple[int, ...], spacing: tuple[float, float, float]) -> str:
    return " x ".join(f"{n * step:.0f}" for n, step in zip(shape, spacing, strict=False)) + " mm"


def _scaling(scaling: tuple[float, float] | None) -> str:
    if scaling is None or scaling == (1.0, 0.0):
        return ""
    return f", stored times {scaling[0]:g} plus {scaling[1]:g}"
