"""What is measured on a label map: ml per structure, and whether the image shows the whole of it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medseg_pipelines.recipe import Label

Status = Literal["complete", "cut", "not assessed", "not found"]

ROUNDING = "ml are rounded to 0.01; the voxel count is exact"

STATUS_MEANING: dict[Status, str] = {
    "complete": "the structure lies within the image",
    "cut": "the structure touches the image edge: the true volume is at least the one given",
    "not assessed": "nothing was segmented, and the image cuts its surroundings: no statement",
    "not found": "nothing was segmented although the image shows its surroundings",
}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """One label in numbers; `ml` is None where nothing can be said."""

    id: int
    name: str
    side: str | None
    voxels: int
    ml: float | None
    touches_border: bool
    status: Status


def measure(labels: NDArray[np.integer], affine: NDArray[np.floating], names: Sequence[Label]) -> tuple[Structure, ...]:
    """The structures of a label map, in the order of `names`.

    Args:
        labels: Label ids on the grid of the image, (X, Y, Z).
        affine: Voxel index to mm, (4, 4).
        names: The labels that the model can give.
    """
    counts, border = _counts(labels), _on_border(labels)
    ml_per_voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000.0
    return tuple(_structure(label, counts.get(label.id, 0), border, ml_per_voxel) for label in names)


def _structure(label: Label, voxels: int, border: frozenset[int], ml_per_voxel: float) -> Structure:
    touches = label.id in border
    status = _status(found=voxels > 0, touches=touches, any_touches=bool(border))
    ml = None if status == "not assessed" else round(voxels * ml_per_voxel, 2)
    return Structure(
        id=label.id, name=label.name, side=label.side, voxels=voxels, ml=ml, touches_border=touches, status=status
    )


def _status(*, found: bool, touches: bool, any_touches: bool) -> Status:
    if found:
        return "cut" if touches else "complete"
    return "not assessed" if any_touches else "not found"


def _counts(labels: NDArray[np.integer]) -> dict[int, int]:
    """Voxels per label id, slab by slab: counting at once would hold the volume as 64 bit integers."""
    total: dict[int, int] = {}
    for slab in np.moveaxis(labels, -1, 0):
        counts = np.bincount(slab.ravel())
        for index in np.flatnonzero(counts):
            total[int(index)] = total.get(int(index), 0) + int(counts[index])
    return total


def _on_border(labels: NDArray[np.integer]) -> frozenset[int]:
    """The ids, but for the background, on any of the outer faces of the grid."""
    faces = [np.unique(labels.take(at, axis=axis)) for axis in range(labels.ndim) for at in (0, -1)]
    return frozenset(int(i) for i in np.unique(np.concatenate(faces)) if i)


def as_json(structures: Sequence[Structure]) -> dict[str, object]:
    """The content of `statistics.json`."""
    return {
        "unit": "ml",
        "rounding": ROUNDING,
        "status": STATUS_MEANING,
        "structures": [asdict(structure) for structure in structures],
    }


def as_csv(structures: Sequence[Structure]) -> str:
    """The content of `statistics.csv`: one row per structure, with a header row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "name", "side", "voxels", "ml", "touches_border", "status"])
    for s in structures:
        ml = "" if s.ml is None else f"{s.ml:.2f}"
        writer.writerow([s.id, s.name, s.side or "", s.voxels, ml, str(s.touches_border).lower(), s.status])
    return out.getvalue()
