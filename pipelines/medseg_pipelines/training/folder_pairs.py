"""Images and their masks in a folder, found by their names; a share of the patients is held back to judge by.

Two ways of keeping them are understood: folders of the same names (`images` and `masks`, `imagesTr` and `labelsTr`), or
side by side, where the name of the mask is that of its image and one more word (`case7.png`, `case7_mask.png`).
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import InputRefused, UsageError
from medseg.io.pictures import ENDINGS

VOLUME_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".mgz")
_IMAGE_FOLDERS = ("images", "image", "imagesTr", "img")
_MASK_FOLDERS = ("masks", "mask", "labels", "labelsTr", "annotations", "segmentations")
_SEPARATORS = ("_", "-", ".", " ")
_CHANNEL = "_0000"  # nnU-Net's mark of the first channel in the name of an image
_FEWEST_GROUPS = 5


@dataclass(frozen=True)
class Pair:
    """An image, its mask or label map, and whose it is."""

    image: Path
    mask: Path
    patient: str


def stem_of(path: Path) -> str:
    """The name without its ending."""
    for ending in VOLUME_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def find_pairs(data: Path, patients: Path | None = None) -> list[Pair]:
    """All images of a folder with their masks, in the order of their names.

    Args:
        data: The folder.
        patients: A CSV table with the columns `file` and `patient`; where it is not given, the patient is the name of
            an image without its last word, if that leaves several patients, and else each image is one of its own.

    Raises:
        UsageError: There are no pairs, some images lack a mask, or the table lacks an image.
    """
    if not data.is_dir():
        raise UsageError(f"data folder '{data}' is not there; check --data")
    pairs = _in_two_folders(data) or _side_by_side(data)
    if not pairs:
        raise UsageError(
            f"data folder '{data}' must hold images and masks: folders 'images' and 'masks' with the same names, or "
            "NAME.png beside NAME_mask.png"
        )
    names = [stem_of(image) for image, _ in pairs]
    whose = _from_table(patients, [image for image, _ in pairs]) if patients else _by_prefix(names)
    return [Pair(image, mask, patient) for (image, mask), patient in zip(pairs, whose, strict=True)]


def split(pairs: Iterable[Pair], share: float, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from and pairs held back, no patient in both; the same for the same names and seed.

    Args:
        pairs: All of them.
        share: Of the patients, that is held back; at least one is, and one stays.
        seed: Another one holds back other patients.

    Raises:
        InputRefused: There is one patient only.
    """
    pairs = list(pairs)
    order = sorted(
        {pair.patient for pair in pairs}, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()
    )
    if len(order) < 2:
        raise InputRefused("training needs images of 2 patients or more, to hold some back to judge by, got 1")
    held = set(order[: min(len(order) - 1, max(1, round(share * len(order))))])
    return [pair for pair in pairs if pair.patient not in held], [pair for pair in pairs if pair.patient in held]


def _usable(folder: Path) -> list[Path]:
    endings = (*ENDINGS, *VOLUME_ENDINGS)
    return [path for path in sorted(folder.iterdir()) if path.name.lower().endswith(endings) and path.is_file()]


def _in_two_folders(data: Path) -> list[tuple[Path, Path]]:
    """Images of one folder with the masks of the same name, or of the name and one more word, in another."""
    images = next((data / name for name in _IMAGE_FOLDERS if (data / name).is_dir()), None)
    masks = next((data / name for name in _MASK_FOLDERS if (data / name).is_dir()), None)
    if images is None or masks is None:
        return []
    known = {stem_of(path): path for path in _usable(masks)}
    found = [(path, _mask_of(stem_of(path).removesuffix(_CHANNEL), known)) for path in _usable(images)]
    return _complete(found, data)


def _side_by_side(data: Path) -> list[tuple[Path, Path]]:
    """Images with masks beside them, in this folder and those below."""
    found: list[tuple[Path, Path | None]] = []
    for folder in sorted({data, *(path for path in data.rglob("*") if path.is_dir())}):
        known = {stem_of(path): path for path in _usable(folder)}
        masks = {name for name in known if any(name != other and _extends(name, other) for other in known)}
        pairs = [(known[name], _mask_of(name, {m: known[m] for m in masks})) for name in known if name not in masks]
        found += pairs if masks else []
    return _complete(found, data)


def _mask_of(name: str, masks: dict[str, Path]) -> Path | None:
    return masks.get(name) or next((path for mask, path in masks.items() if _extends(mask, name)), None)


def _extends(name: str, start: str) -> bool:
    return any(name.startswith(start + separator) for separator in _SEPARATORS)


def _complete(found: list[tuple[Path, Path | None]], data: Path) -> list[tuple[Path, Path]]:
    missing = [image for image, mask in found if mask is None]
    if missing and len(missing) < len(found):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UsageError(
            f"data folder '{data}' lacks the mask of '{missing[0].name}'{more}; add it or take the image away"
        )
    return [(image, mask) for image, mask in found if mask is not None]


def _by_prefix(names: list[str]) -> list[str]:
    """The names without their last word, where that leaves several patients of several images; else the names."""
    shorter = []
    for name in names:
        cut = max(name.rfind(separator) for separator in _SEPARATORS)
        shorter.append(name[:cut] if cut > 0 else name)
    several = _FEWEST_GROUPS <= len(set(shorter)) < len(names)
    return shorter if several else names


def _from_table(table: Path, images: list[Path]) -> list[str]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            whose = {row["file"]: row["patient"] for row in csv.DictReader(file)}
    except (OSError, KeyError, UnicodeDecodeError):
        raise UsageError(f"table '{table.name}' must be CSV with the columns file and patient") from None
    missing = [image.name for image in images if image.name not in whose]
    if missing:
        raise UsageError(f"table '{table.name}' must name every image, it lacks '{missing[0]}'; add a row")
    return [whose[image.name] for image in images]
