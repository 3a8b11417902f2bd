"""An input as it came: the volume, and the facts by which a later run recognises it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from medseg import io
from medseg.volume import Volume

_CHUNK = 1 << 22
_SPLIT = (".hdr", ".img", ".mhd")  # header and voxels in two files: the hash of one would say nothing of the other


@dataclass(frozen=True, kw_only=True)
class InputRecord:
    """What the manifest says of the input: no path, no header text."""

    name: str | None  # file name without its folder; None for an image that came from memory
    size: int  # bytes of the file or files, or of the voxels
    sha256: str  # of the file; of voxels and affine for what came from memory, from two files or from DICOM
    time_point: int | None = None
    series: str | None = None  # series instance UID
    correct_geometry: bool = False  # the slices were resampled if they had to be


@dataclass(frozen=True, kw_only=True)
class Case:
    """One subject's volume with its record."""

    volume: Volume
    record: InputRecord
    seconds: float = 0.0  # that reading took


def read_case(
    image: Any,
    *,
    time_point: int | None = None,
    memory_limit: int | None = None,
    series: str | None = None,
    correct_geometry: bool = False,
) -> Case:
    """A case from a path, a Volume, a nibabel or a SimpleITK image.

    Args:
        image: What to segment.
        time_point: Index from 0 into the fourth axis, where there is one.
        memory_limit: Bytes that the decoded voxels of a file may take.
        series: Which of several DICOM series behind a path, by number or UID.
        correct_geometry: Resample tilted or uneven DICOM slices to a regular grid.

    Raises:
        InputRefused: The image cannot be used.
        UsageError: There is no such file, series or time point.
        TypeError: `image` is none of these.
    """
    if isinstance(image, Case):
        return image
    started = monotonic()
    if isinstance(image, (str, Path)):
        options = {"series": series, "correct_geometry": correct_geometry}
        volume = io.read(Path(image), time_point=time_point, memory_limit=memory_limit, **options)
        return Case(volume=volume, record=_record(Path(image), volume, time_point, correct=correct_geometry))
    volume = image if isinstance(image, Volume) else _from_memory(image, time_point)
    record = InputRecord(name=None, size=volume.voxels.nbytes, sha256=hash_volume(volume), time_point=time_point)
    return Case(volume=volume, record=record, seconds=monotonic() - started)


def _record(path: Path, volume: Volume, time_point: int | None, *, correct: bool) -> InputRecord:
    """What is said of a file, or of the files of a DICOM series."""
    series = volume.source.series if volume.source else None
    if series is not None:
        return InputRecord(
            name=path.name,
            size=series.bytes_on_disk,
            sha256=hash_volume(volume),
            time_point=time_point,
            series=series.uid,
            correct_geometry=correct,
        )
    digest, size = hash_file(path)
    if path.suffix.lower() in _SPLIT:
        digest = hash_volume(volume)
    return InputRecord(name=path.name, size=size, sha256=digest, time_point=time_point)


def _from_memory(image: Any, time_point: int | None) -> Volume:
    package = type(image).__module__.split(".")[0]  # asked by name: neither package is loaded only to ask
    if package == "nibabel":
        return io.from_nibabel(image, time_point=time_point)
    if package == "SimpleITK":
        return io.from_sitk(image, time_point=time_point)
    raise TypeError(f"image must be a path, a Volume, a nibabel or a SimpleITK image, got {type(image).__name__}")


def hash_file(path: Path) -> tuple[str, int]:
    """The sha256 and the size in bytes of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def hash_volume(volume: Volume) -> str:
    """The sha256 of type, shape, affine and voxels: equal only for volumes that are equal bit for bit."""
    digest = hashlib.sha256(f"{volume.voxels.dtype.str}{volume.shape}".encode())
    digest.update(np.ascontiguousarray(volume.affine).tobytes())
    for slab in volume.voxels:
        digest.update(np.ascontiguousarray(slab).tobytes())
    return digest.hexdigest()
