"""Prompts as they are written on the command line, or in a file, to what a model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import UsageError
from medseg.io.prompts import read_prompts
from medseg.prompts import Box, Place, Point, Prompt, Prompts
from medseg.volume import Grid

_VOXEL = "voxel:"


@dataclass(frozen=True, kw_only=True)
class PromptRequest:
    """What the user said of prompts, and of the model that follows them.

    Attributes:
        points: "x,y,z" in mm, "voxel:i,j,k", or "x,y" on a picture; ",-" at the end for outside.
        boxes: "x,y,z,x,y,z" in mm, "voxel:i,j,k,i,j,k", or "x,y,x,y" on a picture.
        file: Prompts in a JSON file.
        propagate: Go on to slices without prompts.
        consensus: Ask along all three axes.
        window: Grey values that become black and white, "low,high".
        weights: Name in `medseg weights`.
        embeddings: Folder for encoded slices.
    """

    points: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    file: Path | None = None
    propagate: bool = True
    consensus: bool = False
    window: str | None = None
    weights: str | None = None
    embeddings: Path | None = None

    @property
    def any(self) -> bool:
        """Whether there are prompts."""
        return bool(self.points or self.boxes or self.file)

    def check(self, model: str | None) -> None:
        """Find what is wrong before anything is loaded.

        Raises:
            UsageError: Two ways to prompt at once, points that could belong to several boxes, or no model was named.
        """
        said = self.any or self.consensus or not self.propagate or self.window or self.weights or self.embeddings
        if said and model is None:
            raise UsageError("prompts need a model that follows them, none was named; add -m sam, medsam or db-sam")
        if self.file and (self.points or self.boxes):
            raise UsageError(
                "prompts must come from a file or from --points and --box, got both; put all into the file"
            )
        if self.points and len(self.boxes) > 1:
            raise UsageError("points beside several boxes could belong to any; say which in a file for --prompts")
        self.grey_window()

    def grey_window(self) -> tuple[float, float] | None:
        """Grey values that become black and white, if they were given.

        Raises:
            UsageError: They are not two rising numbers.
        """
        if self.window is None:
            return None
        low, high = _numbers(self.window, 2, "--window")
        if low >= high:
            raise UsageError(f"--window must be two rising numbers, got '{self.window}'")
        return low, high

    def prompts(self, grid: Grid | None) -> Prompts | None:
        """The prompts on an image; each box is a structure of its own, and points belong to the box or make one.

        Args:
            grid: Of the volume; None for a picture.

        Raises:
            UsageError: One of them cannot be read.
            InputRefused: The file says something wrong.
        """
        if not self.any:
            return None
        if self.file:
            return read_prompts(self.file)
        items: list[Prompt] = [_box(text, grid, label) for label, text in enumerate(self.boxes, start=1)]
        items += [_point(text, grid) for text in self.points]
        return Prompts(items=tuple(items), space="mm" if grid else "px")


def _box(text: str, grid: Grid | None, label: int) -> Box:
    if text.startswith(_VOXEL) and grid is not None:
        numbers = _numbers(text.removeprefix(_VOXEL), 6, "--box")
        return Box.of_voxels(numbers[:3], numbers[3:], grid, label=label)
    numbers = _numbers(text, 4 if grid is None else 6, "--box")
    half = len(numbers) // 2
    return Box(first=_place(numbers[:half]), last=_place(numbers[half:]), label=label)


def _point(text: str, grid: Grid | None) -> Point:
    inside = not text.endswith(",-")
    plain = text.removesuffix(",-").removesuffix(",+")
    if plain.startswith(_VOXEL) and grid is not None:
        return Point.at_voxel(_numbers(plain.removeprefix(_VOXEL), 3, "--points"), grid, inside=inside)
    return Point(at=_place(_numbers(plain, 2 if grid is None else 3, "--points")), inside=inside)


def _place(numbers: Sequence[float]) -> Place:
    return numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 0.0


def _numbers(text: str, count: int, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise UsageError(f"{option} must be {count} numbers with commas between them, got '{text}'")
    return numbers
