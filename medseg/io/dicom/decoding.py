"""pydicom behind a few functions: one header, the entries of a DICOMDIR, the pixels of some frames."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom import config
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID

from medseg.errors import InputRefused

# Values that break a rule of their type are common and are judged here; pydicom's own remarks quote them, and a name
# of a patient could be among them.
for _name in ("pydicom", "openjpeg", "pylibjpeg"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_PLAIN_TEXT = {"CS", "DS", "IS", "UI", "DA", "TM", "DT"}

_BROKEN = (
    *(AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, OverflowError),
    *(
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
        InvalidDicomError,
        BytesLengthException,
        struct.error,
        zlib.error,
    ),
)


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom reads and repeats values without judging them and without remarks."""
    settings = config.settings
    before = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = before


@contextmanager
def refusing(text: str) -> Iterator[None]:
    """What pydicom raises on damaged bytes becomes a refusal; its own words may quote the file and are dropped.

    Args:
        text: The sentence for the user.

    Raises:
        InputRefused: pydicom gave up.
    """
    try:
        with quiet():
            yield
    except _BROKEN:
        raise InputRefused(text) from None


def read_dataset(stream: BinaryIO, tags: Sequence[str] | None = None) -> Any:
    """The data set in front of the pixels; the stream stands at the pixels afterwards, unless they were deflated.

    Args:
        stream: Of the whole file, at its start.
        tags: Keywords of the elements to decode; all by default.

    Raises:
        InputRefused: The bytes are no DICOM, or end within the header.
    """
    with refusing("expected a DICOM header, got one that cannot be decoded; export the file again"):
        wanted: Any = None if tags is None else list(tags)
        return pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=wanted)


def elements(dataset: Any) -> dict[str, Any]:
    """The values of a data set by keyword; those that cannot be decoded, and private ones, are absent.

    Plain text and 16 bit numbers are decoded here: going through pydicom's element objects takes ten times as long,
    which is most of the time that a series of a thousand files costs.
    """
    found = {}
    for tag in dataset.keys():  # noqa: SIM118 - going through the data set itself would decode, and fail, as a whole
        keyword, kind = _known(int(tag))
        with suppress(*_BROKEN):
            raw = dataset.get_item(tag)
            if kind in _PLAIN_TEXT and isinstance(raw, RawDataElement) and raw.value is not None:
                found[keyword] = [part.strip(" \0") for part in raw.value.decode("latin-1").split("\\")]
            elif kind == "US" and isinstance(raw, RawDataElement) and raw.value:
                found[keyword] = int.from_bytes(raw.value[:2], "little" if raw.is_little_endian else "big")
            elif keyword:
                found[keyword] = dataset[tag].value
    return found


@lru_cache(maxsize=512)
def _known(tag: int) -> tuple[str, str]:
    """Keyword and value representation of an element by the dictionary; "" where it is not in there."""
    return (keyword_for_tag(tag), dictionary_VR(tag)) if dictionary_has_tag(tag) else ("", "")


def read_frames(stream: BinaryIO, indices: Sequence[int], take: Callable[[int, np.ndarray], None]) -> None:
    """Hand over (rows, columns) stored values of some frames, decompressed, signs and unused bits put right.

    Args:
        stream: Of the whole file, at its start.
        indices: Which frames, from 0.
        take: Gets the place in `indices` and the values; only one frame is in memory at a time.

    Raises:
        InputRefused: The pixels are missing, incomplete or damaged.
    """
    with refusing("pixels cannot be decoded: they are incomplete or damaged; export the file again"):
        for place, values in enumerate(iter_pixels(stream, indices=list(indices), raw=True)):
            take(place, values)


def decodable(syntax: str) -> bool:
    """Whether pixels of this transfer syntax can be decoded with what is installed."""
    try:
        return bool(get_decoder(UID(syntax)).is_available)
    except NotImplementedError:
        return False


def directory_entries(path: Path) -> list[tuple[str, ...]]:
    """The path, in its parts, of every file that a DICOMDIR lists.

    Raises:
        InputRefused: It is no DICOMDIR, or a part of a path is not a plain name.
    """
    with path.open("rb") as stream:
        found = read_dataset(stream)
    with refusing("expected a DICOMDIR, got one without records; give the folder instead"):
        ids = [record.ReferencedFileID for record in found.DirectoryRecordSequence if "ReferencedFileID" in record]
        entries = [(str(parts),) if isinstance(parts, str) else tuple(map(str, parts)) for parts in ids]
    for parts in entries:
        if any(part in ("", ".", "..") or set(part) & set("/\\:\0") for part in parts):
            raise InputRefused("expected a DICOMDIR that lists files beside it, got another place; give the folder")
    return entries


def through_table(stream: BinaryIO, values: np.ndarray) -> np.ndarray:
    """Stored values through the modality look-up table of their file.

    Raises:
        InputRefused: The table cannot be decoded.
    """
    found = read_dataset(stream, ["ModalityLUTSequence", "PixelRepresentation", "BitsStored", "BitsAllocated"])
    with refusing("the look-up table of the values cannot be decoded; export the file again"):
        return apply_modality_lut(values, found)
