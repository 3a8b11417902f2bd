"""Labels reduced while the window slides against the best class of a full buffer."""

from itertools import product
from math import ceil, prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medseg.errors import Cancelled
from medseg_pipelines.inferers import Plan, label_volume, plan
from memory import memory_of

SIDED = np.array([[0, 0], [2, 1], [3, 3], [5, 4]])
UNSIDED = np.array([[0, 0], [1, 1], [7, 7]])
WIDE = np.array([[0, 0], [300, 300], [1000, 999]])
CASES = [  # shape, window, least overlap
    ((12, 10, 14), (8, 8, 8), 0.25),
    ((12, 10, 14), (8, 4, 16), 0.5),
    ((17, 9, 5), (4, 8, 4), 0.0),
    ((20, 6, 6), (8, 8, 8), 0.75),
    ((5, 6, 7), (8, 8, 8), 0.25),
    ((1, 9, 13), (4, 4, 4), 0.25),
    ((9, 1, 1), (4, 4, 4), 0.3),
    ((1, 1, 1), (4, 4, 4), 0.25),
    ((6, 11, 3), (1, 4, 2), 0.25),
]


def _outputs(table: np.ndarray) -> int:
    return len(table) + int((table[:, 0] != table[:, 1]).any())


def _network(table: np.ndarray) -> nn.Module:
    """Scores that depend on the neighbours, and so on where a window ends."""
    torch.manual_seed(0)
    return nn.Conv3d(1, _outputs(table), kernel_size=3, padding=1).eval()


def _image(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _gaussian(window: tuple[int, ...]) -> Tensor:
    """Separable, an eighth of the window wide, nowhere below a thousandth."""
    weight = torch.ones(())
    for side in window:
        line = torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (side / 8)) ** 2)
        weight = weight[..., None] * line
    return weight.clamp(min=1e-3)


def _full_buffer(network: nn.Module, image: np.ndarray, layout: Plan, table: np.ndarray) -> np.ndarray:
    """Every score of every voxel blended and divided by its weights, then the best class and its side."""
    shape = [max(n, w) for n, w in zip(image.shape, layout.window, strict=True)]
    source = torch.zeros(shape)
    source[tuple(slice(n) for n in image.shape)] = torch.from_numpy(image)
    scores, weights = torch.zeros(_outputs(table), *shape), torch.zeros(shape)
    for start in product(*layout.starts):
        place = tuple(slice(at, at + n) for at, n in zip(start, layout.window, strict=True))
        with torch.no_grad():
            scores[(slice(None), *place)] += network(source[place][None, None])[0] * _gaussian(layout.window)
        weights[place] += _gaussian(layout.window)
    assert float(weights.min()) > 0
    scores /= weights
    best = scores[: len(table)].argmax(0).numpy()
    left = (scores[len(table)] > 0).numpy() if len(scores) > len(table) else np.zeros(shape, bool)
    return table[best, left.astype(int)][tuple(slice(n) for n in image.shape)]


@pytest.mark.parametrize("table", [SIDED, UNSIDED, WIDE], ids=["sided", "unsided", "wide"])
@pytest.mark.parametrize(("shape", "window", "overlap"), CASES, ids=str)
def test_equals_the_full_buffer(
    shape: tuple[int, ...], window: tuple[int, ...], overlap: float, table: np.ndarray
) -> None:
    network, image = _network(table), _image(shape)
    layout = plan(shape, window, overlap, outputs=_outputs(table))
    labels = label_volume(network, image, layout=layout, table=table)
    assert labels.dtype == (np.uint16 if table.max() > 255 else np.uint8)
    assert np.array_equal(labels, _full_buffer(network, image, layout, table))
    assert len(np.unique(labels)) > 1 or image.size == 1


def test_sides_are_multiples_of_what_the_network_takes() -> None:
    seen = []

    def predict(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape[2:]))
        return torch.cat((x, -x), dim=1)

    shape, table = (19, 40, 5), np.array([[0, 0], [1, 1]])
    layout = plan(shape, (16, 32, 32), 0.25, outputs=2, multiple=8)
    assert layout.window == (16, 32, 8)
    labels = label_volume(predict, _image(shape), layout=layout, table=table)
    assert set(seen) == {(16, 32, 8)}
    assert np.array_equal(labels, (_image(shape) < 0).astype(np.uint8))


@given(size=st.integers(1, 300), side=st.integers(1, 64), overlap=st.floats(0, 0.9))
def test_windows_cover_every_voxel_and_overlap_enough(size: int, side: int, overlap: float) -> None:
    layout = plan((size, 1, 1), (side, 1, 1), overlap, outputs=2)
    width, starts = layout.window[0], layout.starts[0]
    assert (starts[0], starts[-1] + width) == (0, max(size, width))
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert (steps <= max(1, ceil(side * (1 - overlap)))).all()
    assert layout.tiles == len(starts)


def test_progress_counts_every_window() -> None:
    calls: list[tuple[int, int]] = []
    layout = plan((12, 10, 14), (8, 8, 8), 0.25, outputs=3)
    label_volume(
        _network(UNSIDED), _image((12, 10, 14)), layout=layout, table=UNSIDED, progress=lambda *at: calls.append(at)
    )
    assert calls == [(i + 1, layout.tiles) for i in range(layout.tiles)]
    calls.clear()
    single = plan((4, 4, 4), (8, 8, 8), 0.25, outputs=3)
    label_volume(
        _network(UNSIDED), _image((4, 4, 4)), layout=single, table=UNSIDED, progress=lambda *at: calls.append(at)
    )
    assert calls == [(1, 1)]


def test_raising_in_progress_stops_at_once() -> None:
    network, seen = _network(UNSIDED), []

    def predict(x: Tensor) -> Tensor:
        seen.append(1)
        return network(x)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Cancelled("enough")

    layout = plan((12, 10, 14), (8, 8, 8), 0.25, outputs=3)
    with pytest.raises(Cancelled):
        label_volume(predict, _image((12, 10, 14)), layout=layout, table=UNSIDED, progress=stop)
    assert len(seen) == 3 < layout.tiles


def test_only_open_planes_are_held() -> None:
    shape, window = (240, 12, 10), (12, 12, 10)
    image, layout = _image(shape), plan(shape, window, 0.25, outputs=_outputs(SIDED))

    def predict(x: Tensor) -> Tensor:
        return x.expand(-1, _outputs(SIDED), -1, -1, -1)

    found = memory_of(lambda: label_volume(predict, image, layout=layout, table=SIDED))
    scores = 4 * _outputs(SIDED)  # bytes per voxel
    assert found.largest <= scores * prod(window)
    assert found.peak < scores * prod(shape) / 2
    assert layout.peak_bytes < scores * prod(shape) / 2


def test_expected_memory_grows_with_what_is_asked() -> None:
    small = plan((64, 64, 64), (32, 32, 32), 0.25, outputs=4, bytes_per_voxel=100)
    assert small.peak_bytes < plan((64, 64, 64), (32, 32, 32), 0.25, outputs=8, bytes_per_voxel=100).peak_bytes
    assert small.peak_bytes < plan((128, 64, 64), (32, 32, 32), 0.25, outputs=4, bytes_per_voxel=100).peak_bytes
    assert small.peak_bytes < plan((64, 64, 64), (32, 32, 32), 0.25, outputs=4, bytes_per_voxel=200).peak_bytes
