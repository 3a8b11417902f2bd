"""Pictures made up for tests: a fundus photograph, files that are no pictures, a model of a few thousand parameters."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from medseg_pipelines.recipe import RECIPE_FILE, recipe_folder
from random_model import random_network, write_random_model

COLOURS = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def fundus(height: int = 240, width: int = 300) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """An orange disc on black with a dark cross of vessels, (H, W, 3), and the mask of the cross, (H, W)."""
    y, x = np.mgrid[:height, :width]
    radius = 0.48 * min(height, width)
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 <= radius**2
    vessels = disc & ((abs(y - height / 2) < 3) | (abs(x - width / 2 - 0.2 * y) < 2))
    noise = np.random.default_rng(0).normal(0, 3, (height, width))
    light = np.where(disc, 150 + 0.1 * x + noise, 6 + 0.5 * noise)
    light = np.where(vessels, light - 50, light)
    pixels = np.stack([light, 0.6 * light, 0.3 * light], axis=2)
    return np.clip(pixels, 0, 255).astype(np.uint8), vessels


def tiny_vessel_recipe() -> dict[str, Any]:
    """The recipe of `vessels` with a tiny network and small tiles."""
    content = yaml.safe_load((recipe_folder("vessels") / RECIPE_FILE).read_text(encoding="utf-8"))
    content["name"] = "tiny-vessels"
    content["network"]["options"] |= {"base_channels": 4, "depths": [1, 1, 1, 1]}
    content["preparation"]["diameter"] = 150
    content["inference"] |= {"window": 96}
    content["scope"]["diameter"] = [100, 8000]
    return content


def build_tiny_vessel_model(folder: Path) -> Path:
    """Recipe and random weights in `folder`, marked as untrained; returns the folder."""
    content = tiny_vessel_recipe()
    return write_random_model(folder, content, random_network(content, seed=3))


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        parts += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return parts


def bad_picture(kind: str, folder: Path) -> Path:
    """A file in `folder` that is no picture to work on: broken, hostile, or not what its name says."""
    path = folder / ("a.jpg" if kind in ("cmyk", "png in disguise") else "a.tif" if kind == "pages" else "a.png")
    image = Image.fromarray(COLOURS)
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no picture at all")
        case "cut":
            image.save(path)
            path.write_bytes(path.read_bytes()[:200])
        case "cmyk":
            image.convert("CMYK").save(path)
        case "animated":
            image.save(path, save_all=True, append_images=[image.rotate(90), image.rotate(180)])
        case "pages":
            image.save(path, save_all=True, append_images=[image.rotate(90)])
        case "png in disguise":
            image.save(path, format="PNG")
        case "gigapixel":
            path.write_bytes(header_of(40_000, 40_000))
        case "large":
            path.write_bytes(header_of(12_600, 12_600))
        case "float":
            path = path.with_suffix(".tif")
            Image.fromarray(COLOURS[..., 0].astype(np.float32)).save(path)
        case "one value":
            Image.new("RGB", (30, 20), (9, 9, 9)).save(path)
    return path
