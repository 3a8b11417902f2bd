"""Small pictures of what was brought: the middle slice in the window of the preview, without a word in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medseg.errors import InputRefused
from medseg.io import SeriesSummary
from medseg.picture import Picture
from medseg.volume import Volume
from medseg_pipelines.drawing import display_range, extent, grey_picture
from medseg_pipelines.planes import Crosshair, Plane, three_planes
from medseg_pipelines.support import usual_plane

SIDE = 96  # px, of the longer edge
_MOST_PIXELS = 1 << 24  # of a slice that is not known to be usable; larger ones cost more than a look is worth


def of_volume(volume: Volume, path: Path) -> None:
    """Write the middle slice of a volume, across its coarsest axis, as PNG."""
    world = volume.grid.axes[0]
    sizes = [volume.shape[world.index(axis)] for axis in range(3)]
    middle = Crosshair(tuple(size // 2 for size in sizes), tuple(slice(0, size) for size in sizes))
    nothing = Volume(np.broadcast_to(np.uint8(0), volume.shape), volume.affine, "labels")
    wanted = usual_plane(volume)
    _write(next(plane for plane in three_planes(volume, nothing, middle) if plane.name == wanted), path)


def of_picture(picture: Picture, path: Path) -> None:
    """Write a picture as PNG, smaller."""
    small = Image.fromarray(picture.eight_bit())
    small.thumbnail((SIDE, SIDE))
    small.save(path)


def of_series(series: Sequence[SeriesSummary], folder: Path) -> dict[int, str]:
    """Write one PNG per DICOM series, of one slice each as it was stored; no other pixels are read.

    Args:
        series: What `medseg.io.inspect` found.
        folder: Where to.

    Returns:
        Number of the series to the name of its file; those without pixels are absent.
    """
    from medseg.io.dicom.pixels import read_plane  # pydicom is for those who bring DICOM

    names = {}
    for found in series:
        middle = found.middle
        if middle is None or middle.instance.rows * middle.instance.columns > _MOST_PIXELS:
            continue
        try:
            values = np.nan_to_num(read_plane(middle).astype(np.float32), posinf=0.0, neginf=0.0)
        except InputRefused:  # a slice that cannot be decoded is told of when the series is chosen
            continue
        names[found.number] = f"series{found.number}.png"
        _write(_as_stored(values, middle.spacing), folder / names[found.number])
    return names


def _as_stored(values: np.ndarray, spacing: tuple[float, float] | None) -> Plane:
    """One slice, without its place in the patient."""
    usable = spacing if spacing and min(spacing) > 0 else (1.0, 1.0)
    nothing = np.zeros(values.shape, np.uint8)
    return Plane(name="", position=0.0, image=values, labels=nothing, spacing=usable, letters=("", "", "", ""))


def _write(plane: Plane, path: Path) -> None:
    scale = SIDE / max(extent(plane))
    width, height = (max(1, round(scale * length)) for length in extent(plane))
    grey_picture(plane, (width, height), *display_range([plane])).convert("L").save(path)
