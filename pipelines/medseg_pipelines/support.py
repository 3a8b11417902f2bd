"""Support sets from files: read, checked against each other, reduced to the slices that show a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputRefused, UsageError
from medseg.geometry import Chain
from medseg.io import read
from medseg.io.pictures import is_picture, read_ids, read_mask, read_picture
from medseg.picture import Picture
from medseg.volume import Volume
from medseg_pipelines.preparation import prepare
from medseg_pipelines.recipe import Label
from medseg_pipelines.scope import looks_like_ct
from medseg_pipelines.slices import slice_axis
from medseg_pipelines.support_store import (
    PLANES,
    Kind,
    Plane,
    SupportCase,
    SupportSet,
    require_count,
    require_name,
    save_support_set,
)

CT = "CT"
_MARGIN = 5.0  # mm kept around what is not background
_SOFT_TISSUE = (-160.0, 240.0)  # HU that become 0 and 1
_MOST_SLICES = 40  # per structure, of all cases together
_SAME_PLACE = 1e-3  # mm
_COLOURS = (
    (230, 80, 70),
    (70, 160, 235),
    (245, 190, 60),
    (120, 200, 90),
    (190, 110, 220),
    (60, 200, 190),
    (240, 130, 40),
    (160, 160, 170),
)
_FEW_IDS = 32  # more in a picture of labels are the grey edges of a mask that was saved as JPEG

Image = str | Path | Volume | Picture


@dataclass(frozen=True)
class _Pair:
    """One case as it was read, and the ids of its labels."""

    image: Volume | Picture
    labels: NDArray[Any]

    @property
    def modality(self) -> str | None:
        return modality_of(self.image)

    @property
    def channels(self) -> int:
        return self.image.channels if isinstance(self.image, Picture) else 1

    def require_outlined(self, chosen: Mapping[int, str], number: int) -> None:
        here = set(np.unique(self.labels).tolist()) - {0}
        missing = [name for label, name in chosen.items() if label not in here]
        if missing:
            raise InputRefused(
                f"label of case {number}: must hold {missing[0]}, it holds {sorted(here) or 'nothing'}; "
                "outline it, or leave the case out"
            )


def create_support_set(
    name: str,
    images: Sequence[Image],
    labels: Sequence[Image],
    *,
    names: Mapping[int, str] | None = None,
    modality: str | None = None,
    plane: Plane | None = None,
    overwrite: bool = False,
    folder: Path | None = None,
) -> SupportSet:
    """Make a support set of images and their outlines, and keep it.

    Args:
        name: Of the set.
        images: 3 to 10 volumes, or as many pictures.
        labels: Label maps on the same grids, in the same order.
        names: Id to name; ids that are not named are background. By default everything in the labels is "structure N".
        modality: As DICOM names it, where the files do not tell.
        plane: Of the slices; by default across the coarsest axis of the first volume, axial where none is.
        overwrite: Replace a set of that name.
        folder: Where it lies instead of among the sets of this machine.

    Raises:
        UsageError: The name is none or is taken, counts do not fit, or two structures share a name.
        InputRefused: A file cannot be used, a label map lies elsewhere than its image, a structure is missing in a
            case, or the cases are of several kinds.
    """
    require_name(name, overwrite=overwrite, shared=folder is None)
    require_count(len(images))
    if len(images) != len(labels):
        raise UsageError(f"every image needs one label: got {len(images)} images and {len(labels)} labels")
    given = enumerate(zip(images, labels, strict=True), start=1)
    pairs = [_pair(image, label, number, named=names is not None) for number, (image, label) in given]
    kind: Kind = "pictures" if isinstance(pairs[0].image, Picture) else "volumes"
    known = _same_kind(pairs, modality)
    chosen = _named(pairs, names)
    for number, pair in enumerate(pairs, start=1):
        pair.require_outlined(chosen, number)
    first = pairs[0].image
    plane = plane or (usual_plane(first) if isinstance(first, Volume) else "axial")
    most = max(2, _MOST_SLICES // (len(pairs) * len(chosen)))
    cases = [_case(pair, tuple(chosen), known, plane, most) for pair in pairs]
    meant = [Label(id=i, name=chosen[i], color=_COLOURS[n % len(_COLOURS)]) for n, i in enumerate(chosen)]
    return save_support_set(
        name, cases, meant, kind=kind, modality=known, plane=plane, overwrite=overwrite, folder=folder
    )


def prepared_volume(volume: Volume, modality: str | None) -> tuple[Volume, Chain]:
    """A volume in RAS without its empty frame, grey values 0 to 1, and the way back."""
    prepared, chain = prepare(volume, **preparation_for(modality))
    return prepared.with_voxels(np.clip(prepared.voxels, 0, 1, out=prepared.voxels)), chain


def preparation_for(modality: str | None) -> dict[str, Any]:
    """The arguments of `prepare` for volumes of a modality, plain data; what lies beyond 0 and 1 is cut off then."""
    steps = [{"kind": "range", "source": _SOFT_TISSUE, "clip": True}] if modality == CT else None
    return {"orientation": "RAS", "margin": _MARGIN, "spacing": None, "percentiles": (1.0, 99.0), "intensity": steps}


def prepared_picture(picture: Picture) -> NDArray[np.float32]:
    """A picture as (rows, columns, channels), 0 to 1; grey ones from their 1st to their 99th percentile."""
    planes = np.moveaxis(picture.unit_planes(), 0, 2)[..., : picture.channels]
    if picture.channels == 3:
        return planes
    low, high = np.percentile(planes, (1, 99))
    return np.clip((planes - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def usual_plane(volume: Volume) -> Plane:
    """The plane of the slices of a volume: across its coarsest axis, else axial."""
    world = volume.grid.axes[0][slice_axis(volume)]
    return ("sagittal", "coronal", "axial")[world]


def modality_of(image: Volume | Picture) -> str | None:
    """What DICOM says, or "CT" where grey values are in HU, or None; of pictures their colours."""
    if isinstance(image, Picture):
        return "colour picture" if image.channels == 3 else "grey picture"
    series = image.source.series if image.source else None
    if series is not None and series.modality != "?":
        return str(series.modality)
    return CT if looks_like_ct(image) else None


def _pair(image: Image, label: Image, number: int, *, named: bool) -> _Pair:
    """One case read, and checked in itself; where structures are named, ids that none can have are background."""
    if isinstance(image, (str, Path)):
        picture = is_picture(Path(image))
        found: Volume | Picture = read_picture(Path(image)) if picture else read(Path(image))
    else:
        found = image
    ids = _picture_ids(label) if isinstance(found, Picture) else _volume_ids(label, found, number)
    size = found.size if isinstance(found, Picture) else found.shape
    if ids.shape != size:
        raise InputRefused(f"label of case {number}: must have the size of its image, {size}, got {ids.shape}")
    if ids.min() < 0 or ids.max() > 255:
        if not named:
            got = f"{ids.min()} to {ids.max()}; name those that count"
            raise InputRefused(f"label of case {number}: ids must lie from 0 to 255, got {got}")
        ids = np.where((ids >= 0) & (ids <= 255), ids, 0)
    if not ids.any():
        raise InputRefused(f"label of case {number}: nothing is outlined; outline a structure, or leave the case out")
    return _Pair(found, ids)


def _volume_ids(label: Image, image: Volume, number: int) -> NDArray[Any]:
    volume = read(Path(label), kind="labels") if isinstance(label, (str, Path)) else label
    if not isinstance(volume, Volume):
        raise InputRefused(f"label of case {number}: must be a volume like its image, got a picture")
    if volume.shape == image.shape and not volume.grid.equals(image.grid, tolerance=_SAME_PLACE):
        raise InputRefused(
            f"label of case {number}: must lie where its image lies, their affines differ; export both from one program"
        )
    return volume.voxels


def _picture_ids(label: Image) -> NDArray[Any]:
    """Ids of a picture of labels; a mask of two values, or with the edges of JPEG, is 1 where it is bright."""
    if isinstance(label, Picture):
        return label.pixels[..., 0]
    if isinstance(label, Volume):
        raise InputRefused("labels of pictures must be pictures, got a volume")
    ids = read_ids(Path(label))
    values = np.unique(ids)
    if len(values) > _FEW_IDS or (len(values) <= 2 and values.max(initial=0) > 1):
        return read_mask(Path(label)).astype(np.uint8)
    return ids


def _same_kind(pairs: Sequence[_Pair], stated: str | None) -> str | None:
    """The modality of all cases."""
    if len({isinstance(pair.image, Picture) for pair in pairs}) > 1:
        raise InputRefused("cases of a support set must all be volumes or all be pictures, got both")
    found = {pair.modality for pair in pairs}
    if len(found) > 1:
        told = ", ".join(sorted(f"{modality or 'not CT'}" for modality in found))
        raise InputRefused(f"cases of a support set must be of one modality, got {told}; make a set for each")
    only = found.pop()
    if stated and only and stated != only:
        raise InputRefused(f"cases look like {only}, --modality says {stated}; drop it, or check the files")
    return only or stated


def _named(pairs: Sequence[_Pair], names: Mapping[int, str] | None) -> dict[int, str]:
    """Ids that count, with their names."""
    if not names:
        ids = sorted(set.union(*(set(np.unique(pair.labels).tolist()) for pair in pairs)) - {0})
        return {int(number): f"structure {number}" for number in ids}
    cleaned = {number: " ".join(name.split()) for number, name in names.items()}
    if not all(cleaned.values()) or len(set(cleaned.values())) != len(cleaned):
        raise UsageError(f"names of structures must differ and not be empty, got {', '.join(names.values())}")
    if not all(1 <= number <= 255 for number in cleaned):
        raise UsageError(f"ids of structures must lie from 1 to 255, got {', '.join(map(str, cleaned))}")
    return dict(sorted(cleaned.items()))


def _case(pair: _Pair, ids: tuple[int, ...], modality: str | None, plane: Plane, most: int) -> SupportCase:
    """The slices of a case that show a structure."""
    kept = np.where(np.isin(pair.labels, ids), pair.labels, 0).astype(np.uint8)
    if isinstance(pair.image, Picture):
        image = prepared_picture(pair.image).astype(np.float16)
        return SupportCase(images=image[None], labels=kept[None], spacing=(1.0, 1.0))
    prepared, chain = prepared_volume(pair.image, modality)
    outlined = chain.apply(Volume(kept, pair.image.affine, kind="labels"))
    axis = PLANES.index(plane)
    stack, labels = (np.moveaxis(v.voxels, axis, 0) for v in (prepared, outlined))
    shown = sorted({at for number in ids for at in _spread(np.flatnonzero((labels == number).any((1, 2))), most)})
    rows, columns = (prepared.spacing[i] for i in range(3) if i != axis)
    images = stack[shown][..., None].astype(np.float16)
    return SupportCase(images=images, labels=labels[shown].astype(np.uint8), spacing=(rows, columns))


def _spread(places: NDArray[np.integer], most: int) -> list[int]:
    """At most so many of them, evenly, without the very ends, which show only a few pixels."""
    if len(places) <= most:
        return places.tolist()
    at = (np.arange(most) + 0.5) * len(places) / most
    return places[at.astype(int)].tolist()
