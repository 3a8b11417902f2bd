"""A network over a picture tile by tile, probabilities blended; mirrored as well where that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.components import without_specks
from medseg.fundus import diameter
from medseg_pipelines import inferers

if TYPE_CHECKING:  # bundles have no recipes
    from medseg_pipelines.sections import PictureInference

Predict = Callable[[Tensor], Tensor]
_MIRRORED: tuple[tuple[int, ...], ...] = ((), (2,), (3,), (2, 3))


def tile_plan(size: tuple[int, int], options: PictureInference, *, outputs: int) -> inferers.Plan:
    """Square tiles over a picture (h, w), all of one size: a smaller picture is filled up."""
    side = options.window
    return inferers.plan(
        (max(size[0], side), max(size[1], side), 1),
        (side, side, 1),
        options.overlap,
        outputs=outputs,
        bytes_per_voxel=options.bytes_per_pixel,
    )


def labelled(
    found: NDArray[np.float32], field: NDArray[np.bool_], labels: Sequence[int], options: PictureInference
) -> NDArray[np.uint8]:
    """The likeliest label where it is likely enough.

    Args:
        found: Probabilities, (K, H, W).
        field: Where the picture shows something, (H, W).
        labels: K ids.
        options: Of the recipe.

    Returns:
        Label ids, (H, W).
    """
    ids, best = np.array(labels, np.uint8), found.argmax(0)
    drawn = np.where(found.max(0) > options.threshold, ids[best], 0).astype(np.uint8)
    if not (options.smallest or options.rim):
        return drawn
    across = diameter(field)
    return without_specks(drawn, field, least=options.smallest * across**2, rim=options.rim * across)


def probabilities(
    predict: Predict,
    planes: NDArray[np.float32],
    layout: inferers.Plan,
    *,
    outputs: int,
    flips: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """How likely each label is at every pixel, tiles blended with weights that fall towards their borders.

    Args:
        predict: (1, C, side, side) to logits (1, K, side, side).
        planes: (C, h, w), as the network expects them.
        layout: From `tile_plan` for this size.
        outputs: K.
        flips: Average over the picture and its three mirror images.
        device: Where `predict` wants its input.
        progress: Called with the tiles done and all tiles; may raise to stop.

    Returns:
        (K, h, w), 0 to 1.
    """
    height, width = planes.shape[1:]
    side = layout.window[0]
    source = torch.zeros(planes.shape[0], max(height, side), max(width, side))
    source[:, :height, :width] = torch.from_numpy(planes)
    weight = inferers.blend_weights(layout.window)[..., 0]
    total, weights = torch.zeros(outputs, *source.shape[1:]), torch.zeros(source.shape[1:])
    for done, (row, column) in enumerate(product(*layout.starts[:2]), start=1):
        place = (slice(row, row + side), slice(column, column + side))
        total[(slice(None), *place)] += predict_tile(predict, source[(slice(None), *place)], flips, device) * weight
        weights[place] += weight
        if progress:
            progress(done, layout.tiles)
    return (total / weights)[:, :height, :width].numpy()


def predict_tile(predict: Predict, tile: Tensor, flips: bool, device: torch.device | str) -> Tensor:
    """(C, side, side) to probabilities (K, side, side), of the tile and, if wanted, of its mirror images."""
    found = []
    with torch.inference_mode():
        for axes in _MIRRORED if flips else _MIRRORED[:1]:
            logits = predict(tile[None].flip(axes).to(device))
            found.append(logits.float().sigmoid().flip(axes)[0].cpu())
    return torch.stack(found).mean(0)
