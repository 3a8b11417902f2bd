"""Coded terms for labels: from a small table of ours, or the plain term "Tissue" for names that it does not know."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import yaml
from highdicom.sr import CodedConcept

from medseg_pipelines.recipe import Label

_TABLE = "dicom_codes.yaml"
_CATEGORIES = {
    "structure": ("SCT", "91723000", "Anatomical Structure"),
    "tissue": ("SCT", "85756007", "Tissue"),
    "substance": ("SCT", "91720002", "Body Substance"),
}
_SIDES = {"left": ("SCT", "7771000", "Left"), "right": ("SCT", "24028007", "Right")}


@dataclass(frozen=True)
class Terms:
    """What a label is, as codes.

    Attributes:
        category: Structure, tissue or substance.
        kind: The structure itself.
        regions: Its parts, where no code means the whole.
        side: Left or right of the patient, or None.
        known: Whether the table has the label.
    """

    category: CodedConcept
    kind: CodedConcept
    regions: tuple[CodedConcept, ...]
    side: CodedConcept | None
    known: bool


def terms_of(label: Label) -> Terms:
    """The coded terms of a label."""
    entry = _table().get(label.structure, {})
    category = entry.get("category", "structure") if entry else "tissue"
    return Terms(
        category=_concept(_CATEGORIES[category]),
        kind=_concept(entry["type"] if entry else _CATEGORIES["tissue"]),
        regions=tuple(_concept(region) for region in entry.get("regions", ())),
        side=_concept(_SIDES[label.side]) if label.side else None,
        known=bool(entry),
    )


def _concept(parts: tuple[str, str, str] | list[str]) -> CodedConcept:
    scheme, value, meaning = parts
    return CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


@lru_cache(maxsize=1)
def _table() -> dict[str, dict]:
    return yaml.safe_load((Path(str(files("medseg_configs"))) / _TABLE).read_text(encoding="utf-8"))
