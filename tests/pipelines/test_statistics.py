"""Volumes per structure, and what is said where the image cuts one."""

import csv
import io

import numpy as np

from medseg_pipelines.recipe import Label
from medseg_pipelines.statistics import as_csv, as_json, measure

NAMES = (
    Label(id=1, name="left thing", side="left", color=(255, 0, 0)),
    Label(id=2, name="right thing", side="right", color=(255, 0, 0)),
    Label(id=3, name="other", color=(0, 0, 255)),
)


def _labels() -> np.ndarray:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    return labels


def test_ml_follow_from_the_affine() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([2.0, 0.5, 5.0])
    first, second, _ = measure(_labels(), affine, NAMES)
    assert (first.voxels, first.ml, first.status) == (64, 0.32, "complete")
    assert (second.voxels, second.ml, second.status) == (0, 0.0, "not found")


def test_cut_structures_are_flagged_and_absent_ones_not_assessed() -> None:
    labels = _labels()
    labels[8:, 4, 4] = 2
    first, second, third = measure(labels, np.eye(4), NAMES)
    assert (first.touches_border, first.status) == (False, "complete")
    assert (second.touches_border, second.status) == (True, "cut")
    assert (third.ml, third.status) == (None, "not assessed")


def test_every_face_of_the_grid_counts() -> None:
    for axis in range(3):
        for at in (0, 9):
            labels = _labels()
            np.moveaxis(labels, axis, 0)[at, 4, 4] = 1
            assert measure(labels, np.eye(4), NAMES)[0].touches_border


def test_files_say_the_same() -> None:
    labels = _labels()
    labels[9, 9, 9] = 2
    structures = measure(labels, np.eye(4), NAMES)
    rows = list(csv.DictReader(io.StringIO(as_csv(structures))))
    assert [row["ml"] for row in rows] == ["0.06", "0.00", ""]
    assert [row["status"] for row in rows] == ["complete", "cut", "not assessed"]
    content = as_json(structures)["structures"]
    assert isinstance(content, list)
    assert [entry["ml"] for entry in content] == [0.06, 0.0, None]
