"""PSNR, SSIM, edges and bias of `mr-denoise` and `ct-denoise` on held-back slices, beside the usual filters.

`python benchmarks/score_restoration.py --data ../shared/data [--model ct-denoise]` prints the tables of the cards.
Each filter gets the true noise level, total variation even the strength that suits the reference best; ours estimates
the level itself. All work on the same slabs, in 3D. MR filters are corrected for the bias of Rician noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import medseg
from medseg.baselines import best_total_variation, non_local_means, wavelet_shrinkage, without_rician_bias
from medseg.degradation import add_rician_noise, low_dose_noise
from medseg.geometry import to_ras
from medseg.volume import Volume
from medseg_pipelines.evaluation import ImageEvaluation, evaluate_images
from medseg_pipelines.training import course_of
from medseg_pipelines.training.restoration import RestorationCourse

LEVELS = {"mr-denoise": (0.03, 0.07, 0.12), "ct-denoise": (20.0, 45.0, 90.0)}
MARGIN = 2  # slices between the scored ones and those that training saw: as far as the context of the network reaches


@dataclass(frozen=True)
class Slab:
    """Held-back slices of one image."""

    name: str
    volume: Volume


def slabs(model: str, data: Path) -> Iterator[Slab]:
    """What the recipe holds back from training."""
    course = course_of(model)
    assert isinstance(course, RestorationCourse)
    for source in course.options.images:
        if source.held_out is None or source.held_out[1] - source.held_out[0] <= 4 * MARGIN:
            continue  # too few slices to score
        volume = to_ras(medseg.read(data / source.file))[0]
        low, high = source.held_out
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, 2] * low
        yield Slab(
            f"{Path(source.file).name.split('.')[0]} {low}-{high}", Volume(volume.voxels[:, :, low:high], affine)
        )


def degraded(model: str, clean: Volume, level: float) -> tuple[Volume, float]:
    """The slab with noise, and the noise level in grey values."""
    generator = torch.Generator().manual_seed(2026)
    image = torch.from_numpy(clean.voxels.astype(np.float32))
    if model == "mr-denoise":
        sigma = level * float(np.percentile(clean.voxels, 99.5))
        return clean.with_voxels(add_rician_noise(image, sigma, generator).numpy()), sigma
    slices = []
    for plane in image.unbind(2):
        noise = low_dose_noise(plane, clean.spacing[0], generator)
        slices.append(plane + noise * (level / float(noise[plane > -300].std())))
    return clean.with_voxels(torch.stack(slices, 2).numpy()), level


def rows(model: str, slab: Slab, level: float) -> Iterator[tuple[str, ImageEvaluation]]:
    """Each method's agreement with the clean slab."""
    noisy, sigma = degraded(model, slab.volume, level)
    clean = slab.volume.voxels.astype(np.float32)
    run = medseg.load_model(model, device="cpu")
    filters: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
        "wavelet shrinkage": wavelet_shrinkage,
        "total variation, best strength": best_total_variation(clean),
        "non-local means": non_local_means,
    }

    def inner(volume: Volume) -> Volume:
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, 2] * MARGIN
        return Volume(np.ascontiguousarray(volume.voxels[:, :, MARGIN:-MARGIN]), affine)

    target = inner(slab.volume.with_voxels(clean))
    yield "as it is", evaluate_images(inner(noisy), target)
    for name, restore in filters.items():
        found = restore(noisy.voxels, sigma).astype(np.float32)
        if model == "mr-denoise":
            found = without_rician_bias(found, sigma).astype(np.float32)
        yield name, evaluate_images(inner(noisy.with_voxels(found)), target)
    yield f"**{model}**", evaluate_images(inner(run(noisy, force_scope=True).volume), target)


def main() -> None:
    """Print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(LEVELS), action="append")
    options = parser.parse_args()
    for model in options.model or sorted(LEVELS):
        print(f"\n### {model}\n\n| slab | noise | method | PSNR dB | SSIM | edges | bias % |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for slab in slabs(model, options.data):
            for level in LEVELS[model]:
                noise = f"{level:.0%}" if model == "mr-denoise" else f"{level:.0f} HU"
                for name, found in rows(model, slab, level):
                    figures = (
                        f"{found.psnr_db:.2f} | {found.ssim:.4f} | {found.edges:.3f} | {100 * found.flat_bias:+.2f}"
                    )
                    print(f"| {slab.name} | {noise} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
