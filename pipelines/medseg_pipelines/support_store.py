"""Support sets: cases that users outlined, kept so that a model can segment the next one by their example.

Each set is a folder below `support-sets` of `MEDSEG_HOME`. It holds the slices that show a structure, as grey values
from 0 to 1, and their outlines; nothing else of the images, and no file name. It appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medseg.errors import InputRefused, UsageError
from medseg_pipelines.folders import check_target, whole_folder
from medseg_pipelines.home import home
from medseg_pipelines.recipe import Label

MARK = "support.json"
SCHEMA = "medseg-support-1"
FEWEST, MOST = 3, 10  # cases
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

PLANES = ("sagittal", "coronal", "axial")  # by the axis of RAS that slices are stacked along
Plane = Literal["sagittal", "coronal", "axial"]
Kind = Literal["volumes", "pictures"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SupportCase:
    """What is kept of one case.

    Attributes:
        images: (n, rows, columns, channels), 0 to 1, float16; 1 channel or red, green and blue.
        labels: Label ids, (n, rows, columns), uint8.
        spacing: mm per row and per column; of pictures 1 and 1.
    """

    images: NDArray[np.float16]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float]

    @property
    def extent(self) -> float:
        """mm of the longer side."""
        rows, columns = self.labels.shape[1:]
        return max(rows * self.spacing[0], columns * self.spacing[1])

    def showing(self, label: int) -> list[int]:
        """Numbers of the slices that show a structure."""
        return np.flatnonzero((self.labels == label).any((1, 2))).tolist()

    def digest(self) -> str:
        """The sha256 of everything in it."""
        found = hashlib.sha256(repr((self.images.shape, self.spacing)).encode())
        for array in (self.images, self.labels):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


class SupportCard(BaseModel):
    """What a set says of itself, without its slices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["medseg-support-1"] = SCHEMA
    name: str
    kind: Kind
    modality: str | None  # as DICOM names it; None where nothing tells
    plane: Plane  # of volumes; pictures say axial and mean nothing by it
    channels: Literal[1, 3]
    labels: tuple[Label, ...] = Field(min_length=1)
    cases: int
    slices: int
    created: str
    case_sha256: tuple[str, ...]
    sha256: str  # of the cases and of what they are taken for

    @property
    def meant(self) -> str:
        """The structures in words."""
        return ", ".join(label.name for label in self.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class SupportSet:
    """A support set, its slices in memory.

    Attributes:
        card: What it says of itself.
        cases: Its slices.
        cache: Where what a network makes of them is kept; None for the folder that all sets of this machine share.
    """

    card: SupportCard
    cases: tuple[SupportCase, ...]
    cache: Path | None = None

    @property
    def extent(self) -> float:
        """mm of the longest side of all cases."""
        return max(case.extent for case in self.cases)

    @property
    def ids(self) -> tuple[int, ...]:
        """Of the structures."""
        return tuple(label.id for label in self.card.labels)


def support_sets_folder() -> Path:
    """Where sets are kept; need not be there yet."""
    return home() / "support-sets"


def save_support_set(
    name: str,
    cases: Sequence[SupportCase],
    labels: Sequence[Label],
    *,
    kind: Kind,
    modality: str | None,
    plane: Plane,
    overwrite: bool = False,
    folder: Path | None = None,
) -> SupportSet:
    """Keep a set under a name.

    Args:
        name: Letters, digits, dots, dashes.
        cases: 3 to 10, each with every label.
        labels: What the ids mean.
        kind: Of what the slices were.
        modality: As DICOM names it, or None.
        plane: Of the slices.
        overwrite: Replace a set of that name.
        folder: Where it lies instead of among the sets of this machine; then the name need not be free.

    Raises:
        UsageError: The name is none or is taken, or there are too few or too many cases.
        InputRefused: A case lacks a structure, or two are equal.
    """
    require_name(name, overwrite=overwrite, shared=folder is None)
    require_count(len(cases))
    for number, case in enumerate(cases, start=1):
        missing = [label.name for label in labels if not bool((case.labels == label.id).any())]
        if missing:
            raise InputRefused(f"case {number}: {missing[0]} must be outlined in every case, it is not; leave one out")
    digests = tuple(case.digest() for case in cases)
    if len(set(digests)) < len(digests):
        raise InputRefused("cases of a support set must differ, two are equal; give each only once")
    meant = json.dumps([kind, modality, plane, [(label.id, label.name) for label in labels], digests])
    card = SupportCard(
        name=name,
        kind=kind,
        modality=modality,
        plane=plane,
        channels=3 if cases[0].images.shape[3] == 3 else 1,
        labels=tuple(labels),
        cases=len(cases),
        slices=sum(len(case.labels) for case in cases),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        case_sha256=digests,
        sha256=hashlib.sha256(meant.encode()).hexdigest(),
    )
    target = folder or support_sets_folder() / name
    with whole_folder(target, overwrite=overwrite, mark=MARK) as partial:
        for number, case in enumerate(cases):
            content: dict[str, Any] = {"images": case.images, "labels": case.labels, "spacing": case.spacing}
            np.savez_compressed(partial / _file(number), **content)
        (partial / MARK).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return SupportSet(card=card, cases=tuple(cases))


def list_support_sets() -> list[SupportCard]:
    """All sets, by name."""
    return [_card(path) for path in sorted(support_sets_folder().glob(f"[!.]*/{MARK}"))]


def load_support_set(name: str) -> SupportSet:
    """A set by its name, checked.

    Raises:
        UsageError: There is none of that name.
        InputRefused: Its files are damaged or were changed.
    """
    find_support_set(name)
    return read_support_set(support_sets_folder() / name)


def read_support_set(folder: Path, *, cache: Path | None = None) -> SupportSet:
    """The set that lies in a folder, checked.

    Args:
        folder: As `save_support_set` wrote it.
        cache: Where what a network makes of it may be kept.

    Raises:
        InputRefused: Its files are damaged or were changed.
    """
    card = _card(folder / MARK)
    name, cases = card.name, []
    for number, digest in enumerate(card.case_sha256):
        try:
            with np.load(folder / _file(number), allow_pickle=False) as stored:
                rows, columns = (float(step) for step in stored["spacing"])
                case = SupportCase(images=stored["images"], labels=stored["labels"], spacing=(rows, columns))
        except (OSError, ValueError, KeyError, EOFError):
            raise InputRefused(f"support set '{name}': case {number + 1} is damaged; create the set again") from None
        if case.digest() != digest:
            raise InputRefused(f"support set '{name}': case {number + 1} was changed since; create the set again")
        cases.append(case)
    return SupportSet(card=card, cases=tuple(cases), cache=cache)


def find_support_set(name: str) -> SupportCard:
    """What a set says of itself.

    Raises:
        UsageError: There is none of that name.
        InputRefused: It cannot be read.
    """
    path = support_sets_folder() / name / MARK
    if not _NAME.fullmatch(name) or not path.is_file():
        known = ", ".join(card.name for card in list_support_sets()) or "none yet"
        raise UsageError(f"support set '{name}' is not there (known: {known}); `medseg support create` makes one")
    return _card(path)


def remove_support_set(name: str) -> None:
    """Delete a set, outlines and slices.

    Raises:
        UsageError: There is none of that name.
    """
    find_support_set(name)
    folder = support_sets_folder() / name
    gone = folder.with_name(f".{name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)  # at once, so that nobody sees half a set
    shutil.rmtree(gone)


def require_name(name: str, *, overwrite: bool, shared: bool = True) -> None:
    """Find out before any file is read whether a set may have a name, and, where it is `shared`, whether it is free.

    Raises:
        UsageError: It is no name, or it is taken.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"name of a support set must be letters, digits, dots and dashes, got '{name}'")
    if not shared:
        return
    folder = support_sets_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / name / MARK).is_file() and not overwrite:
        raise UsageError(f"support set '{name}' is there already; add --overwrite, or choose another name")
    check_target(folder / name, overwrite=overwrite, mark=MARK)


def require_count(cases: int) -> None:
    """Refuse too few and too many cases.

    Raises:
        UsageError: Says how many there may be.
    """
    if not FEWEST <= cases <= MOST:
        raise UsageError(f"a support set must have {FEWEST} to {MOST} cases, got {cases}")


def _card(path: Path) -> SupportCard:
    try:
        return SupportCard.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, OSError):
        raise InputRefused(
            f"support set '{path.parent.name}': {MARK} cannot be read; delete that folder and create the set again"
        ) from None


def _file(number: int) -> str:
    return f"case-{number + 1:02}.npz"
