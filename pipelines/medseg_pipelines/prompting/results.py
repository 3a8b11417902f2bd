"""Results of prompts: a label map like any other, with the prompts beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from medseg.io.prompts import write_prompts
from medseg.prompts import Mask, Prompts
from medseg_pipelines.case import hash_volume
from medseg_pipelines.picture_results import PictureResult
from medseg_pipelines.recipe import Label
from medseg_pipelines.results import LabelResult

PROMPTS_FILE = "prompts.json"
# Told apart by people who see no red or no green.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedResult(LabelResult):
    """Prompted structures of a volume.

    Attributes:
        prompts: What was said.
        scores: Of each label the presence score by slice; 1 where it was prompted.
    """

    prompts: Prompts
    scores: dict[int, dict[int, float]]

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        write_prompts(self.prompts, folder / PROMPTS_FILE)


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptedPictureResult(PictureResult):
    """Prompted structures of a picture.

    Attributes:
        prompts: What was said.
    """

    prompts: Prompts

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        write_prompts(self.prompts, folder / PROMPTS_FILE)


def labels_of(prompts: Prompts) -> tuple[Label, ...]:
    """The prompted structures with names and colours."""
    return tuple(
        Label(id=label, name=prompts.name(label), color=_COLOURS[(label - 1) % len(_COLOURS)])
        for label in prompts.labels
    )


def digest_of(prompts: Prompts) -> str:
    """The sha256 of everything that prompts say."""
    said = [
        ("mask", item.label, hash_volume(item.volume)) if isinstance(item, Mask) else item for item in prompts.items
    ]
    return hashlib.sha256(repr((prompts.space, sorted(prompts.names.items()), said)).encode()).hexdigest()
