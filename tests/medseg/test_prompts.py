"""Prompts belong to a place: they hold on every grid of the subject, and their file says the same as they do."""

import json
from pathlib import Path

import numpy as np
import pytest

from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras, to_spacing
from medseg.io.prompts import read_prompts, write_prompts
from medseg.prompts import Box, Mask, Point, PromptList, Prompts
from medseg.volume import Volume


def _volume() -> Volume:
    """An oblique grid whose first axis runs to the left."""
    turn = np.array([[np.cos(0.2), -np.sin(0.2), 0], [np.sin(0.2), np.cos(0.2), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.0, 1.5, 3.0])
    affine[:3, 3] = (20, -30, 5)
    voxels = np.zeros((20, 16, 8), np.uint8)
    voxels[4:10, 5:9, 2:5] = 1
    return Volume(voxels, affine, kind="labels")


def test_prompts_survive_other_grids() -> None:
    volume = _volume()
    point, box = Point.at_voxel((4, 5, 2), volume.grid), Box.of_voxels((4, 5, 2), (9, 8, 4), volume.grid)
    assert np.allclose(point.on(volume.grid), (4, 5, 2))
    assert np.allclose(box.on(volume.grid), ((4, 5, 2), (9, 8, 4)))
    turned, _ = to_ras(volume)  # the first axis is turned round
    assert np.allclose(box.on(turned.grid), ((10, 5, 2), (15, 8, 4)))
    finer, _ = to_spacing(volume, (0.5, 0.75, 1.5))
    low, high = box.on(finer.grid)
    assert np.allclose(high - low, (10, 6, 4))
    mask = Mask(volume=volume)
    assert mask.on(volume.grid).sum() == volume.voxels.sum()
    assert np.array_equal(mask.on(turned.grid), turned.voxels != 0)
    assert mask.on(finer.grid).mean() == pytest.approx(volume.voxels.mean(), rel=0.15)


def test_every_step_can_be_undone_and_redone() -> None:
    first, second = Point(at=(1, 2, 3)), Point(at=(4, 5, 6), inside=False, label=2)
    prompts = PromptList()
    assert not prompts.undo()
    prompts.add(first)
    prompts.add(second)
    prompts.remove(0)
    assert prompts.items == (second,)
    assert prompts.undo()
    assert prompts.undo()
    assert prompts.items == (first,)
    assert prompts.redo()
    assert prompts.items == (first, second)
    prompts.clear(label=1)
    assert prompts.items == (second,)
    assert not prompts.can_redo, "a new step forgets what was undone"
    prompts.clear()
    assert prompts.items == ()
    assert prompts.can_undo


def test_the_file_says_the_same(tmp_path: Path) -> None:
    volume = _volume()
    box = Box.of_voxels((4, 5, 2), (9, 8, 4), volume.grid, label=3)
    items = (Point(at=(1.5, -2, 3)), Point(at=(0, 0, 0), inside=False), box, Mask(volume=volume, label=2))
    written = write_prompts(Prompts(items=items, names={3: "liver"}), tmp_path / "prompts.json")
    back = read_prompts(written)
    assert back.items[:3] == items[:3]
    assert isinstance(back.items[3], Mask)
    assert np.array_equal(back.items[3].volume.voxels, volume.voxels)
    assert (back.labels, back.name(3), back.name(1)) == ((1, 2, 3), "liver", "structure 1")


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ({"kind": "circle"}, "kind must be one of point, box, mask"),
        ({"kind": "point", "at": [1, 2]}, "three numbers"),
        ({"kind": "point", "at": [1, 2, float("inf")]}, "three numbers"),
        ({"kind": "point", "at": [1, 2, 3], "inside": 1}, "true or false"),
        ({"kind": "point", "at": [1, 2, 3], "label": 0}, "1 to 255"),
        ({"kind": "box", "first": [1, 2, 3]}, "a box needs first, last"),
        ({"kind": "box", "first": [1, 2, 3], "last": [1, 2, 3], "colour": 3}, "may have axes, label"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, prompt: dict[str, object], fault: str) -> None:
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps({"format": "medseg-prompts-1", "prompts": [prompt]}))
    with pytest.raises(InputRefused, match=fault):
        read_prompts(path)
    with pytest.raises(UsageError, match="not there"):
        read_prompts(tmp_path / "none.json")
