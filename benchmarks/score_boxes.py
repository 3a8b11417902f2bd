"""How well a small DB-SAM, trained from nothing on this machine, follows boxes and finds where a structure ends.

    python benchmarks/score_boxes.py --out FOLDER [--minutes 10] [--picture boxes.png]

Draws the task, trains `db-sam-small` on it with one thread, and prints what came of cases that training never saw,
beside the boxes themselves. Where --minutes stop it, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from box_task import bars, middle_box, outlines, walks, write_task  # the folder of the tests is known from here on
from medseg.prompts import Prompts
from medseg_pipelines import load_model
from medseg_pipelines.prompting.model import Prompting
from medseg_pipelines.recipe import RECIPE_FILE, load_recipe
from medseg_pipelines.training import train

CASES, UNSEEN = 24, range(1000, 1006)
_ZOOM = 3
_TRUE, _FOUND, _BOX = (90, 220, 120), (255, 110, 90), (250, 210, 70)


def trained(out: Path, seconds: float | None) -> Prompting | None:
    """The model, or None where time was up before its end."""
    data, run = out / "data", out / "run"
    if not data.is_dir():
        write_task(data, cases=CASES)
    finished = (run / RECIPE_FILE).is_file() and (out / "finished").is_file()
    if not finished:
        started, resume = time.process_time(), (run / "state.pt").is_file()
        report = train("db-sam-small", data, run, resume=resume, workers=0, seconds=seconds)
        total = load_recipe("db-sam-small").training["steps"]
        print(f"step {report.steps} of {total}, {time.process_time() - started:.0f} s of processor time")
        if seconds is not None and report.steps < total:
            return None
        (out / "finished").touch()
    model = load_model(run, device="cpu")
    assert isinstance(model, Prompting)
    return model


def picture(model: Prompting, path: Path, *, cases: int = 3) -> None:
    """Of some cases every other slice with what was prompted on one of them, drawn and true outlines."""
    rows = []
    for seed in UNSEEN[:cases]:
        image, labels = bars(seed)
        label = int(np.argmax(np.bincount(labels.voxels.ravel())[1:])) + 1
        true = labels.voxels == label
        box = middle_box(true, image)
        found = model.session(image).segment(Prompts(items=(box,)))
        low, high = box.on(image.grid)
        at = round(float(low[2]))
        shown = [z for z in range(labels.shape[2]) if z % 2 == at % 2]
        tiles = [
            _tile(image.voxels[:, :, z], true[:, :, z], found.labels[:, :, z] > 0, (low, high) if z == at else None)
            for z in shown
        ]
        rows.append(np.concatenate(tiles, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path)


def _tile(
    grey: np.ndarray, true: np.ndarray, found: np.ndarray, box: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """One slice, enlarged, with outlines."""
    scale = np.ones((_ZOOM, _ZOOM), np.uint8)
    canvas = np.stack([np.kron(grey.T.clip(0, 255).astype(np.uint8), scale)] * 3, axis=-1)
    for mask, colour in ((true, _TRUE), (found, _FOUND)):
        large = np.kron(mask.T, scale).astype(bool)
        inner = large & np.roll(large, 1, 0) & np.roll(large, -1, 0) & np.roll(large, 1, 1) & np.roll(large, -1, 1)
        canvas[large & ~inner] = colour
    tile = Image.fromarray(canvas)
    if box is not None:
        (x0, y0, _), (x1, y1, _) = ((_ZOOM * corner).tolist() for corner in box)
        ImageDraw.Draw(tile).rectangle((x0, y0, x1 + _ZOOM - 1, y1 + _ZOOM - 1), outline=_BOX)
    return np.asarray(tile)


def main() -> None:
    """Train, score, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = trained(given.out, None if given.minutes is None else 60 * given.minutes)
    if model is None:
        return
    found, itself = outlines(model, seeds=UNSEEN)
    print(
        f"{len(found)} outlines of {len(UNSEEN)} new volumes: Dice {np.mean(found):.3f}, "
        f"the boxes themselves {np.mean(itself):.3f}"
    )
    for consensus in (False, True):
        done = walks(model, seeds=UNSEEN, consensus=consensus)
        ended = sum(walk.beyond <= 1 and not walk.missed for walk in done)
        print(
            f"{len(done)} bars followed from one slice{', three planes agreeing' * consensus}: Dice "
            f"{np.mean([walk.dice for walk in done]):.3f}; {ended} ended within a slice of their end, "
            f"the worst went {max(walk.beyond for walk in done)} too far"
        )
    if given.picture:
        picture(model, given.picture)


if __name__ == "__main__":
    main()
