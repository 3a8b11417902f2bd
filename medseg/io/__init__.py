"""Files and image objects to volumes and back: the format follows from the name and must agree with the content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medseg.errors import InputRefused, UsageError
from medseg.io import stream
from medseg.io.checks import decoded_bytes, judge
from medseg.io.header import Header, Inspection, Problem, SeriesSummary
from medseg.io.series import is_series
from medseg.io.voxels import finished
from medseg.volume import Grid, Kind, Volume

__all__ = [
    "Inspection",
    "Problem",
    "SeriesSummary",
    "from_nibabel",
    "from_sitk",
    "inspect",
    "read",
    "to_nibabel",
    "to_sitk",
    "write",
]

_NIFTI = (".nii", ".nii.gz")
_PAIR = (".hdr", ".img")
_MGH = (".mgz", ".mgh")
_ITK = (".nrrd", ".mha", ".mhd")


def read(
    path: str | PathLike[str],
    *,
    time_point: int | None = None,
    kind: Kind = "image",
    memory_limit: int | None = None,
    series: str | None = None,
    correct_geometry: bool = False,
) -> Volume:
    """The volume in a file: `.nii`, `.nii.gz`, `.hdr`/`.img`, `.mgz`, `.mgh`, `.nrrd`, `.mha`, `.mhd`; or in DICOM.

    DICOM may come as a folder, a zip archive, a DICOMDIR, or one file.

    Args:
        path: The file or folder.
        time_point: Index from 0 into the fourth axis; needed where that axis is longer than 1.
        kind: "labels" rounds to whole numbers and allows one value everywhere.
        memory_limit: Bytes that the decoded voxels may take; by default half of the machine's memory.
        series: Which DICOM series, by its number in `inspect(path).series` or its UID; needed where there are several.
        correct_geometry: Resample tilted, uneven or missing DICOM slices to a regular grid, guess positions not stated.

    Raises:
        InputRefused: The file is damaged, no scalar volume, without usable geometry, constant, or too large.
        UsageError: There is no such file, series or time point.
    """
    path = Path(path)
    with _named(path):
        if _is_dicom(path):
            return _read_series(path, time_point, kind, memory_limit, series, correct=correct_geometry)
        reader = _reader(path)
        header = reader.read_header(path)
        affine, notes, frame = _accept(header, time_point, memory_limit)
        return _volume(reader.read_voxels(path, header, frame), header, affine, kind, notes)


def inspect(
    path: str | PathLike[str],
    *,
    memory_limit: int | None = None,
    series: str | None = None,
    correct_geometry: bool = False,
) -> Inspection:
    """What the header says and what is wrong with it; a bad file gives problems instead of an exception.

    Voxels are not decoded, so a constant image or NaN voxels are found by `read` only.

    Args:
        path: The file or folder.
        memory_limit: Bytes that the decoded voxels may take; by default half of the machine's memory.
        series: As for `read`.
        correct_geometry: As for `read`.

    Raises:
        UsageError: There is no such file or series.
    """
    path = Path(path)
    if _is_dicom(path):
        from medseg.io import dicom

        return dicom.inspect_series(path, series=series, correct=correct_geometry, memory_limit=memory_limit)
    try:
        header = _reader(path).read_header(path)
    except InputRefused as refusal:
        return Inspection(path.name, problems=(Problem("error", str(refusal)),))
    affine, problems = judge(header, time_point=None, memory_limit=memory_limit)
    source = header.source
    x, y, z = (*header.shape, 1, 1)[:3]
    grid = None if affine is None or len(header.shape) < 3 else Grid((x, y, z), affine)
    return Inspection(
        path.name,
        format=source.format,
        shape=source.shape,
        spacing=grid and grid.spacing,
        orientation=grid and grid.orientation,
        affine=grid and grid.affine,
        dtype="RGB" if header.dtype.fields else header.dtype.name,
        byte_order=source.byte_order,
        scaling=(source.slope, source.intercept),
        units=source.units,
        qform_code=source.qform_code,
        sform_code=source.sform_code,
        memory=decoded_bytes(header),
        problems=tuple(sorted(problems, key=lambda problem: ("error", "warning", "note").index(problem.severity))),
    )


def write(volume: Volume, path: str | PathLike[str], *, like: Volume | None = None) -> None:
    """Write a volume under a temporary name and rename it; an existing file is replaced.

    Args:
        volume: What to write; labels are stored in the smallest integer type that holds them.
        path: `.nii`, `.nii.gz`, `.nrrd`, `.mha` or `.mhd`.
        like: Whose units, form codes and matrices a NIfTI file repeats; by default the volume's own source.

    Raises:
        UsageError: The name has none of these endings, or the folder does not exist.
    """
    path = Path(path)
    ending = _ending(path)
    if ending not in (*_NIFTI, *_ITK):
        raise UsageError(f"{path.name}: the name must end in {', '.join((*_NIFTI, *_ITK))}; choose one of them")
    if not path.parent.is_dir():
        raise UsageError(f"{path.name}: the folder to write to must exist; create it first")
    with stream.replacing(path) as draft:
        _writer(ending).write(volume, draft, like)


def from_nibabel(image: Any, *, kind: Kind = "image", time_point: int | None = None) -> Volume:
    """A nibabel image as a volume, under the same checks as a file.

    Args:
        image: Any spatial image of nibabel.
        kind: As for `read`.
        time_point: As for `read`.

    Raises:
        InputRefused: No scalar volume, without usable geometry, or constant.
        UsageError: There is no such time point.
    """
    return _from_image(_writer(".nii"), image, kind, time_point)


def to_nibabel(volume: Volume, *, like: Volume | None = None) -> Any:
    """A volume as the nibabel image that `write` would store."""
    return _writer(".nii").to_nibabel(volume, like=like)


def from_sitk(image: Any, *, kind: Kind = "image", time_point: int | None = None) -> Volume:
    """A SimpleITK image as a volume, under the same checks as a file.

    Args:
        image: A SimpleITK image of three axes, or of four with a time point.
        kind: As for `read`.
        time_point: As for `read`.

    Raises:
        InputRefused: No scalar volume, without usable geometry, or constant.
        UsageError: There is no such time point.
    """
    return _from_image(_writer(".nrrd"), image, kind, time_point)


def to_sitk(volume: Volume) -> Any:
    """A volume as a SimpleITK image: LPS, the same axes in the same order."""
    return _writer(".nrrd").to_sitk(volume)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name, without its folder, in front of every refusal."""
    try:
        yield
    except InputRefused as refusal:
        raise InputRefused(f"{path.name}: {refusal}") from None


