"""A picture of any size through a network, window by window: what the network sees of it never exists as a whole.

Each window is prepared by itself, and each pixel is taken from the window whose middle is the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medseg.picture import Picture
from medseg_pipelines.picture_preparation import prepare_window, unit_limits
from medseg_pipelines.picture_tiles import Predict, predict_tile

if TYPE_CHECKING:  # bundles have no recipes
    from medseg_pipelines.sections import PictureInference, PicturePreparation


@dataclass(frozen=True)
class Window:
    """A square of a picture that the network sees, and the part of it that counts; rows, then columns."""

    seen: tuple[slice, slice]
    counts: tuple[slice, slice]

    @property
    def middle(self) -> tuple[slice, slice]:
        """What counts, as rows and columns of what is seen."""
        (rows, columns), (top, left) = self.counts, (self.seen[0].start, self.seen[1].start)
        return slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)


def windows(size: tuple[int, int], preparation: PicturePreparation, inference: PictureInference) -> list[Window]:
    """Squares that cover a picture (H, W); the network sees `inference.window` pixels of each, enlarged by the zoom."""
    side = max(1, round(inference.window / preparation.zoom))
    overlap = min(side - 1, round(side * inference.overlap))
    lines = [list(_line(length, side, overlap)) for length in size]
    return [Window((rows[0], columns[0]), (rows[1], columns[1])) for rows, columns in product(*lines)]


def _line(length: int, side: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    """Along one axis: what is seen, and what of it counts, both as pixels of the picture."""
    last = max(0, length - side)
    starts = sorted({min(start, last) for start in range(0, last + side - overlap, side - overlap)})
    borders = [(a + side + b) // 2 for a, b in pairwise(starts)]
    for start, low, high in zip(starts, [0, *borders], [*borders, length], strict=True):
        yield slice(start, min(start + side, length)), slice(low, high)


def probabilities_by_window(
    predict: Predict,
    picture: Picture,
    preparation: PicturePreparation,
    inference: PictureInference,
    *,
    outputs: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """How likely each output is at every pixel.

    Args:
        predict: (1, C, window, window) to logits (1, outputs, window, window).
        picture: Of any size.
        preparation: Its zoom enlarges; field and diameter play no part.
        inference: Window, overlap, flips.
        outputs: Of the network.
        device: Where `predict` wants its input.
        progress: Called with the windows done and all windows; may raise to stop.

    Returns:
        (outputs, H, W), 0 to 255 for 0 to 1.
    """
    found = np.zeros((outputs, *picture.size), np.uint8)
    limits = None if preparation.stretch is None else unit_limits(picture, preparation.stretch)
    all_windows = windows(picture.size, preparation, inference)
    side = max(1, round(inference.window / preparation.zoom))
    for done, window in enumerate(all_windows, start=1):
        planes = prepare_window(picture, window.seen, preparation, limits, inference.window / side)
        tile = torch.zeros(planes.shape[0], inference.window, inference.window)
        tile[:, : planes.shape[1], : planes.shape[2]] = torch.from_numpy(planes)
        shares = predict_tile(predict, tile, inference.flips, device)
        shares = F.interpolate(shares[None], size=(side, side), mode="bilinear", antialias=True)[0]
        found[(slice(None), *window.counts)] = (
            (shares[(slice(None), *window.middle)] * 255).round().to(torch.uint8).numpy()
        )
        if progress:
            progress(done, len(all_windows))
    return found
