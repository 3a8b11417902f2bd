"""PSNR, SSIM, edges and bias of `mr-denoise` and `ct-denoise` on held-back slices, beside the usual filters.

`python benchmarks/score_restoration.py --data ../shared/data [--model ct-denoise]` prints the tables of the cards.
Nobody is told the noise level: the filters get scikit-image's estimate, ours makes its own; `--told` gives the filters
the true one. All work on the same slabs, the filters in 3D. Those of MR are corrected for the bias of Rician noise.
Figures are of the anatomy alone: the air around it holds noise of its own in the reference, which is right to remove.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

import medseg
from medseg.baselines import (
    estimated_level,
    non_local_means,
    total_variation,
    wavelet_shrinkage,
    without_rician_bias,
)
from medseg.degradation import add_rician_noise, low_dose_noise
from medseg.geometry import to_ras
from medseg.metrics import edge_preservation, flat_bias, psnr, ssim
from medseg.volume import Volume
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
        if source.binned > 1 or source.held_out is None or source.held_out[1] - source.held_out[0] <= 4 * MARGIN:
            continue  # coarser voxels of an image that is there as it is, or too few slices to score
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


@dataclass(frozen=True)
class Target:
    """The undisturbed slab without its outer slices, and where the anatomy is."""

    voxels: np.ndarray
    inside: np.ndarray
    span: float

    @classmethod
    def of(cls, clean: np.ndarray) -> Target:
        voxels = clean[:, :, MARGIN:-MARGIN]
        low, high = float(voxels.min()), float(np.percentile(voxels, 99.5))
        filled = ndimage.gaussian_filter(voxels, 2.0) > low + 0.1 * (high - low)
        inside = np.stack([ndimage.binary_fill_holes(plane) for plane in np.moveaxis(filled, 2, 0)], 2)
        return cls(voxels, inside, float(voxels.max()) - low)

    def figures(self, found: np.ndarray) -> str:
        """PSNR, SSIM, edges and bias of a restored slab as cells of a table."""
        image, mask = found[:, :, MARGIN:-MARGIN], self.inside
        signal = psnr(image[mask], self.voxels[mask], self.span)
        likeness = ssim(image, self.voxels, self.span, inside=mask)
        edges = edge_preservation(image, self.voxels, inside=mask)
        bias = flat_bias(image, self.voxels, self.span, inside=mask)
        return f"{signal:.2f} | {likeness:.4f} | {edges:.3f} | {100 * bias:+.2f}"


def rows(model: str, slab: Slab, level: float, *, told: bool = False) -> Iterator[tuple[str, str]]:
    """Each method's agreement with the clean slab."""
    noisy, sigma = degraded(model, slab.volume, level)
    sigma = sigma if told else estimated_level(noisy.voxels)
    target = Target.of(slab.volume.voxels.astype(np.float32))
    filters: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
        "wavelet shrinkage": wavelet_shrinkage,
        "total variation": total_variation,
        "non-local means": non_local_means,
    }
    yield "as it is", target.figures(noisy.voxels)
    for name, restore in filters.items():
        found = restore(noisy.voxels, sigma).astype(np.float32)
        if model == "mr-denoise":
            found = without_rician_bias(found, sigma).astype(np.float32)
        yield name, target.figures(found)
    run = medseg.load_model(model, device="cpu")
    yield f"**{model}**", target.figures(run(noisy, force_scope=True).volume.voxels)


def main() -> None:
    """Print one table per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(LEVELS), action="append")
    parser.add_argument("--told", action="store_true", help="tell the filters the true noise level")
    options = parser.parse_args()
    for model in options.model or sorted(LEVELS):
        print(f"\n### {model}\n\n| slab | noise | method | PSNR dB | SSIM | edges | bias % |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for slab in slabs(model, options.data):
            for level in LEVELS[model]:
                noise = f"{level:.0%}" if model == "mr-denoise" else f"{level:.0f} HU"
                for name, figures in rows(model, slab, level, told=options.told):
                    print(f"| {slab.name} | {noise} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
