"""A task that only somebody who looks at the image and at the box can solve: bars that cross the plane at any angle.

Several bars look alike, so the box has to be followed; a slanted bar fills little of its box, so the image has to be.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import ndimage

from medseg.io import write
from medseg.volume import Volume
from medseg_pipelines.recipe import RECIPE_FILE, recipe_folder

SIDE = 64
NETWORK: dict[str, Any] = {
    "preset": "db_sam",
    "embed_dim": 48,
    "depth": 4,
    "num_heads": 4,
    "global_attn_indexes": [1, 3],
    "stages": [[0, 0], [1, 1], [2, 2], [3, 3]],
    "img_size": SIDE,
    "patch_size": 4,
    "window_size": 8,
    "out_chans": 32,
    "deform_heads": 4,
    "expand_ratio": 2.0,
    "prior_widths": [16, 32, 48],
    "pyramid": [1, 1, 1, 1],
    "mask_in_chans": 4,
    "decoder_heads": 4,
    "decoder_mlp_dim": 64,
    "iou_head_hidden_dim": 16,
    "dropout": 0.0,
    "drop_path": 0.0,
}


def bars(seed: int, slices: int = 12) -> tuple[Volume, Volume]:
    """An image and its label map: three bars on every slice, each with an id of its own."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    image = np.zeros((SIDE, SIDE, slices))
    ids = np.zeros((SIDE, SIDE, slices), np.uint8)
    for z in range(slices):
        for label in (1, 2, 3):
            centre, angle = (
                rng.uniform(14, SIDE - 14, 2),
                rng.uniform(0.2, 0.6) * np.pi / 2 + rng.integers(4) * np.pi / 2,
            )
            along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
            across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
            bar = (np.abs(along) < rng.uniform(9, 13)) & (np.abs(across) < rng.uniform(2.5, 4))
            ids[bar, z] = label
        image[:, :, z] = 60 + 90 * (ids[:, :, z] > 0)
        image[:, :, z] += ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 6) * 150
    image += rng.normal(size=image.shape) * 12
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    return Volume(image.clip(1).astype(np.int16), affine), Volume(ids, affine, kind="labels")


def write_task(folder: Path, *, cases: int, first: int = 0) -> Path:
    """Images and label maps in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + cases):
        image, labels = bars(number)
        write(image, folder / f"case{number:02}.nii.gz")
        write(labels, folder / f"labels{number:02}.nii.gz")
    return folder


def write_recipe(folder: Path, *, steps: int, batch: int = 8, **changes: Any) -> Path:
    """The recipe of db-sam with a tiny network that learns this task; `changes` are options of the network."""
    content = yaml.safe_load((recipe_folder("db-sam") / RECIPE_FILE).read_text(encoding="utf-8"))
    content |= {"name": "tiny-db-sam", "network": {"name": "db-sam", "options": NETWORK | changes}}
    content["training"] = {
        "kind": "boxes",
        "images": "case*.nii.gz",
        "labels": "labels*.nii.gz",
        "steps": steps,
        "batch": batch,
        "least": 40,
        "jitter": 0.03,
        "learning_rate": 2e-3,
        "warmup": 10,
        "average": 0.95,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


def scores(model: Any, *, seeds: range) -> tuple[float, float]:
    """Mean Dice of what the model makes of tight boxes, and of the boxes themselves, on cases it never saw."""
    from medseg.prompts import Box, Prompts

    found, itself = [], []
    for seed in seeds:
        image, labels = bars(seed)
        session = model.session(image)
        for z in range(labels.shape[2]):
            for label in (1, 2, 3):
                truth = labels.voxels[:, :, z] == label
                if truth.sum() < 40:
                    continue
                low, high = (np.array([f(axis) for axis in np.nonzero(truth)]) for f in (np.min, np.max))
                box = Box.of_voxels((*low, z), (*high, z), image.grid)
                drawn = session.segment(Prompts(items=(box,)), propagate=False).labels[:, :, z] > 0
                filled = np.zeros_like(truth)
                filled[low[0] : high[0] + 1, low[1] : high[1] + 1] = True
                found.append(_dice(drawn, truth))
                itself.append(_dice(filled, truth))
    return float(np.mean(found)), float(np.mean(itself))


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def main() -> None:
    """The whole training, some minutes of processor time, and what came of it."""
    import sys

    from medseg_pipelines import load_model
    from medseg_pipelines.training import train

    out = Path(sys.argv[1])
    data, recipe = write_task(out / "data", cases=6), write_recipe(out / "recipe", steps=400)
    report = train(recipe, data, out / "run", workers=0, progress=lambda step, _, loss: print(step, round(loss, 3)))
    found, itself = scores(load_model(out / "run", device="cpu"), seeds=range(100, 104))
    print(f"loss {report.loss:.3f}; Dice {found:.3f} on cases never seen, the boxes themselves {itself:.3f}")


if __name__ == "__main__":
    main()
