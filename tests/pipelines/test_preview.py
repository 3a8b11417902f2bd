"""The picture: true proportions, the right side on the right, and what must be said."""

from pathlib import Path

import numpy as np
import pytest

from medseg.volume import Volume
from medseg_pipelines.planes import three_planes
from medseg_pipelines.preview import Caption, draw_preview
from medseg_pipelines.recipe import Label
from medseg_pipelines.statistics import measure

LABELS = (Label(id=1, name="left thing", side="left", color=(0, 0, 255)),)
SPACING = (2.0, 1.0, 4.0)


def _marked(orientation: str) -> tuple[Volume, Volume]:
    """A volume whose bright corner is left, front and top in the patient, stored in another axis order."""
    image, labels = np.zeros((20, 30, 12), np.float32), np.zeros((20, 30, 12), np.uint8)
    image[:] = 1.0
    image[:6, 20:, 8:] = 100.0
    labels[:6, 20:, 8:] = 1
    affine = np.diag([*SPACING, 1.0])
    order = [next(axis for axis, pair in enumerate(("LR", "PA", "IS")) if letter in pair) for letter in orientation]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (old, letter) in enumerate(zip(order, orientation, strict=True)):
        negative = letter in "LPI"
        turn[old, new] = -1 if negative else 1
        turn[old, 3] = image.shape[old] - 1 if negative else 0
    flips = [slice(None, None, -1 if letter in "LPI" else 1) for letter in orientation]
    stored = [array.transpose(order)[tuple(flips)].copy() for array in (image, labels)]
    return Volume(stored[0], affine @ turn), Volume(stored[1], affine @ turn, kind="labels")


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LIA", "SPR", "ALI"])
def test_planes_do_not_depend_on_the_storage_order(orientation: str) -> None:
    image, labels = _marked(orientation)
    assert image.orientation == orientation
    axial, coronal, sagittal = three_planes(image, labels)
    assert (axial.spacing, coronal.spacing, sagittal.spacing) == ((1.0, 2.0), (4.0, 2.0), (4.0, 1.0))
    for plane, (row, column) in ((axial, (0, -1)), (coronal, (0, -1)), (sagittal, (0, 0))):
        rows, columns = plane.labels.nonzero()
        height, width = plane.labels.shape
        assert (rows.mean() < height / 2) == (row == 0), plane.name
        assert (columns.mean() > width / 2) == (column == -1), plane.name
        assert plane.image[plane.labels == 1].min() == 100.0
    assert axial.letters == ("R", "L", "A", "P")
    assert sagittal.letters == ("A", "P", "S", "I")
    assert 32 <= axial.position <= 44


def test_picture_shows_colours_banner_and_proportions(tmp_path: Path) -> None:
    image, labels = _marked("RAS")
    structures = measure(labels.voxels, labels.affine, LABELS)
    caption = Caption(title="Title", subtitle="Sub", warnings=("a " * 200,), trained=True)
    trained = draw_preview(three_planes(image, labels), LABELS, structures, caption)
    untrained = draw_preview(
        three_planes(image, labels), LABELS, structures, Caption(title="Title", subtitle="Sub", trained=False)
    )
    pixels = np.asarray(trained).astype(int)
    assert (pixels[..., 2] - pixels[..., 0] > 100).sum() > 500, "the label must be blue over the image"
    assert np.asarray(untrained)[5, 5].tolist() == [196, 30, 40]
    trained.save(tmp_path / "preview.png")


def test_picture_without_any_label() -> None:
    image, labels = _marked("RAS")
    empty = labels.with_voxels(np.zeros_like(labels.voxels))
    structures = measure(empty.voxels, empty.affine, LABELS)
    picture = draw_preview(three_planes(image, empty), LABELS, structures, Caption(title="T", subtitle="S"))
    assert picture.width > 1000
