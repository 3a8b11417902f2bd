"""`medseg support`: sets of outlined cases, made, listed, shown and removed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from medseg.errors import UsageError
from medseg_app.output import print_json, print_line, print_table
from medseg_pipelines.support_store import (
    PLANES,
    Plane,
    SupportCard,
    find_support_set,
    list_support_sets,
    load_support_set,
    remove_support_set,
)
from medseg_pipelines.words import RESEARCH_USE


def create(
    name: str,
    images: Sequence[Path],
    labels: Sequence[Path],
    *,
    names: str | None,
    modality: str | None,
    plane: str | None,
    overwrite: bool,
    json: bool,
) -> int:
    """Make a set of files; returns the exit code."""
    from medseg_pipelines.support import create_support_set  # scipy and the readers of images, only here

    if plane is not None and plane not in PLANES:
        raise UsageError(f"plane must be one of {', '.join(PLANES)}, got '{plane}'")
    for path in (*images, *labels):
        if not path.exists():
            raise UsageError(f"input '{path.name}' is not there; check the path")
    made = create_support_set(
        name,
        list(images),
        list(labels),
        names=_names(names),
        modality=modality,
        plane=cast(Plane | None, plane),
        overwrite=overwrite,
    )
    _tell(made.card, json=json)
    return 0


def listing(*, json: bool) -> int:
    """List all sets; returns the exit code."""
    cards = list_support_sets()
    if json:
        print_json({"support_sets": [card.model_dump(mode="json") for card in cards]})
        return 0
    rows = [(c.name, c.modality or "not stated", c.meant, str(c.cases), str(c.slices), c.created[:10]) for c in cards]
    if rows:
        print_table(("name", "images", "structures", "cases", "slices", "made"), rows, numeric=("cases", "slices"))
    else:
        print_line("no support sets yet; `medseg support create` makes one")
    return 0


def show(name: str, out: Path | None, *, overwrite: bool, json: bool) -> int:
    """Say what a set holds and write its contact sheet; returns the exit code."""
    from medseg_pipelines.support_sheet import contact_sheet

    support = load_support_set(name)
    target = out or Path(f"{name}.png")
    if target.suffix.lower() != ".png":
        raise UsageError(f"contact sheet must be a .png, got '{target.name}'")
    if target.exists() and not overwrite:
        raise UsageError(f"'{target.name}' is already there; add --overwrite, or choose another with -o")
    partial = target.with_name(f".{target.name}.partial")
    contact_sheet(support).save(partial, format="PNG", optimize=True)
    partial.replace(target)
    _tell(support.card, json=json, sheet=target)
    return 0


def remove(name: str, *, json: bool) -> int:
    """Delete a set; returns the exit code."""
    card = find_support_set(name)
    remove_support_set(name)
    print_json({"removed": name}) if json else print_line(f"removed {name}: {card.cases} cases of {card.meant}")
    return 0


def _names(text: str | None) -> dict[int, str] | None:
    """ "17=hippocampus,18=amygdala" as a table."""
    if text is None:
        return None
    found = {}
    for entry in text.split(","):
        number, equals, name = entry.partition("=")
        if not equals or not number.strip().isdigit() or not name.strip():
            raise UsageError(f"names must look like \"1=liver,2=spleen\", got '{entry.strip()}'")
        found[int(number)] = name.strip()
    return found


def _tell(card: SupportCard, *, json: bool, sheet: Path | None = None) -> None:
    if json:
        print_json({**card.model_dump(mode="json"), "sheet": None if sheet is None else str(sheet)})
        return
    print_line(f"support set {card.name}")
    print_line(f"  structures  {', '.join(f'{label.id} {label.name}' for label in card.labels)}")
    print_line(f"  images      {card.modality or 'modality not stated'}, {card.kind}")
    print_line(f"  cases       {card.cases}, {card.slices} {card.plane if card.kind == 'volumes' else 'whole'} slices")
    print_line(f"  sha256      {card.sha256}")
    if sheet is not None:
        print_line(f"sheet     {sheet}")
    print_line(RESEARCH_USE)
