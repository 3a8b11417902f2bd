"""Label maps against references: names, groups, grids and empty structures."""

import math

import numpy as np
import pytest

from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras
from medseg.volume import Volume
from medseg_pipelines.evaluation import Name, evaluate, evaluate_images

NAMES = (
    Name(id=1, name="left cortex", structure="cortex"),
    Name(id=2, name="right cortex", structure="cortex"),
    Name(id=3, name="brainstem", structure="brainstem"),
)


def _volume(blocks: dict[int, slice], affine: np.ndarray | None = None) -> Volume:
    voxels = np.zeros((20, 10, 10), np.uint16)
    for label, where in blocks.items():
        voxels[where, 2:8, 2:8] = label
    return Volume(voxels, np.diag([2.0, 1.0, 1.0, 1.0]) if affine is None else affine, kind="labels")


def test_equal_ids_without_a_map() -> None:
    found = evaluate(_volume({1: slice(2, 6)}), _volume({1: slice(2, 6), 7: slice(8, 9)}), names=NAMES)
    scores = {score.name: score for score in found.scores}
    assert scores["left cortex"].dice == 1.0
    assert scores["left cortex"].ml == pytest.approx(0.288)
    alone = scores["label 7"]
    assert (alone.dice, alone.nsd, alone.hd95_mm, alone.asd_mm) == (0.0, 0.0, math.inf, math.inf)
    assert math.isnan(scores["brainstem"].dice)
    assert (found.counted, found.mean_dice, found.mean_hd95_mm) == (2, 0.5, 0.0)


def test_map_merges_sides_and_leaves_out() -> None:
    ours = _volume({1: slice(2, 6), 2: slice(6, 10), 3: slice(12, 16)})
    theirs = _volume({1005: slice(2, 10), 16: slice(12, 15), 30: slice(15, 16)})
    found = evaluate(ours, theirs, names=NAMES, mapping={"1000-1100": "cortex", "16": "brainstem", "30": None})
    assert {score.name: score.dice for score in found.scores} == {"cortex": 1.0, "brainstem": 1.0}
    grouped = evaluate(ours, theirs, names=NAMES, mapping={"1005": ["left cortex", 2]})
    assert [(score.name, score.dice) for score in grouped.scores] == [("left cortex + 2", 1.0)]


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"16": "brain stem"}, "did you mean 'brainstem'"),
        ({"x": "brainstem"}, "keys must be reference ids"),
        ({"3": "cortex", "4": "left cortex"}, "our label 1 must belong to one row"),
        ({"3-9": "cortex", "4": "brainstem"}, "reference id 4 must belong to one row"),
    ],
)
def test_wrong_maps(mapping: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evaluate(_volume({1: slice(2, 6)}), _volume({1: slice(2, 6)}), names=NAMES, mapping=mapping)


def test_other_axis_order_is_the_same_grid() -> None:
    reference = _volume({1: slice(2, 6), 3: slice(8, 10)})
    turned = Volume(
        reference.voxels[::-1].transpose(2, 0, 1).copy(),
        reference.affine @ np.array([[0, -1, 0, 19], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]),
        kind="labels",
    )
    assert to_ras(turned)[0].grid.equals(reference.grid)
    assert evaluate(turned, reference).mean_dice == 1.0


def test_other_grids_are_refused_or_resampled() -> None:
    ours = _volume({1: slice(2, 6)})
    shift = np.diag([2.0, 1.0, 1.0, 1.0])
    shift[0, 3] = 2.0
    theirs = _volume({1: slice(1, 5)}, shift)
    with pytest.raises(InputRefused, match="--resample"):
        evaluate(ours, theirs)
    found = evaluate(ours, theirs, resample=True)
    assert found.mean_dice == 1.0
    assert "resampled by nearest neighbour" in found.notes[-2]
    assert found.notes[-1].startswith("5.0% of the prediction lies outside")
    far = Volume(theirs.voxels, np.diag([2.0, 1.0, 1.0, 1.0]) + np.pad([[500.0]], ((0, 3), (3, 0))), kind="labels")
    with pytest.raises(InputRefused, match="share no point"):
        evaluate(ours, far, resample=True)


def test_tolerance_decides_what_is_near() -> None:
    ours, theirs = _volume({1: slice(2, 6)}), _volume({1: slice(2, 7)})  # 2 mm apart at one end
    assert evaluate(ours, theirs, tolerance=2.0).mean_nsd == 1.0
    found = evaluate(ours, theirs, tolerance=1.9)
    assert found.mean_nsd < 1.0
    assert "within 1.9 mm" in found.notes[1]


def test_images_on_one_grid_and_resampled() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(24, 16, 16)).astype(np.float32)
    reference = Volume(values, np.diag([2.0, 1.0, 1.0, 1.0]))
    noisy = reference.with_voxels(values + np.float32(0.1))
    found = evaluate_images(noisy, reference)
    assert found.data_range == pytest.approx(float(np.ptp(values)))
    assert found.nrmse == pytest.approx(0.1 / found.data_range, rel=1e-5)
    assert found.psnr_db == pytest.approx(-20 * math.log10(found.nrmse))
    assert evaluate_images(noisy, reference, data_range=10.0).nrmse == pytest.approx(0.01, rel=1e-5)
    part = Volume(values[4:], reference.affine + np.pad([[8.0]], ((0, 3), (3, 0))))
    with pytest.raises(InputRefused, match="--resample"):
        evaluate_images(noisy, part)
    moved = evaluate_images(noisy, part, data_range=10.0, resample=True)
    assert moved.nrmse == pytest.approx(0.01, rel=1e-5)
    assert "outside the reference" in moved.notes[-1]


def test_a_constant_reference_has_no_data_range() -> None:
    flat = Volume(np.ones((12, 12, 12)), np.eye(4))
    with pytest.raises(InputRefused, match="must have contrast"):
        evaluate_images(flat, flat)
