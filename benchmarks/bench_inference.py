"""From an image file to a label file: this package against MONAI's own transforms, inferer and U-Net.

Each run is a process of its own, so that peak memory and processor time are its own; the contenders take turns.
Nothing is timed before the labels are right. MONAI's network works at full resolution and has as many parameters;
its weights are random, which costs the same as trained ones.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

TEMPLATE = (181, 217, 181)
LARGE = (256, 256, 256)
LIMIT = 3e9  # bytes that the large case may take
CLASSES = 12
# MONAI's network as its class builds it and as its tutorials do: channels, residual units. Its parameters then are as
# many as ours, within five in a hundred.
PEERS = {"monai, plain": ((32, 64, 128, 256, 320), 0), "monai, residual": ((32, 64, 96, 160, 192), 2)}


@dataclass(frozen=True)
class Cost:
    """What one process took: seconds and bytes."""

    wall: float
    processor: float
    peak: float


def run_ours(image: Path, out: Path, model: Path) -> None:
    """The public door, with everything it writes: labels, volumes, picture, manifest."""
    import medseg

    medseg.load_model(str(model), device="cpu")(image, force_scope=True).save(out)


def peer(name: str) -> Any:
    """MONAI's U-Net with random weights."""
    from monai.networks.nets.unet import UNet

    channels, units = PEERS[name]
    return UNet(3, 1, CLASSES, channels, (2,) * (len(channels) - 1), num_res_units=units).eval()


def run_monai(name: str, image: Path, out: Path, model: Path) -> None:
    """The way MONAI's own tutorials go, at the spacing and with the windows of our recipe."""
    import torch
    from monai.inferers.inferer import SlidingWindowInferer

    from medseg_pipelines.recipe import load_recipe

    t: Any = import_module("monai.transforms")  # its names are not exported in a way that type checkers see
    recipe = load_recipe(model)
    low, high = recipe.preparation.percentiles
    prepare = t.Compose(
        [
            t.LoadImaged("image", ensure_channel_first=True),
            t.Orientationd("image", axcodes="RAS", labels=None),
            t.Spacingd("image", pixdim=recipe.preparation.spacing or 1.0),
            t.ScaleIntensityRangePercentilesd("image", lower=low, upper=high, b_min=0.0, b_max=1.0),
        ]
    )
    finish = t.Compose(
        [
            t.AsDiscreted("labels", argmax=True),
            t.Invertd("labels", transform=prepare, orig_keys="image", nearest_interp=True, to_tensor=True),
        ]
    )
    slide = SlidingWindowInferer(recipe.inference.window, overlap=recipe.inference.overlap, mode="gaussian")
    network = peer(name)
    case: Any = prepare({"image": image})
    with torch.inference_mode():
        case["labels"] = slide(case["image"][None], network)[0]
    labels: Any = finish(case)
    save = t.SaveImage(out, output_dtype=np.uint8, separate_folder=False, print_log=False)
    save(labels["labels"])


def check(image: Path, out: Path, model: Path) -> None:
    """Grid of the result, parameters of the two networks, and labels while sliding against those of a full buffer."""
    import torch

    from medseg.io import read
    from medseg_pipelines import inferers, load_model

    segment = load_model(model, device="cpu")
    segment(image, force_scope=True).save(out)
    before, after = read(image), read(out / "labels.nii.gz", kind="labels")
    _require(before.grid.equals(after.grid, tolerance=1e-6), "label map must lie on the grid of the image")

    ours = segment.recipe.weights.parameters or _parameters(model)
    for name in PEERS:
        theirs = sum(p.numel() for p in peer(name).parameters())
        _require(abs(theirs / ours - 1) < 0.05, f"networks must have as many parameters, got {ours} and {theirs}")

    table = np.asarray(segment.recipe.decode.table)
    voxels = np.random.default_rng(0).random((80, 64, 64), np.float32)
    layout = inferers.plan(voxels.shape, (64, 64, 32), 0.25, outputs=CLASSES, multiple=32)
    found = inferers.label_volume(segment._predict, voxels, layout=layout, table=table)
    scores = torch.zeros(CLASSES, *voxels.shape)
    for start in product(*layout.starts):
        place = tuple(slice(at, at + side) for at, side in zip(start, layout.window, strict=True))
        with torch.inference_mode():
            part = segment._predict(torch.from_numpy(voxels[place])[None, None])[0]
        scores[(slice(None), *place)] += part * inferers.blend_weights(layout.window)
    wanted = table[scores[:-1].argmax(0).numpy(), (scores[-1] > 0).long().numpy()]
    _require(np.array_equal(found, wanted), "labels while sliding must be those of the full buffer")


def _parameters(model: Path) -> int:
    from medseg.networks import build_network
    from medseg_pipelines.recipe import load_recipe

    network = load_recipe(model).network
    return sum(p.numel() for p in build_network(network.name, **network.options).parameters())


def _require(right: bool, message: str) -> None:
    if not right:
        sys.exit(f"wrong, so not timed: {message}")


RUNS: dict[str, Callable[[Path, Path, Path], None]] = {
    "ours": run_ours,
    "check": check,
    **{name: partial(run_monai, name) for name in PEERS},
}


def measured(name: str, image: Path, model: Path, threads: int) -> Cost:
    """One run in a process of its own, imports included.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--run", name, str(image), str(Path(folder) / "out"), str(model)]
        started = time.monotonic()
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"run '{name}' ended with {process.returncode}")
    return Cost(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0)


def table(title: str, costs: dict[str, list[Cost]]) -> None:
    """Medians, and what the others take of ours."""
    print(f"\n### {title}\n\n| | wall | processor time | peak memory |\n|---|---|---|---|")
    ours = [median(getattr(c, field) for c in costs["ours"]) for field in ("wall", "processor", "peak")]
    for name, runs in costs.items():
        wall, processor, peak = (median(getattr(c, field) for c in runs) for field in ("wall", "processor", "peak"))
        print(f"| {name} | {wall:.0f} s | {processor:.0f} s | {peak / 1e9:.2f} GB |")
        if name != "ours":
            ratios = [f"{a / b:.2f}x" for a, b in zip((wall, processor, peak), ours, strict=True)]
            print(f"| {name} / ours | {' | '.join(ratios)} |")
    sys.stdout.flush()


def main() -> None:
    """Check, then both contenders on the template's grid, then the large volume."""
    parser = argparse.ArgumentParser(description="inference from file to file, against MONAI")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender; the median counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", nargs=4, metavar=("NAME", "IMAGE", "OUT", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, *paths = arguments.run
        RUNS[name](*map(Path, paths))
        return

    from model import model_folder, write_head

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "monai"))
    print(f"{time.strftime('%Y-%m-%d')}, {packages}, {arguments.threads} threads")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = model_folder(folder)
        small, head = (write_head(folder / f"{s[0]}.nii.gz", s) for s in ((120, 120, 120), TEMPLATE))
        measured("check", small, model, arguments.threads)
        costs: dict[str, list[Cost]] = {"ours": [], **{name: [] for name in PEERS}}
        for _, contender in product(range(arguments.rounds), costs):
            costs[contender].append(measured(contender, head, model, arguments.threads))
        table("181 x 217 x 181 at 1 mm, file to file", costs)
        large = measured("ours", write_head(folder / "large.nii.gz", LARGE), model, arguments.threads)
        table("256 x 256 x 256 at 1 mm, file to file", {"ours": [large]})
        if large.peak > LIMIT:
            sys.exit(f"peak memory must stay below {LIMIT / 1e9:.0f} GB, got {large.peak / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
