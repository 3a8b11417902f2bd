"""Figures of the model cards of `mr-superres` and `mr-superres-slices`: fine volumes acquired again, then refined.

    python benchmarks/score_superres.py --data ../shared/data

Each volume is cut to what the training never saw, acquired coarser as the recipe takes the scanner to do it (middle of
k-space along every axis, or slices of 5 voxels with a Gaussian profile), with and without Rician noise, and brought
back to its own grid. PSNR and SSIM are those of the fine volume, over its range, borders of the cut left out.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import medseg
from medseg.acquisition import along_axes, lanczos_axis, spline_axis
from medseg.baselines import non_local_means
from medseg.degradation import add_rician_noise
from medseg.geometry import crop, foreground_box, to_ras
from medseg.metrics import psnr, ssim
from medseg.volume import Grid, Volume
from medseg_pipelines.load import load_model
from medseg_pipelines.recipe import SuperResolutionRecipe, load_recipe
from medseg_pipelines.superresolution_grid import FinerGrid

MODELS = ("mr-superres", "mr-superres-slices")
NOISE = (0.0, 0.03)  # of the brightest tissue
FACTOR = 5  # finer voxels per thick slice
BORDER = 4  # finer voxels at the borders of the cut that do not count
CUTS = {"t1_ps11_norm.mgz": (110, 158), "t1gd_vs_seg_001.nii.gz": (60, 84)}  # slices that the recipes hold out
WHOLE = ("t1_chris.nii.gz", "t2_m2208.nii.gz", "flair.nii.gz")  # no licence to learn from them: never seen at all

Refine = Callable[[Volume], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A fine volume, what was acquired of it, and the brightness and strength of its noise."""

    name: str
    fine: np.ndarray
    acquired: Volume
    noise: float


def fine_volumes(data: Path) -> Iterator[tuple[str, Volume]]:
    """What the training never saw, cropped to its content."""
    for name in (*CUTS, *WHOLE):
        path = data / "volumes" / name
        if not path.is_file():
            continue
        volume = to_ras(medseg.read(path))[0]
        low, high = CUTS.get(name, (0, volume.shape[2]))
        x, y, _ = ((0, size) for size in volume.shape)
        part = crop(volume, (x, y, (low, high)))[0]
        yield name.split(".")[0], crop(part, foreground_box(part, above=0.05 * float(part.voxels.max())))[0]


def cases(data: Path, recipe: SuperResolutionRecipe) -> Iterator[Case]:
    """Every volume acquired coarser, with and without noise; thick slices lie across the longest axis."""
    for name, volume in fine_volumes(data):
        axis = int(np.argmax(volume.shape))
        steps = (2, 2, 2) if recipe.upscaling.axes == "all" else tuple(FACTOR if i == axis else 1 for i in range(3))
        kept = tuple(slice(size - size % step) for size, step in zip(volume.shape, steps, strict=True))
        fine = volume.voxels[kept].astype(np.float32)
        grid = _coarser(volume, fine.shape, steps)
        ways = FinerGrid(grid, (steps[0], steps[1], steps[2])).acquisition(recipe.upscaling)
        clean = ways.measure(torch.from_numpy(fine))
        bright = float(np.percentile(fine, 99.5))
        for level in NOISE:
            noisy = add_rician_noise(clean, level * bright, torch.Generator().manual_seed(5)).numpy()
            yield Case(name, fine, Volume(noisy, grid.affine), level * bright)


def _coarser(volume: Volume, shape: tuple[int, ...], steps: tuple[int, ...]) -> Grid:
    """The grid that has the fine one as its `FinerGrid`."""
    change = np.diag([*steps, 1.0])
    change[:3, 3] = (np.asarray(steps) - 1) / 2
    x, y, z = (n // step for n, step in zip(shape, steps, strict=True))
    return Grid((x, y, z), volume.affine @ change)


def methods(model: str, case: Case) -> dict[str, Refine]:
    """The network, and what users would take otherwise."""
    network = load_model(model)

    def interpolate(make: Callable[[int, int], torch.Tensor], image: Volume) -> np.ndarray:
        sizes = zip(image.shape, case.fine.shape, strict=True)
        operators = [None if n == fine else make(n, fine // n).float() for n, fine in sizes]
        return along_axes(torch.from_numpy(image.voxels), operators).numpy()

    found: dict[str, Refine] = {
        "cubic B-spline": lambda image: interpolate(spline_axis, image),
        "Lanczos": lambda image: interpolate(lanczos_axis, image),
    }
    if case.noise:  # the level is given: better than anyone could estimate it
        found["non-local means, B-spline"] = lambda image: interpolate(
            spline_axis, image.with_voxels(non_local_means(image.voxels, case.noise).astype(np.float32))
        )
    found[model] = lambda image: network(image, force_scope=True).volume.voxels
    return found


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="Folder of the development data.")
    parser.add_argument("--model", action="append", help="A model or folder of one; both that ship by default.")
    parser.add_argument("--only", default="", help="Only volumes whose name holds this.")
    arguments = parser.parse_args()
    for model in arguments.model or MODELS:
        recipe = load_recipe(model)
        assert isinstance(recipe, SuperResolutionRecipe)
        print(f"\n| {recipe.name} on | noise | method | PSNR (dB) | SSIM |\n|---|---|---|---|---|")
        for case in cases(arguments.data, recipe):
            if arguments.only not in case.name:
                continue
            inside = tuple(slice(BORDER, n - BORDER) for n in case.fine.shape)
            reference = case.fine[inside]
            reach = float(np.ptp(reference))
            noise = f"{100 * case.noise / float(np.percentile(case.fine, 99.5)):.0f} %"
            for name, refine in methods(model, case).items():
                restored = refine(case.acquired)[inside]
                figures = f"{psnr(restored, reference, reach):.2f} | {ssim(restored, reference, reach):.4f}"
                print(f"| {case.name} | {noise} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
