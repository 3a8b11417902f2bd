"""Steps between grids: exact where they can be, and always exactly back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.geometry import Chain, Crop, Pad, Reorient, Resample, crop, foreground_box, pad, to_ras, to_spacing
from medseg.volume import Grid, Volume

OBLIQUE = np.array([[0.0, -1.9, 0.3, 10.0], [0.9, 0.0, 0.0, -20.0], [0.0, 0.3, 2.95, 5.5], [0.0, 0.0, 0.0, 1.0]])


def image(shape: tuple[int, int, int] = (7, 8, 9), affine: np.ndarray = OBLIQUE) -> Volume:
    return Volume(np.random.default_rng(0).normal(size=shape).astype(np.float32), affine)


def places(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """(N, 3) indices to millimetres."""
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def test_to_ras_keeps_every_voxel_in_its_place() -> None:
    volume = image()
    turned, step = to_ras(volume)
    assert turned.orientation == "RAS"
    indices = np.argwhere(np.ones(turned.shape, bool))
    back = np.linalg.inv(volume.affine) @ np.c_[places(turned.grid, indices), np.ones(len(indices))].T
    x, y, z = np.rint(back[:3]).astype(int)
    np.testing.assert_allclose(back[:3], (x, y, z), atol=1e-9)
    assert np.array_equal(turned.voxels[tuple(indices.T)], volume.voxels[x, y, z])
    assert np.array_equal(step.invert(turned).voxels, volume.voxels)


def test_the_corner_of_the_field_of_view_stays() -> None:
    volume = image()
    finer, _ = to_spacing(volume, (0.5, 0.7, 4.0))
    corner = np.full((1, 3), -0.5)
    np.testing.assert_allclose(places(finer.grid, corner), places(volume.grid, corner), atol=1e-9)
    assert finer.spacing == pytest.approx((0.5, 0.7, 4.0))
    assert np.all(np.array(finer.shape) * finer.spacing > np.array(volume.shape) * volume.spacing - 0.01)


@pytest.mark.parametrize("spacing", [(0.4, 0.7, 0.9), (2.0, 3.0, 4.0), (2.5, 1.3, 4.5)], ids=str)
def test_a_ramp_stays_a_ramp_away_from_the_border(spacing: tuple[float, float, float]) -> None:
    ramp = np.add.outer(np.add.outer(np.arange(30.0), 2 * np.arange(30.0)), 3 * np.arange(30.0)).astype(np.float32)
    result, _ = to_spacing(Volume(ramp, np.eye(4)), spacing)
    position = [(np.arange(n) + 0.5) * s - 0.5 for n, s in zip(result.shape, spacing, strict=True)]
    expected = np.add.outer(np.add.outer(position[0], 2 * position[1]), 3 * position[2])
    inner = tuple(slice(int(np.ceil(5 / s)) + 1, -int(np.ceil(5 / s)) - 1) for s in spacing)
    # The ramp reaches 174: float32 rounds it, three weighted sums and their weights by a few units in the last place.
    np.testing.assert_allclose(result.voxels[inner], expected[inner], atol=174 * 2**-23 * 12)


def test_coarse_sampling_averages_fine_stripes() -> None:
    stripes = np.zeros((64, 8, 8), np.float32)
    stripes[::2] = 1
    coarse, _ = to_spacing(Volume(stripes, np.eye(4)), (3.0, 1.0, 1.0))
    # Plain samples would be 0 or 1. The box of width sqrt(8) covers one period of 2 and 0.83 of the next, whose mean is
    # at most 0.5 away from the average: 0.5 * 0.83 / 2.83.
    assert np.abs(coarse.voxels[2:-2] - 0.5).max() < 0.15


def test_mean_is_kept_when_an_image_shrinks() -> None:
    volume = image((40, 40, 40), np.eye(4))
    coarse, _ = to_spacing(volume, (2.0, 4.0, 5.0))
    assert coarse.voxels.mean() == pytest.approx(volume.voxels.mean(), abs=0.01)


def test_labels_take_the_nearest_voxel() -> None:
    labels = Volume(np.random.default_rng(1).integers(0, 9, (6, 5, 4)).astype(np.uint8), np.eye(4), "labels")
    finer, step = to_spacing(labels, (0.5, 0.5, 0.25))
    assert np.array_equal(finer.voxels, labels.voxels.repeat(2, 0).repeat(2, 1).repeat(4, 2))
    assert np.array_equal(step.invert(finer).voxels, labels.voxels)


def test_spacing_that_is_already_there_changes_nothing() -> None:
    volume = image()
    same, step = to_spacing(volume, tuple(s * (1 + 1e-6) for s in volume.spacing))
    assert same.voxels is volume.voxels
    assert np.array_equal(step.after.affine, volume.affine)


def test_crop_and_pad_are_undone() -> None:
    volume = image()
    part, cut = crop(volume, ((1, 6), (0, 8), (3, 4)))
    assert np.array_equal(part.voxels, volume.voxels[1:6, :, 3:4])
    outside = cut.invert(part).voxels
    assert np.array_equal(outside[1:6, :, 3:4], part.voxels)
    assert np.count_nonzero(outside) == part.voxels.size
    grown, around = pad(volume, (12, 8, 10), value=-1000.0)
    assert grown.shape == (12, 8, 10)
    assert grown.voxels[0, 0, 0] == -1000
    np.testing.assert_allclose(places(grown.grid, np.array([[2, 0, 0]])), places(volume.grid, np.zeros((1, 3))))
    assert np.array_equal(around.invert(grown).voxels, volume.voxels)


def test_foreground_box() -> None:
    voxels = np.zeros((10, 10, 10))
    voxels[2:5, 3, 4:9] = 1
    volume = Volume(voxels, np.diag([1.0, 2.0, 1.0, 1.0]))
    assert foreground_box(volume) == ((2, 5), (3, 4), (4, 9))
    assert foreground_box(volume, margin=2.0) == ((0, 7), (2, 5), (2, 10))
    assert foreground_box(volume, above=2.0) == ((0, 10), (0, 10), (0, 10))


def chain_for(grid: Grid, spacing: tuple[float, float, float]) -> Chain:
    chain = Chain((Reorient.to_ras(grid),))
    chain = chain.then(Resample.to_spacing(chain.steps[-1].after, spacing))
    x, y, z = chain.steps[-1].after.shape
    chain = chain.then(Crop.to_box(chain.steps[-1].after, ((0, x), (y // 3, y), (0, max(1, z - 1)))))
    return chain.then(Pad.to_shape(chain.steps[-1].after, (16, 5, 16)))


lengths = st.floats(0.4, 6.0)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 12)] * 3),
    spacing=st.tuples(lengths, lengths, lengths),
    target=st.tuples(lengths, lengths, lengths),
    turn=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
)
def test_any_chain_lands_exactly_on_the_input_grid(shape, spacing, target, turn) -> None:
    rotation = np.eye(3)
    for plane, angle in zip(((0, 1), (1, 2), (0, 2)), turn, strict=True):
        about = np.eye(3)
        about[np.ix_(plane, plane)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        rotation = rotation @ about
    affine = np.eye(4)
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = (12.3, -45.6, 78.9)
    volume = Volume(np.zeros(shape, np.float32), affine)
    chain = chain_for(volume.grid, target)
    work = chain.apply(volume)
    assert work.orientation == "RAS"
    landed = chain.undo(work.with_voxels(np.ones(work.shape, np.uint8), kind="labels"))
    assert landed.shape == volume.shape
    assert landed.affine.tobytes() == volume.affine.tobytes()


def test_steps_refuse_what_lies_elsewhere() -> None:
    volume = image()
    step = Reorient.to_ras(volume.grid)
    with pytest.raises(ValueError, match="must lie on the grid"):
        step.invert(volume)
    with pytest.raises(ValueError, match="must meet"):
        Chain((step, step))
    with pytest.raises(ValueError, match="positive lengths"):
        to_spacing(volume, (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="box must lie within"):
        crop(volume, ((0, 8), (0, 8), (0, 9)))