def _ending(path: Path) -> str:
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def _is_dicom(path: Path) -> bool:
    """Whether the path, which must be there and readable, would hold DICOM."""
    if not path.exists():
        raise UsageError(f"{path.name}: no such file; check the path")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{path.name}: the file must be readable, got no permission; change its mode or owner")
    return is_series(path)


def _read_series(
    path: Path, time_point: int | None, kind: Kind, memory_limit: int | None, series: str | None, *, correct: bool
) -> Volume:
    from medseg.io import dicom  # pydicom takes longer to load than most volumes to read

    opened, header = dicom.open_series(path, series=series, correct=correct)
    affine, notes, frame = _accept(header, time_point, memory_limit)
    source = replace(header.source, series=opened.at_time(frame))
    return _volume(opened.read_voxels(frame), replace(header, source=source), affine, kind, notes)


def _reader(path: Path) -> ModuleType:
    """The module that reads what this name stands for."""
    ending = _ending(path)
    known = (*_NIFTI, *_PAIR, *_MGH, *_ITK)
    if ending not in known:
        raise InputRefused(f"expected a name that ends in {', '.join(known)}; convert or rename the file")
    return _module(ending)


def _writer(ending: str) -> ModuleType:
    """The module that writes files of a format, and knows the image objects of the library that does it."""
    if ending in _ITK:
        from medseg.io import itk

        return itk
    from medseg.io import nibabel_images

    return nibabel_images


def _module(ending: str) -> ModuleType:
    """The module that reads a format, imported when the format is met: SimpleITK costs longer than many a header."""
    if ending in _ITK:
        from medseg.io import itk

        return itk
    if ending in _MGH:
        from medseg.io import mgh

        return mgh
    from medseg.io import nifti

    return nifti


def _accept(
    header: Header, time_point: int | None, memory_limit: int | None
) -> tuple[np.ndarray, tuple[str, ...], int | None]:
    """The affine to use, the notes for the volume and the frame to decode, or a refusal."""
    frames = header.shape[3] if len(header.shape) > 3 else 1
    if time_point is not None and not 0 <= time_point < frames:
        raise UsageError(
            f"time point must be from 0 to {frames - 1} in this file, got {time_point}; choose one of them"
        )
    affine, problems = judge(header, time_point=time_point, memory_limit=memory_limit)
    errors = [problem.text for problem in problems if problem.severity == "error"]
    if affine is None or errors:  # no affine is an error as well
        raise InputRefused(errors[0])
    return affine, tuple(problem.text for problem in problems), time_point if frames > 1 else None


def _volume(values: np.ndarray, header: Header, affine: np.ndarray, kind: Kind, notes: tuple[str, ...]) -> Volume:
    voxels, changes = finished(values, kind)
    return Volume(voxels, affine, kind, replace(header.source, affine=np.array(affine)), (*notes, *changes))


def _from_image(module: ModuleType, image: Any, kind: Kind, time_point: int | None) -> Volume:
    header = module.image_header(image)
    # The voxels are in memory already, or as good as: the limit guards files from elsewhere.
    affine, notes, frame = _accept(header, time_point, memory_limit=2**63)
    return _volume(module.image_voxels(image, frame), header, affine, kind, notes)
