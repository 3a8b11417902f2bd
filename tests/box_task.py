"""A task that only somebody who looks at the image and at the box can solve: bent bars that turn through the slices.

Several bars look alike, so the box has to be followed; a slanted bar fills little of its box, so the image has to be;
and each of them ends somewhere between the first and the last slice, so that a walk has to end too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import ndimage

from medseg.io import write
from medseg.metrics import dice
from medseg.prompts import Box, Prompts
from medseg.volume import Volume
from medseg_pipelines.prompting.given import Given, tight_box
from medseg_pipelines.prompting.model import Prompting
from medseg_pipelines.prompting.stack import Stack
from medseg_pipelines.recipe import RECIPE_FILE, recipe_folder
from medseg_pipelines.training.boxes import filled

SIDE, SLICES, LEAST = 64, 20, 20
_FEWEST = 500  # voxels of a bar


@dataclass(frozen=True)
class Walk:
    """What came of one bar that was prompted on its middle slice and followed both ways.

    Attributes:
        dice: In three dimensions.
        beyond: Slices behind its ends on which something was drawn.
        missed: Slices of the bar, of 20 pixels and more, on which nothing was.
    """

    dice: float
    beyond: int
    missed: int


def bars(seed: int, *, count: int = 4) -> tuple[Volume, Volume]:
    """An image and its label map, (64, 64, 20) voxels of 1 x 1 x 2 mm: up to `count` bars, each with its own id."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((SIDE, SIDE, SLICES), np.uint8)
    label = 0
    for _ in range(15 * count):
        bar = _bar(rng)
        apart = not (ndimage.binary_dilation(bar, iterations=2) & (ids > 0)).any()
        if apart and bar.sum() >= _FEWEST and label < count:
            label += 1
            ids[bar] = label
    shading = ndimage.gaussian_filter(rng.normal(size=ids.shape), (10, 10, 4), mode="wrap") * 1100
    image = ndimage.gaussian_filter(70 + 90.0 * (ids > 0) + shading, (0.6, 0.6, 0))
    image += rng.normal(size=ids.shape) * 15
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    return Volume(image.clip(1).astype(np.int16), affine), Volume(ids, affine, kind="labels")


def _bar(rng: np.random.Generator) -> np.ndarray:
    """Where a bar is: its cut turns, moves and changes its size from slice to slice."""
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (SIDE, SIDE, SLICES)), indexing="ij")
    along_z = (z - rng.uniform(4, SLICES - 5)) / rng.uniform(4, 8)
    size = np.sqrt(np.clip(1 - along_z**2, 0, 1))
    dx, dy = (each - rng.uniform(14, SIDE - 14) - rng.uniform(-6, 6) * along_z for each in (x, y))
    angle = (rng.uniform(0.2, 0.8) + rng.integers(2)) * np.pi / 2 + rng.uniform(-0.5, 0.5) * along_z
    along = dx * np.cos(angle) + dy * np.sin(angle)
    across = dy * np.cos(angle) - dx * np.sin(angle) - rng.uniform(-0.03, 0.03) * along**2
    return (along / rng.uniform(9, 15)) ** 4 + (across / rng.uniform(2.5, 4.5)) ** 2 < size**2


def write_task(folder: Path, *, cases: int) -> Path:
    """Images and label maps in a folder, as any training on a folder takes them."""
    for number in range(cases):
        for kind, volume in zip(("images", "labels"), bars(number), strict=True):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            write(volume, folder / kind / f"case{number:02}.nii.gz")
    return folder


def write_recipe(folder: Path, *, network: dict[str, Any] | None = None, **training: Any) -> Path:
    """The recipe of db-sam-small with other options of its network and its training."""
    content = yaml.safe_load((recipe_folder("db-sam-small") / RECIPE_FILE).read_text(encoding="utf-8"))
    content["network"]["options"] |= network or {}
    content["training"] |= training
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def outlines(model: Prompting, *, seeds: range, most: int = 200) -> tuple[list[float], list[float]]:
    """Dice of what the model makes of tight boxes, and of the boxes themselves, on cases it never saw."""
    found, itself = [], []
    for seed in seeds:
        image, labels = bars(seed)
        session, stack = model.session(image), Stack.of_volume(labels, 2)
        cuts = [(at, stack.slices[at] == label) for at in range(stack.count) for label in np.unique(labels.voxels)[1:]]
        cuts = [(at, true) for at, true in cuts if true.sum() >= LEAST]
        for at, true in cuts[:: -(-len(cuts) // most)]:
            box = tight_box(true)
            found.append(dice(session.outline(at, Given(box=box)), true))
            itself.append(dice(filled(box, true.shape), true))
    return found, itself


def walks(model: Prompting, *, seeds: range, consensus: bool = False, count: int = 4) -> list[Walk]:
    """Up to `count` bars of each volume, prompted by a tight box on its middle slice and followed both ways."""
    done = []
    for seed in seeds:
        image, labels = bars(seed)
        session = model.session(image)
        for label in np.unique(labels.voxels)[1 : count + 1].tolist():
            true = labels.voxels == label
            prompts = Prompts(items=(middle_box(true, image),))
            drawn = session.segment(prompts, consensus=consensus).labels > 0
            there, sizes = drawn.any((0, 1)), true.sum((0, 1))
            beyond, missed = int((there & (sizes == 0)).sum()), int((~there & (sizes >= LEAST)).sum())
            done.append(Walk(dice(drawn, true), beyond, missed))
    return done


def middle_box(true: np.ndarray, image: Volume) -> Box:
    """The tight box of a mask, (X, Y, Z), on the middle one of its slices."""
    there = np.flatnonzero(true.any((0, 1)))
    at = int(there[len(there) // 2])
    low, high = (np.array([end(axis) for axis in np.nonzero(true[:, :, at])]) for end in (np.min, np.max))
    return Box.of_voxels((*low, at), (*high, at), image.grid)
