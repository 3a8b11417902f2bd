"""Frames of a picture file that has several: pages of a TIFF, animated PNG and GIF, read and written one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, TiffImagePlugin

from medseg.errors import InputRefused, UsageError
from medseg.io.checks import default_memory_limit
from medseg.io.pictures import ENDINGS, frame_count, opened, picture_in, refuse_large, require_file
from medseg.picture import Picture


def chosen_frames(text: str, count: int) -> range:
    """The frames that a user names, numbered from 0: "all", "7" or "10-19".

    Args:
        text: What the user wrote.
        count: Frames of the file.

    Raises:
        UsageError: It is neither, or the file has no such frame.
    """
    if text == "all":
        return range(count)
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if match is None:
        raise UsageError(f"frames must be all, a number like 7 or a range like 10-19, got '{text}'")
    first, last = int(match[1]), int(match[2] or match[1])
    if not first <= last < count:
        raise UsageError(f"frames must rise within 0 to {count - 1}, the file has {count}, got '{text}'")
    return range(first, last + 1)


def count_frames(path: Path) -> int:
    """How many frames a picture file has.

    Raises:
        InputRefused: The file is empty, damaged, or not what its name says, or of a kind whose frames are not read.
        UsageError: There is no such file.
    """
    require_file(path)
    if path.suffix.lower() not in ENDINGS:
        raise InputRefused(f"{path.name}: frames are read of {', '.join(ENDINGS)}; export them as one TIFF")
    with opened(path) as image:
        return frame_count(image)


def read_frames(path: Path, chosen: range, *, memory_limit: int | None = None) -> Iterator[Picture]:
    """Frames one after the other; one of them is in memory at a time, and one may show a single value everywhere.

    Args:
        path: As for `read_picture`, but not DICOM.
        chosen: Their numbers, rising, from `chosen_frames`.
        memory_limit: Bytes that reading one may take; by default half of the machine's memory.

    Raises:
        InputRefused: As for `read_picture`; frames differ in size, as the levels of a slide do; or colours of 16 bit.
        UsageError: There is no such file.
    """
    with opened(path) as image:
        size = image.size
        for number in chosen:
            image.seek(number)
            if image.size != size:
                raise InputRefused(
                    f"{path.name}: frames must have one size, got {size[0]} x {size[1]} and {image.width} x "
                    f"{image.height} pixels, perhaps levels of one picture; export one of them"
                )
            refuse_large(path.name, *size, default_memory_limit() if memory_limit is None else memory_limit)
            yield picture_in(path, image, single=False)


class PageWriter:
    """Writes pages to a TIFF one at a time; see `pages_to`."""

    def __init__(self, writer: TiffImagePlugin.AppendingTiffWriter) -> None:
        self._writer = writer

    def add(self, page: Image.Image) -> None:
        """Write one more page."""
        page.save(self._writer, format="TIFF", compression="tiff_deflate")
        self._writer.newFrame()


@contextmanager
def pages_to(path: Path) -> Iterator[PageWriter]:
    """A new TIFF of several pages, of which memory holds one at a time."""
    with TiffImagePlugin.AppendingTiffWriter(str(path), new=True) as writer:
        yield PageWriter(writer)
