"""Scores of the model `nuclei` on pictures that its training never saw, beside Otsu's threshold with a watershed.

    python benchmarks/score_nuclei.py --data ../shared/data/nuclei [--model nuclei] [--pictures FOLDER] [--large 6000]

The held-back pictures are those of the recipe's own split. The classical way gets the better of dark on light and light
on dark for each picture, which it would have to guess. `--large` adds a run over tiles of one picture, side by side,
with its time and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from medseg.instance_scores import InstanceScores, score_instances
from medseg.io.pictures import read_ids, read_picture
from medseg.picture import Picture
from medseg_pipelines import load_model
from medseg_pipelines.picture_instance_results import InstanceResult
from medseg_pipelines.recipe import load_recipe
from medseg_pipelines.training.folder_pairs import Pair, find_pairs, split

_SMALLEST = 12  # px, as of the model
_COLUMNS = ("dice", "f1", "panoptic_quality", "aji", "found", "true")


def otsu(picture: Picture, true: NDArray[np.int32]) -> InstanceScores:
    """Grey values cut by Otsu's threshold, parts by the watershed of their depth; the better of both polarities."""
    grey = ndimage.gaussian_filter(picture.unit_planes().mean(0), 1)
    best = None
    for mask in (grey > threshold_otsu(grey), grey < threshold_otsu(grey)):
        depth = np.asarray(ndimage.distance_transform_edt(mask))
        seeds = np.zeros(mask.shape, np.int32)
        peaks = peak_local_max(depth, min_distance=5, labels=np.asarray(ndimage.label(mask)[0]))  # pyright: ignore[reportIndexIssue]
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        ids = watershed(-depth, seeds, mask=mask)
        ids[(np.bincount(ids.ravel()) < _SMALLEST)[ids]] = 0
        scores = score_instances(ids, true)
        best = scores if best is None or scores.panoptic_quality > best.panoptic_quality else best
    assert best is not None
    return best


def kinds_of(data: Path) -> dict[str, str]:
    """What the manifest of the data pack says of its pictures, by file name."""
    manifest = data.parent / "MANIFEST.json"
    if not manifest.is_file():
        return {}
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    return {Path(file["path"]).name: file.get("modality", "").split(", ")[-1] for file in files}


def means(title: str, scores: list[InstanceScores]) -> str:
    """One row of the table."""
    values = [float(np.mean([getattr(score, column) for score in scores])) for column in _COLUMNS]
    return (
        f"| {title} ({len(scores)}) | "
        + " | ".join(f"{value:.3f}" for value in values[:4])
        + (f" | {values[4]:.1f} | {values[5]:.1f} |")
    )


def run_large(model: object, pairs: list[Pair], side: int) -> None:
    """One large picture, laid with pictures of the fluorescence kind; prints count, time and memory."""
    pixels, truth, count = np.zeros((side, side, 3), np.uint8), np.zeros((side, side), np.int64), 0
    tiles = [(read_picture(pair.image).pixels, read_ids(pair.mask)) for pair in pairs]
    tiles = [(tile[:256, :256], ids[:256, :256]) for tile, ids in tiles if min(tile.shape[:2]) >= 256]
    for number, (row, column) in enumerate(np.ndindex(-(-side // 256), -(-side // 256))):
        tile, ids = tiles[number % len(tiles)]
        here = (slice(row * 256, min(side, row * 256 + 256)), slice(column * 256, min(side, column * 256 + 256)))
        part = (slice(0, here[0].stop - here[0].start), slice(0, here[1].stop - here[1].start))
        pixels[here] = tile[part]
        truth[here] = np.where(ids[part] > 0, ids[part] + count, 0)
        count += int(ids.max())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, wall = time.process_time(), time.monotonic()
    result = model(Picture(pixels))  # pyright: ignore[reportCallIssue] # checked by the caller
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = score_instances(result.labels, truth)
    print(
        f"\n{side} x {side} pixels: {scores.found} things ({scores.true} true), F1 {scores.f1:.3f}, "
        f"{time.process_time() - started:.0f} s of processor time, {time.monotonic() - wall:.0f} s on the clock, "
        f"peak {peak / 2**20:.2f} GiB, {(peak - before) / 2**20:.2f} GiB above the picture and the model"
    )


def main() -> None:
    """Print a table: every kind of picture and all, ours and the classical way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument("--pictures", type=Path, help="Folder for overlays; it must exist.")
    parser.add_argument("--learned", action="store_true", help="Score the pictures of training instead.")
    parser.add_argument("--large", type=int, help="Side in pixels of one large picture to run.")
    args = parser.parse_args()
    options = load_recipe(args.model).training
    pairs = split(find_pairs(args.data), options["hold_back"], options.get("split_seed", 0))[0 if args.learned else 1]
    model, kinds = load_model(args.model, device="cpu"), kinds_of(args.data)
    rows: dict[str, list[tuple[InstanceScores, InstanceScores]]] = {}
    for pair in pairs:
        result, true = model(pair.image), read_ids(pair.mask)
        if not isinstance(result, InstanceResult):
            sys.exit(f"--model must name a model that tells things apart, got {args.model}")
        scores = score_instances(result.labels, true), otsu(result.picture, true)
        for kind in ("all", kinds.get(pair.image.name, "")):
            rows.setdefault(kind, []).append(scores)
        if args.pictures:
            result.overlay().save(args.pictures / pair.image.name)
    print("| pictures | Dice | F1 at IoU 0.5 | panoptic quality | AJI | found | true |\n|---|---|---|---|---|---|---|")
    for kind, both in sorted(rows.items(), key=lambda row: -len(row[1])):
        print(means(f"{args.model}, {kind or 'unnamed'}", [ours for ours, _ in both]))
        print(means(f"Otsu and watershed, {kind or 'unnamed'}", [classical for _, classical in both]))
    if args.large:
        run_large(model, [pair for pair in pairs if kinds.get(pair.image.name, "") != "bright-field smear"], args.large)


if __name__ == "__main__":
    main()
