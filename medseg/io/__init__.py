"""Files and image objects to volumes and back: the format follows from the name and must agree with the content."""

from __future__ import annotations

from os import PathLike
from typing import Any

from medseg.io.header import Inspection, Problem
from medseg.volume import Kind, Volume

__all__ = ["Inspection", "Problem", "from_nibabel", "from_sitk", "inspect", "read", "to_nibabel", "to_sitk", "write"]


def read(
    path: str | PathLike[str],
    *,
    time_point: int | None = None,
    kind: Kind = "image",
    memory_limit: int | None = None,
) -> Volume:
    """The volume in a file: `.nii`, `.nii.gz`, `.hdr`/`.img`, `.mgz`, `.mgh`, `.nrrd`, `.mha`, `.mhd`.

    Args:
        path: The file.
        time_point: Index from 0 into the fourth axis; needed where that axis is longer than 1.
        kind: "labels" rounds to whole numbers and allows one value everywhere.
        memory_limit: Bytes that the decoded voxels may take; by default half of the machine's memory.

    Raises:
        InputRefused: The file is damaged, no scalar volume, without usable geometry, constant, or too large.
        UsageError: There is no such file, or no such time point.
    """
    raise NotImplementedError


def inspect(path: str | PathLike[str], *, memory_limit: int | None = None) -> Inspection:
    """What the header says and what is wrong with it; a bad file gives problems instead of an exception.

    Raises:
        UsageError: There is no such file.
    """
    raise NotImplementedError


def write(volume: Volume, path: str | PathLike[str], *, like: Volume | None = None) -> None:
    """Write a volume under a temporary name and rename it; an existing file is replaced.

    Args:
        volume: What to write; labels are stored in the smallest integer type that holds them.
        path: `.nii`, `.nii.gz`, `.nrrd`, `.mha` or `.mhd`.
        like: Whose units, form codes and matrices a NIfTI file repeats; by default the volume's own source.

    Raises:
        UsageError: The name has none of these endings, or the folder does not exist.
    """
    raise NotImplementedError


def from_nibabel(image: Any, *, kind: Kind = "image", time_point: int | None = None) -> Volume:
    """A nibabel image as a volume, under the same checks as a file."""
    raise NotImplementedError


def to_nibabel(volume: Volume, *, like: Volume | None = None) -> Any:
    """A volume as the nibabel image that `write` would store."""
    raise NotImplementedError


def from_sitk(image: Any, *, kind: Kind = "image", time_point: int | None = None) -> Volume:
    """A SimpleITK image as a volume, under the same checks as a file."""
    raise NotImplementedError


def to_sitk(volume: Volume) -> Any:
    """A volume as a SimpleITK image (LPS, axes in the order of ITK)."""
    raise NotImplementedError
