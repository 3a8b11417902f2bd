"""Volume and Grid: what follows from an affine, and what is no volume."""

import importlib.metadata
import tomllib
from importlib.metadata import EntryPoint
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

import medseg
from medseg.volume import Grid, Volume

LETTERS = ("LR", "PA", "IS")


def oriented(axes: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...]) -> np.ndarray:
    """An affine whose array axis i runs along world axis axes[i]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, (axis, sign, size) in enumerate(zip(axes, signs, spacing, strict=True)):
        affine[axis, column] = sign * size
    return affine


def test_orientation_and_spacing_of_all_48_orientations() -> None:
    seen = set()
    for axes, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        grid = Grid((2, 3, 4), oriented(axes, signs, (0.5, 2.0, 3.0)))
        expected = "".join(LETTERS[axis][int(sign > 0)] for axis, sign in zip(axes, signs, strict=True))
        assert grid.orientation == expected
        assert grid.spacing == (0.5, 2.0, 3.0)
        seen.add(expected)
    assert len(seen) == 48


def test_two_oblique_axes_never_claim_the_same_world_axis() -> None:
    angle = np.radians(44.9)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    world, _ = Grid((2, 2, 2), affine).axes
    assert sorted(world) == [0, 1, 2]


def test_affine_is_a_copy_that_cannot_change() -> None:
    affine = np.eye(4)
    volume = Volume(np.zeros((2, 2, 2)), affine)
    affine[0, 3] = 5
    assert volume.affine[0, 3] == 0
    with pytest.raises(ValueError, match="read-only"):
        volume.affine[0, 3] = 5


def test_with_voxels_keeps_the_grid() -> None:
    volume = Volume(np.zeros((2, 3, 4), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    labels = volume.with_voxels(np.ones((2, 3, 4), np.uint8), kind="labels")
    assert labels.kind == "labels"
    assert labels.grid.equals(volume.grid, tolerance=0.0)
    with pytest.raises(ValueError, match=r"\(2, 3, 4\)"):
        volume.with_voxels(np.zeros((2, 3, 5)))


@pytest.mark.parametrize(
    ("voxels", "affine"),
    [
        (np.zeros((2, 2)), np.eye(4)),
        (np.zeros((0, 2, 2)), np.eye(4)),
        (np.zeros((2, 2, 2), np.complex64), np.eye(4)),
        (np.zeros((2, 2, 2)), np.eye(3)),
        (np.zeros((2, 2, 2)), np.diag([1.0, 0.0, 1.0, 1.0])),
        (np.zeros((2, 2, 2)), np.full((4, 4), np.nan)),
    ],
    ids=["2D", "empty", "complex", "3x3 affine", "singular", "NaN"],
)
def test_what_is_no_volume(voxels: np.ndarray, affine: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be"):
        Volume(voxels, affine)


def test_version_is_the_one_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert medseg.__version__ == project["version"]


def test_unknown_name_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = medseg.nothing


def test_models_are_found_through_their_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = EntryPoint("load_model", "builtins:dict", "medseg.models")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: (loader,))
    assert medseg.load_model({"a": 1}, device="cpu") == {"a": 1, "device": "cpu"}
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    with pytest.raises(medseg.MedsegError, match="install the package"):
        medseg.load_model("brain-structures")
