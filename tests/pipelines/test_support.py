"""Support sets: what is kept, what is refused, and what a change on disk does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medseg.errors import InputRefused, UsageError
from medseg.volume import Volume
from medseg_pipelines.support import create_support_set, modality_of, usual_plane
from medseg_pipelines.support_sheet import contact_sheet
from medseg_pipelines.support_store import (
    MARK,
    list_support_sets,
    load_support_set,
    remove_support_set,
    support_sets_folder,
)
from tiny_support import AFFINE, outlined, outlined_files


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _volumes(count: int = 3, **options: Any) -> tuple[list[Volume], list[Volume]]:
    pairs = [outlined(seed, **options) for seed in range(count)]
    return [image for image, _ in pairs], [label for _, label in pairs]


def test_a_set_is_kept_listed_loaded_and_removed(tmp_path: Path) -> None:
    images, labels = outlined_files(tmp_path / "cases")
    made = create_support_set("balls", images, labels, names={1: "large ball", 2: "small ball"}, modality="MR")
    assert [card.name for card in list_support_sets()] == ["balls"]
    loaded = load_support_set("balls")
    assert loaded.card == made.card
    assert loaded.card.meant == "large ball, small ball"
    assert loaded.card.plane == "coronal", "3 mm from slice to slice along the second axis of RAS"
    case = loaded.cases[0]
    assert case.images.shape[:3] == case.labels.shape
    assert case.spacing == (2.0, 2.5)
    assert 0 <= case.images.min() < case.images.max() <= 1
    assert all((plane > 0).any() for plane in case.labels), "only slices that show a structure"
    stored = "".join(path.read_text() for path in support_sets_folder().rglob("*.json"))
    assert "image0" not in stored, "names of files may tell of patients"
    remove_support_set("balls")
    assert not list_support_sets()
    with pytest.raises(UsageError, match="known: none yet"):
        load_support_set("balls")


def test_its_hash_follows_content_and_meaning_alone() -> None:
    images, labels = _volumes()
    first = create_support_set("a", images, labels).card
    again = create_support_set("b", images, labels).card
    named = create_support_set("c", images, labels, names={1: "large", 2: "small"}).card
    other = create_support_set("d", images[::-1], labels[::-1]).card
    assert first.sha256 == again.sha256
    assert len({card.sha256 for card in (first, named, other)}) == 3
    assert [label.name for label in first.labels] == ["structure 1", "structure 2"]


def test_unnamed_ids_are_background() -> None:
    support = create_support_set("small", *_volumes(), names={2: "small ball"})
    assert set(np.unique(support.cases[0].labels)) == {0, 2}
    images, labels = _volumes()
    labels = [one.with_voxels(np.where(one.voxels == 1, np.int16(2035), one.voxels)) for one in labels]
    assert create_support_set("large-ids", images, labels, names={2: "small ball"}).card.sha256 == support.card.sha256
    with pytest.raises(InputRefused, match="from 0 to 255, got 0 to 2035; name those that count"):
        create_support_set("bad", images, labels)


def test_the_plane_lies_across_the_coarsest_axis_or_is_axial() -> None:
    image = _volumes(1)[0][0]
    assert usual_plane(image) == "coronal"
    assert usual_plane(Volume(image.voxels, np.diag([1.0, 1, 1, 1]))) == "axial"
    assert usual_plane(Volume(image.voxels, np.diag([4.0, 1, 1, 1]))) == "sagittal"


def test_many_slices_are_thinned_out_evenly() -> None:
    flat = np.diag([1.0, 1, 1, 1])
    support = create_support_set("many", *_volumes(10, size=40, affine=flat))
    assert all(2 <= len(case.labels) <= 4 for case in support.cases)
    assert all((case.labels == 2).any() for case in support.cases)


def test_cases_that_do_not_fit_are_refused_before_anything_is_kept(tmp_path: Path) -> None:
    images, labels = _volumes()
    moved = Volume(labels[1].voxels, AFFINE + _shift(5.0), kind="labels")
    empty = labels[1].with_voxels(np.zeros_like(labels[1].voxels))
    single = labels[1].with_voxels(np.where(labels[1].voxels == 2, 2, 0).astype(np.uint8))
    small = Volume(labels[1].voxels[:-1], AFFINE, kind="labels")
    hounsfield = images[1].with_voxels(images[1].voxels * 20 - 1000)
    for label, message in (
        (moved, "label of case 2: must lie where its image lies"),
        (empty, "label of case 2: nothing is outlined"),
        (single, "label of case 2: must hold structure 1, it holds \\[2\\]"),
        (small, "label of case 2: must have the size of its image"),
    ):
        with pytest.raises(InputRefused, match=message):
            create_support_set("bad", images, [labels[0], label, labels[2]])
    with pytest.raises(InputRefused, match="must differ, two are equal"):
        create_support_set("bad", [images[0], images[0], images[1]], [labels[0], labels[0], labels[1]])
    assert modality_of(hounsfield) == "CT"
    with pytest.raises(InputRefused, match="must be of one modality, got CT, not CT"):
        create_support_set("bad", [images[0], hounsfield, images[2]], labels)
    with pytest.raises(InputRefused, match="cases look like CT, --modality says MR"):
        create_support_set("bad", [hounsfield] * 3, [labels[1]] * 3, modality="MR")
    assert not list_support_sets()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 2, "labels": 2}, "must have 3 to 10 cases, got 2"),
        ({"labels": 2}, "got 3 images and 2 labels"),
        ({"name": "a/b"}, "must be letters, digits, dots and dashes"),
        ({"names": {1: "x", 2: "x"}}, "must differ and not be empty"),
        ({"names": {300: "x"}}, "ids of structures must lie from 1 to 255"),
    ],
)
def test_wrong_requests_are_told(change: dict[str, Any], message: str) -> None:
    images, labels = _volumes()
    counts = {"images": 3, "labels": 3, "name": "good", "names": None} | change
    with pytest.raises(UsageError, match=message):
        create_support_set(
            counts["name"], images[: counts["images"]], labels[: counts["labels"]], names=counts["names"]
        )
    assert not list_support_sets()


def test_a_taken_name_needs_a_second_word() -> None:
    images, labels = _volumes()
    first = create_support_set("same", images, labels)
    with pytest.raises(UsageError, match="is there already; add --overwrite"):
        create_support_set("same", images[::-1], labels[::-1])
    assert load_support_set("same").card == first.card
    create_support_set("same", images[::-1], labels[::-1], overwrite=True)
    assert load_support_set("same").card.sha256 != first.card.sha256


def test_files_that_were_changed_or_damaged_are_refused() -> None:
    create_support_set("set", *_volumes())
    folder = support_sets_folder() / "set"
    (folder / "case-02.npz").write_bytes((folder / "case-01.npz").read_bytes())
    with pytest.raises(InputRefused, match="case 2 was changed since"):
        load_support_set("set")
    (folder / "case-02.npz").write_bytes(b"PK")
    with pytest.raises(InputRefused, match="case 2 is damaged"):
        load_support_set("set")
    (folder / MARK).write_text("{}")
    with pytest.raises(InputRefused, match="cannot be read; delete that folder"):
        load_support_set("set")


def test_pictures_make_a_set_too(tmp_path: Path) -> None:
    images, labels = [], []
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 30, 3), dtype=np.uint8)
        mask = np.zeros((24, 30), np.uint8)
        mask[5:12, 6:20] = 255
        for kind, array, paths in (("image", pixels, images), ("mask", mask, labels)):
            paths.append(tmp_path / f"{kind}{number}.png")
            Image.fromarray(array).save(paths[-1])
    support = create_support_set("photos", images, labels, names={1: "square"})
    assert support.card.kind == "pictures"
    assert support.card.channels == 3
    assert support.card.modality == "colour picture"
    assert support.cases[0].images.shape == (1, 24, 30, 3)
    assert int(support.cases[0].labels.sum()) == 7 * 14
    image, label = outlined_files(tmp_path / "volume", 1)
    with pytest.raises(InputRefused, match="must all be volumes or all be pictures, got both"):
        create_support_set("mixed", [*images[:2], *image], [*labels[:2], *label])


def test_the_contact_sheet_outlines_every_case() -> None:
    support = create_support_set("sheet", *_volumes(), names={1: "large ball", 2: "small ball"})
    sheet = np.asarray(contact_sheet(support))
    for label in support.card.labels:
        assert (sheet == label.color).all(-1).sum() > 100


def _shift(millimetres: float) -> np.ndarray:
    change = np.zeros((4, 4))
    change[0, 3] = millimetres
    return change
