"""Picture: a flat image with its colours, what its file said of millimetres, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class PictureSource:
    """What a file said of itself.

    Attributes:
        format: "PNG", "JPEG", "TIFF", "BMP" or "DICOM".
        mode: Channels and depth as the file has them, such as "RGB, 8 bit".
        turned: Whether the file asked to be turned or mirrored for display, which has been done.
    """

    format: str
    mode: str
    turned: bool = False


@dataclass(frozen=True, eq=False)
class Picture:
    """Pixels as they are to be looked at: row 0 at the top, column 0 at the left.

    Attributes:
        pixels: (H, W, C), C 1 for grey or 3 for red, green, blue; uint8 or uint16.
        spacing: mm from row to row and from column to column; None where nobody stated them.
        source: Of the file; None for a picture made in memory.
        notes: What was changed on reading, one sentence each.
    """

    pixels: NDArray[np.integer]
    spacing: tuple[float, float] | None = None
    source: PictureSource | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] not in (1, 3) or not self.pixels.size:
            raise ValueError(f"pixels must be (H, W, 1) or (H, W, 3), got {self.pixels.shape}")
        if self.pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, got {self.pixels.dtype}")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing must be positive in mm, got {self.spacing}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.pixels.shape[2]

    def unit_planes(self) -> NDArray[np.float32]:
        """Red, green and blue, (3, H, W), from 0 to 1 over the whole range of the type; grey fills all three."""
        scaled = self.pixels.astype(np.float32) / np.float32(np.iinfo(self.pixels.dtype).max)
        return np.ascontiguousarray(np.broadcast_to(np.moveaxis(scaled, 2, 0), (3, *self.size)))

    def eight_bit(self) -> NDArray[np.uint8]:
        """(H, W, 3), for looking at; 16 bit are stretched over what the picture uses."""
        pixels = self.pixels
        if pixels.dtype == np.uint16:
            low, high = int(pixels.min()), max(int(pixels.max()), int(pixels.min()) + 1)
            pixels = ((pixels.astype(np.float32) - low) * (255 / (high - low))).round().astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(pixels, (*self.size, 3)), np.uint8)
