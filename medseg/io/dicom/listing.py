"""Which series lie behind a path; several are listed and chosen from, never mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import InputRefused, UsageError
from medseg.io.dicom.files import File, find_files, looks_like_dicom
from medseg.io.dicom.instances import Instance, Plane, read_instance
from medseg.io.header import Problem
from medseg.io.stream import content as stream_content

_DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR met among the files
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Found:
    """One series.

    Attributes:
        number: Its place in the list, from 1; what a user chooses by.
        instances: Its files.
        planes: All frames of all files.
    """

    number: int
    instances: tuple[Instance, ...]
    planes: tuple[Plane, ...]

    @property
    def uid(self) -> str:
        """Series instance UID."""
        return self.instances[0].series

    @property
    def modality(self) -> str:
        """As stated, for example "CT"."""
        return self.instances[0].modality or "?"

    @property
    def localiser(self) -> bool:
        """Whether all images were taken to plan others."""
        return all(instance.localiser for instance in self.instances)

    @property
    def flaw(self) -> str | None:
        """Why none of its files can become part of a volume; None where one can."""
        flaws = [instance.flaw for instance in self.instances]
        return flaws[0] if all(flaws) else None

    @property
    def words(self) -> str:
        """What it is, in short."""
        kind = "localiser, " if self.localiser else "not an image, " if not self.planes else ""
        count = len(self.planes) or len(self.instances)
        return f"{self.number}: {self.modality}, {kind}{count} image{'s' * (count > 1)}"


@dataclass(frozen=True, eq=False)
class Listing:
    """All series behind a path, and what was left out."""

    series: tuple[Found, ...]
    problems: tuple[Problem, ...]


def list_series(path: Path) -> Listing:
    """The series behind a path, by study and series number.

    Raises:
        InputRefused: There is no DICOM there, or an archive cannot be used.
    """
    files, problems = find_files(path)
    groups: dict[tuple[str, str], list[tuple[Instance, list[Plane]]]] = {}
    strange, damaged = 0, []
    for file in files:
        try:
            with file.open() as stream:
                known = looks_like_dicom(stream)
            if not known:
                strange += 1
                continue
            found = read_instance(file)
        except InputRefused as refusal:
            damaged.append(str(refusal))
            continue
        if found[0].sop_class != _DIRECTORY:
            groups.setdefault((found[0].study, found[0].series), []).append(found)
    if not groups:
        raise InputRefused(damaged[0] if damaged else f"expected DICOM, got {_other(files)}")
    if strange:
        problems.append(Problem("note", f"{strange} files that are not DICOM were left out"))
    if damaged:
        problems.append(Problem("warning", f"{len(damaged)} damaged files were left out; slices may be missing"))
    return Listing(_ordered(list(groups.values())), tuple(problems))


def choose(listing: Listing, wanted: str | None) -> tuple[Found, tuple[Problem, ...]]:
    """The series that was asked for, or the only one that is no localiser and holds images.

    Args:
        listing: What there is.
        wanted: A number from the list, or a series instance UID.

    Raises:
        InputRefused: Nothing was asked for, and there are several.
        UsageError: There is no such series.
    """
    if wanted is not None:
        chosen = [found for found in listing.series if wanted in (str(found.number), found.uid)]
        if len(chosen) == 1:
            return chosen[0], ()
        raise UsageError(f"series must be one of {_names(listing.series)}, got '{wanted}'; `medseg info` lists them")
    usable = [found for found in listing.series if not found.localiser and found.planes and not found.flaw]
    if len(listing.series) == 1 or len(usable) == 1:
        chosen_one = usable[0] if usable else listing.series[0]
        left = [found for found in listing.series if found is not chosen_one]
        notes = (Problem("note", f"left out: {_names(left)}"),) if left else ()
        return chosen_one, notes
    raise InputRefused(
        f"expected one series, got {len(listing.series)} ({_names(listing.series)}); choose one with --series NUMBER"
    )


def _names(series: Sequence[Found]) -> str:
    shown = "; ".join(found.words for found in series[:_SHOWN])
    return shown if len(series) <= _SHOWN else f"{shown}; and {len(series) - _SHOWN} more"


def _other(files: Sequence[File]) -> str:
    if not files:
        return "no files; give the folder of a series"
    with files[0].open() as stream:
        first = stream.read(512)
    return (
        stream_content(first) if len(files) == 1 else f"{len(files)} files of other kinds; give the folder of a series"
    )


def _ordered(groups: list[list[tuple[Instance, list[Plane]]]]) -> tuple[Found, ...]:
    groups.sort(key=lambda group: (group[0][0].study, group[0][0].series_number or 0, group[0][0].series))
    return tuple(
        Found(
            number,
            tuple(instance for instance, _ in group),
            tuple(plane for _, planes in group for plane in planes),
        )
        for number, group in enumerate(groups, start=1)
    )
