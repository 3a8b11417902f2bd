"""Frames of one picture file as a case: which ones, and one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.io.picture_frames import chosen_frames, count_frames, read_frames
from medseg.picture import Picture
from medseg_pipelines.case import InputRecord, hash_file
from medseg_pipelines.picture_case import PictureCase


@dataclass(frozen=True, kw_only=True)
class FramesCase:
    """Some frames of a file with its record.

    Attributes:
        path: Of the file.
        record: What a manifest says of it.
        wanted: As the user wrote it.
        chosen: Numbers from 0.
        count: Frames of the file.
    """

    path: Path
    record: InputRecord
    wanted: str
    chosen: range
    count: int

    def cases(self, memory_limit: int | None = None) -> Iterator[tuple[int, PictureCase]]:
        """Numbers and frames, one after the other; errors as of `read_frames`."""
        for number, picture in zip(self.chosen, self._pictures(memory_limit), strict=True):
            yield number, PictureCase(picture=picture, record=self.record)

    def first(self) -> PictureCase:
        """The first one, which stands for all where a model is chosen or a run is planned."""
        return next(case for _, case in self.cases())

    def _pictures(self, memory_limit: int | None) -> Iterator[Picture]:
        return read_frames(self.path, self.chosen, memory_limit=memory_limit)

    def facts(self, size: tuple[int, int]) -> dict[str, Any]:
        """What a manifest says of the input."""
        told = {"kind": "frames", "frames": self.wanted, "of": self.count, "shape": list(size)}
        return {**asdict(self.record), **told}


def read_frames_case(path: Path, wanted: str) -> FramesCase:
    """Frames of a file, not read yet.

    Args:
        path: A picture file that is no DICOM.
        wanted: "all", "7" or "10-19", from 0.

    Raises:
        InputRefused: The file cannot be used.
        UsageError: There is no such file or frame.
    """
    count = count_frames(path)
    digest, size = hash_file(path)
    record = InputRecord(name=path.name, size=size, sha256=digest)
    return FramesCase(path=path, record=record, wanted=wanted, chosen=chosen_frames(wanted, count), count=count)
