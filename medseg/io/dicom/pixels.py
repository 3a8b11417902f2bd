"""Frames to modality values, slice by slice: only the result and one frame are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import BinaryIO

import numpy as np

from medseg.errors import InputRefused
from medseg.io.checks import scaled_dtype
from medseg.io.dicom import decoding
from medseg.io.dicom.instances import Instance, Plane
from medseg.io.stream import incomplete


def value_dtype(planes: Sequence[Plane]) -> np.dtype:
    """The smallest type that holds the modality values of most files like these: whole numbers stay whole."""
    stored = planes[0].instance.dtype
    if all(p.instance.dtype == stored and (p.slope, p.intercept, p.table) == (1.0, 0.0, False) for p in planes):
        return stored
    largest = max((p.instance.dtype for p in planes), key=lambda dtype: dtype.itemsize)
    if any(p.table or p.instance.dtype.kind == "f" or p.slope % 1 or p.intercept % 1 for p in planes):
        return scaled_dtype(largest)
    return np.dtype(np.int16 if largest.itemsize <= 2 else np.float64)


def read_stack(planes: Sequence[Plane]) -> np.ndarray:
    """(X, Y, Z) modality values of the slices in their order.

    Raises:
        InputRefused: A slice cannot be decoded; the message names it.
    """
    first = planes[0].instance
    stack = np.empty((len(planes), first.rows, first.columns), value_dtype(planes))
    by_file = sorted(range(len(planes)), key=lambda index: (id(planes[index].instance), planes[index].frame))
    for _, group in groupby(by_file, key=lambda index: id(planes[index].instance)):
        stack = _read_file(planes, list(group), stack)
    return stack.transpose()


def read_plane(plane: Plane) -> np.ndarray:
    """(rows, columns) modality values of one slice.

    Raises:
        InputRefused: As for `read_stack`.
    """
    return read_stack([plane])[..., 0].transpose()


def same_pixels(plane: Plane, other: Plane) -> bool:
    """Whether two slices hold equal values."""
    return np.array_equal(read_plane(plane), read_plane(other))


def _read_file(planes: Sequence[Plane], indices: list[int], stack: np.ndarray) -> np.ndarray:
    """The stack with the slices that lie in one file filled in; in a wider type where they need one."""

    def take(place: int, values: np.ndarray) -> None:
        nonlocal stack
        plane = planes[indices[place]]
        if values.shape != stack.shape[1:]:
            raise InputRefused(f"expected {stack.shape[1:]} pixels, got {values.shape}; export the file again")
        moved = _modality_values(values, plane, stack.dtype)
        if stack.dtype == np.int16 and moved.dtype != np.int16 and not _within(moved, stack.dtype):
            stack = stack.astype(np.int32)  # a few scanners use all 16 bits and an intercept
        stack[indices[place]] = moved

    instance = planes[indices[0]].instance
    frames = [planes[index].frame for index in indices]
    try:
        with instance.file.open() as stream:
            if instance.plain_at is not None:
                _read_plain(stream, instance, frames, take)
            else:
                decoding.read_frames(stream, frames, take)
    except InputRefused as refusal:
        raise InputRefused(f"{planes[indices[0]].name}: {refusal}") from None
    return stack


def _read_plain(
    stream: BinaryIO, instance: Instance, frames: Sequence[int], take: Callable[[int, np.ndarray], None]
) -> None:
    """As `decoding.read_frames`, for pixels that are stored as they are: a third of the time of a whole series."""
    dtype = instance.dtype.newbyteorder("<")
    count = instance.rows * instance.columns
    unused = dtype.itemsize * 8 - instance.bits if dtype.kind in "iu" else 0
    for place, frame in enumerate(frames):
        stream.seek((instance.plain_at or 0) + frame * count * dtype.itemsize)
        content = stream.read(count * dtype.itemsize)
        if len(content) < count * dtype.itemsize:
            raise InputRefused(incomplete(count * dtype.itemsize, len(content)))
        values = np.frombuffer(content, dtype).astype(instance.dtype, copy=False)
        if 0 < unused < dtype.itemsize * 8:  # other things may be kept there; shifting back also brings the sign
            values = (values << unused) >> unused
        take(place, values.reshape(instance.rows, instance.columns))


def _modality_values(values: np.ndarray, plane: Plane, wanted: np.dtype) -> np.ndarray:
    """Of one slice: through its table, or slope and intercept; computed in float64 where they are not whole."""
    if plane.table:
        with plane.instance.file.open() as stream:
            return decoding.through_table(stream, values)
    if (plane.slope, plane.intercept) == (1.0, 0.0):
        return values
    if wanted.kind == "f":
        return values * plane.slope + plane.intercept
    return values.astype(np.int32) * int(plane.slope) + int(plane.intercept)


def _within(values: np.ndarray, dtype: np.dtype) -> bool:
    limits = np.iinfo(dtype)
    return bool(limits.min <= values.min() and values.max() <= limits.max)
