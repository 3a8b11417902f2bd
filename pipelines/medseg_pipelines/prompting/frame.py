"""One slice on the square that the network sees, and prompts on that square."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from medseg.networks.sam import Prediction, Sam
from medseg_pipelines.prompting.given import Given

_SURE = 6.0  # logit of a mask that the user drew


class FrameOptions(Protocol):
    """What is asked of the `prompting` section of a recipe."""

    @property
    def colours(self) -> str:
        """ "sam": its mean and deviation; "unit": 0 to 1."""
        ...

    @property
    def fit(self) -> str:
        """ "longest" or "square"."""
        ...

    @property
    def smoothing(self) -> str:
        """ "bilinear" or "bicubic"."""
        ...


@dataclass(frozen=True)
class Frame:
    """Where a slice lies on the square.

    Attributes:
        original: Rows and columns of the slice.
        padded: Rows and columns that it fills of the square, from the upper left.
    """

    original: tuple[int, int]
    padded: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], spacing: tuple[float, float], side: int, *, fit: str = "longest") -> Frame:
        """Fill the square with the longest side in mm, so that shapes are true; or all of it."""
        if fit == "square":
            return cls(size, (side, side))
        extent = (size[0] * spacing[0], size[1] * spacing[1])
        scale = side / max(extent)
        return cls(size, (max(1, int(extent[0] * scale + 0.5)), max(1, int(extent[1] * scale + 0.5))))

    def moved(self, places: np.ndarray) -> np.ndarray:
        """Pixels (column, row), (..., 2), on the square."""
        return np.asarray(places, np.float32) * (self.padded[1] / self.original[1], self.padded[0] / self.original[0])


def network_pixels(network: Sam, slice_: np.ndarray, frame: Frame, options: FrameOptions) -> Tensor:
    """What the encoder reads of a slice.

    Args:
        network: Its square and its colours.
        slice_: (rows, columns) or (rows, columns, 3), 8 bit.
        frame: Where it lies.
        options: Of the recipe.

    Returns:
        (1, 3, side, side).
    """
    smoothing = Image.Resampling.BICUBIC if options.smoothing == "bicubic" else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(slice_).resize((frame.padded[1], frame.padded[0]), smoothing))
    planes = torch.from_numpy(np.array(resized if resized.ndim == 3 else resized[..., None])).permute(2, 0, 1)
    planes = planes.to(network.pixel_mean.device).float().expand(3, -1, -1)[None]
    if options.colours == "sam":
        return network.preprocess(planes)
    low, high = planes.amin(), planes.amax()
    side = network.config.img_size
    unit = (planes - low) / (high - low).clamp(min=1e-8)
    return F.pad(unit, (0, side - frame.padded[1], 0, side - frame.padded[0]))


class Decoded(NamedTuple):
    """The mask of what was said about one slice.

    Args:
        logits: On the pixels of the slice, (rows, columns).
        memory: On the decoder's grid, to be remembered, (1, 1, 4 H, 4 W).
        estimate: Overlap with the truth, as the network estimates it.
    """

    logits: Tensor
    memory: Tensor
    estimate: float


def decode(network: Sam, embedding: Tensor, frame: Frame, given: Given, memory: Tensor | None = None) -> Decoded:
    """The mask of what was said about one slice.

    Args:
        network: In evaluation mode.
        embedding: Of the slice.
        frame: Where the slice lies.
        given: Points, box and mask in its pixels.
        memory: Logits of a neighbour's mask, (1, 1, 4 H, 4 W), where there is no mask of the user's.
    """
    device = embedding.device
    points = None
    if given.points:
        places = torch.from_numpy(frame.moved(np.asarray(given.points))[None]).float().to(device)
        points = (places, torch.tensor([given.inside], dtype=torch.int64, device=device))
    box = None
    if given.box is not None:
        box = torch.from_numpy(frame.moved(np.asarray(given.box).reshape(2, 2)).reshape(1, 4)).float().to(device)
    grid = (4 * embedding.shape[2], 4 * embedding.shape[3])
    mask = memory if given.mask is None else _sure(given.mask, frame, grid, network).to(device)
    alone = given.box is None and mask is None and len(given.points) == 1  # one point may mean a part or the whole
    answer: Prediction = network.decode(embedding, points=points, boxes=box, masks=mask, multimask=alone)
    best = int(answer.iou[0].argmax())
    logits = answer.logits[:, best : best + 1]
    return Decoded(network.enlarge(logits[0], frame.padded, frame.original)[0], logits, float(answer.iou[0, best]))


def small_mask(mask: np.ndarray, frame: Frame, grid: tuple[int, int], side: int) -> Tensor:
    """How much of each cell of the decoder's grid a mask, (rows, columns), fills: (1, 1, *grid), 0 to 1."""
    rows, columns = (max(1, round(n * g / side)) for n, g in zip(frame.padded, grid, strict=True))
    small = F.interpolate(torch.from_numpy(mask.astype(np.float32))[None, None], (rows, columns), mode="area")
    return F.pad(small, (0, grid[1] - columns, 0, grid[0] - rows))


def _sure(mask: np.ndarray, frame: Frame, grid: tuple[int, int], network: Sam) -> Tensor:
    """A mask that the user drew as logits on the decoder's grid."""
    return _SURE * (2 * small_mask(mask, frame, grid, network.config.img_size) - 1)
