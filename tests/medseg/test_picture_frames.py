"""Frames of TIFF, PNG and GIF files, one at a time, and pages written one at a time."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import InputRefused, UsageError
from medseg.io.picture_frames import chosen_frames, count_frames, pages_to, read_frames

FRAMES = [np.random.default_rng(n).integers(0, 256, (20, 30), dtype=np.uint8) for n in range(4)]


def video(path: Path, frames: list[np.ndarray] = FRAMES) -> Path:
    """The frames in one file."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others)
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.gif"])
def test_frames_come_in_their_order_and_whole(name: str, tmp_path: Path) -> None:
    path = video(tmp_path / name)
    assert count_frames(path) == 4
    pictures = list(read_frames(path, range(1, 4)))
    for picture, frame in zip(pictures, FRAMES[1:], strict=True):
        np.testing.assert_array_equal(picture.pixels.max(axis=2), frame)


def test_frames_of_16_bit_keep_their_values_and_black_ones_are_frames(tmp_path: Path) -> None:
    deep = [frame.astype(np.uint16) * 200 for frame in FRAMES[:2]]
    path = video(tmp_path / "a.tif", [*deep, np.zeros((20, 30), np.uint16)])
    found = [picture.pixels[..., 0] for picture in read_frames(path, range(3))]
    np.testing.assert_array_equal(found, [*deep, np.zeros((20, 30), np.uint16)])


@pytest.mark.parametrize(("text", "chosen"), [("all", range(12)), ("7", range(7, 8)), ("3-11", range(3, 12))])
def test_frames_are_named_in_three_ways(text: str, chosen: range) -> None:
    assert chosen_frames(text, 12) == chosen


@pytest.mark.parametrize("text", ["12", "5-4", "1-12", "-1", "first", "", "1,2", "1-"])
def test_frames_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="frames must"):
        chosen_frames(text, 12)


def test_levels_of_a_slide_and_other_files_are_no_frames(tmp_path: Path) -> None:
    path = video(tmp_path / "a.tif", [FRAMES[0], FRAMES[1][::2, ::2].copy()])
    with pytest.raises(InputRefused, match="levels of one picture"):
        list(read_frames(path, range(2)))
    (tmp_path / "a.dcm").write_bytes(b"DICM")
    with pytest.raises(InputRefused, match="one TIFF"):
        count_frames(tmp_path / "a.dcm")
    with pytest.raises(UsageError, match="no such file"):
        count_frames(tmp_path / "nowhere.tif")


def test_pages_are_written_and_read_one_at_a_time(tmp_path: Path) -> None:
    side, count = 400, 48
    list(read_frames(video(tmp_path / "first.tif"), range(2)))  # what is loaded once is no part of the measure
    tracemalloc.start()
    with pages_to(tmp_path / "a.tif") as pages:
        for number in range(count):
            pages.add(Image.fromarray(np.full((side, side), number, np.uint16)))
    values = [int(picture.pixels[0, 0, 0]) for picture in read_frames(tmp_path / "a.tif", range(count))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert values == list(range(count))
    assert peak < count * side * side * 2 / 2, "half of what all pages hold"
