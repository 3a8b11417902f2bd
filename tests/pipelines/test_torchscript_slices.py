"""The plain way in which bundles restore volumes: what was cut away stays, and tells nothing of the noise."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medseg_pipelines.bundle.torchscript_slices import WholeVolume, detail_level
from medseg_pipelines.slices import PlainSlices


class _Tile(nn.Module):
    """The middle of three slices and a tenth more; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return image[:, 1:2] + 0.1


def test_what_was_cut_away_stays_and_is_seen_carried_on() -> None:
    tile = _Tile()
    options = PlainSlices(
        context=3,
        noise_map=True,
        guide=False,
        alike=0.0,
        source=(0.0, 1.0),
        percentile=99.5,
        limits=(0.0, 2.0),
        batch=1,
    )
    noise = 0.02 * np.random.default_rng(0).normal(size=(24, 20, 6))
    volume = torch.from_numpy(np.where(np.indices(noise.shape)[0] < 12, 0.0, 0.5 + noise)).float()
    found = WholeVolume(tile, options, clusters=2, side=24).restored(volume)
    assert torch.equal(found[:12], volume[:12])
    torch.testing.assert_close(found[12:], volume[12:] + 0.1)
    middle, level = tile.seen[3][0, 1], tile.seen[3][0, 3]
    assert bool((middle[7:12, :20] > 0.4).all()), "as far as neighbours are read"
    assert not middle[:7].any()
    assert float(level.mean()) == pytest.approx(0.02, rel=0.3)


def test_a_slice_that_is_blank_has_no_noise() -> None:
    nothing = torch.zeros(12, 12)
    assert detail_level(nothing, nothing == 0) == 0.0
