"""Copies of volumes for the browser: NIfTI of a bounded size on the same place in the patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from medseg import io
from medseg.volume import Volume
from medseg_pipelines.results import Result

VIEWS = "view"  # within a result: what the browser shows
MOST_VOXELS = 24_000_000  # a browser takes 4 bytes of texture for each, beside what it draws with


def reduction(shape: tuple[int, ...]) -> int:
    """Every how manyth voxel is shown."""
    step = 1
    while np.prod([-(-size // step) for size in shape]) > MOST_VOXELS:
        step += 1
    return step


def write_view(volume: Volume, path: Path) -> int:
    """Write what the browser shows of a volume; gives the reduction.

    Args:
        volume: Grey values or labels.
        path: A `.nii` file: packing it would take longer than sending it.
    """
    step = reduction(volume.shape)
    voxels, affine = volume.voxels[::step, ::step, ::step], volume.affine.copy()
    affine[:3, :3] *= step
    if voxels.dtype.kind == "f" or voxels.dtype.itemsize > 4:
        voxels = voxels.astype(np.float32)
    if voxels.dtype == bool:
        voxels = voxels.astype(np.uint8)
    io.write(Volume(np.ascontiguousarray(voxels), affine, kind=volume.kind), path)
    return step


def extras(result: Result, formats: Sequence[str]) -> Callable[[Path], None]:
    """What is written into the result folder of a volume beside the result: copies to look at, and DICOM objects.

    Args:
        result: Of a model, corrected or not.
        formats: Of the DICOM objects.
    """

    def write(folder: Path) -> None:
        (folder / VIEWS).mkdir()
        write_view(result.volume, folder / VIEWS / "main.nii")
        for name in ("residual", "difference", "regions", "doubt"):
            volume = getattr(result, name, None)
            if isinstance(volume, Volume):
                write_view(volume, folder / VIEWS / f"{name}.nii")
        if formats:
            from medseg_pipelines.dicom_out.writing import check_source, writer

            check_source(result.image)
            writer(result, formats)(folder)

    return write
