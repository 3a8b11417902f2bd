"""A restored volume as a result: what was changed, how much noise went, and what attention grouped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medseg import io
from medseg.guide import flat_noise, tissue_noise
from medseg.volume import Volume
from medseg_pipelines.planes import crosshair, three_planes
from medseg_pipelines.recipe import RestorationRecipe
from medseg_pipelines.restored_preview import draw_restored, region_picture
from medseg_pipelines.results import Result, write_json
from medseg_pipelines.words import RESEARCH_USE, RESTORED_MARK

_LARGE = 6.0  # noise levels; noise alone exceeds this once in a billion voxels, so a structure was changed
_MANY = 1e-4  # share of voxels


@dataclass(frozen=True)
class Quality:
    """What restoring did to the grey values, in their own unit.

    Attributes:
        noise_before: Noise level of the image, estimated.
        noise_after: Noise level of the restored volume, estimated the same way.
        mean_change: Mean of the residual; near 0 where nothing but noise was removed.
        largest_change: Largest absolute value of the residual.
        large_changes: Share of voxels whose residual exceeds six noise levels.
        similarity: Correlation of the residual with the restored image inside the anatomy; near 0 for pure noise.
    """

    noise_before: float
    noise_after: float
    mean_change: float
    largest_change: float
    large_changes: float
    similarity: float

    @classmethod
    def of(cls, before: np.ndarray, after: np.ndarray, *, magnitudes: bool = False) -> Quality:
        """Compare two stacks of slices, (X, Y, S); neighbours share their noise but for `magnitudes`, as in MR."""
        residual = after - before.astype(np.float32)
        level_of = tissue_noise if magnitudes else flat_noise
        level = level_of(torch.from_numpy(before.astype(np.float32)))
        inside = after > after.mean()
        large = float(np.mean(np.abs(residual) > _LARGE * level)) if level > 0 else 0.0
        return cls(
            noise_before=level,
            noise_after=level_of(torch.from_numpy(after)),
            mean_change=float(residual.mean(dtype=np.float64)),
            largest_change=float(np.abs(residual).max()),
            large_changes=large,
            similarity=_correlation(residual[inside], after[inside]),
        )

    def as_json(self) -> dict[str, float]:
        """Six significant digits of each figure."""
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()}

    def doubts(self, unit: str) -> list[str]:
        """What a reader has to know before using the result."""
        if self.large_changes > _MANY:
            share, limit = f"{100 * self.large_changes:.2g} %", f"{_LARGE * self.noise_before:.3g} {unit}"
            return [f"{share} of the voxels changed by more than six noise levels ({limit}): look at the residual"]
        return []


@dataclass(frozen=True, eq=False, kw_only=True)
class RestoredResult(Result):
    """A restored volume.

    Attributes:
        regions: Region ids on the same grid; they mean nothing beyond the grouping.
        regions_given: Whether they came from the user.
        quality: What was changed.
        keep_regions: Whether `save` writes the regions as a volume too.
    """

    recipe: RestorationRecipe
    regions: Volume
    regions_given: bool
    quality: Quality
    keep_regions: bool = False

    @property
    def residual(self) -> Volume:
        """Restored minus original, float32, in the input's own unit."""
        return self.image.with_voxels(self.volume.voxels - self.image.voxels.astype(np.float32))

    @property
    def main_file(self) -> str:
        """Name of the restored volume."""
        return "restored" + self.ending

    def preview(self) -> Image.Image:
        """Three planes before and after, with the residual and the regions."""
        mask = self.volume.with_voxels((self.volume.voxels > self.volume.voxels.mean()).astype(np.uint8), kind="labels")
        where = crosshair(mask)
        columns = {
            "original": three_planes(self.image, mask, where),
            RESTORED_MARK: three_planes(self.volume, mask, where),
            "restored minus original": three_planes(self.residual, mask, where),
            "regions": three_planes(self.regions, mask, where),
        }
        return draw_restored(columns, self._lines(), self.caption())

    def _lines(self) -> list[str]:
        """The figures beside the picture."""
        q, unit = self.quality, self.recipe.unit
        return [
            f"noise level {q.noise_before:.3g} before, {q.noise_after:.3g} after ({unit}, estimated)",
            f"mean change {q.mean_change:+.2g}, largest {q.largest_change:.3g} {unit}",
            f"{len(np.unique(self.regions.voxels))} regions, "
            + ("given by the user" if self.regions_given else "found in the image"),
        ]

    def _write(self, folder: Path) -> None:
        io.write(self.volume, folder / self.main_file, like=self.image)
        io.write(self.residual, folder / f"residual{self.ending}", like=self.image)
        if self.keep_regions or self.regions_given:  # a replay needs what cannot be found again
            io.write(self.regions, folder / f"regions{self.ending}", like=self.image)
        region_picture(self.image, self.regions).save(folder / "regions.png", optimize=True)
        write_json(folder / "statistics.json", {"notice": RESEARCH_USE, **self._statistics()})

    def _statistics(self) -> dict[str, Any]:
        return {"unit": self.recipe.unit, **self.quality.as_json(), "regions": len(np.unique(self.regions.voxels))}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's coefficient; 0 where one of them does not vary."""
    if a.size < 2:
        return 0.0
    x, y = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / norm if norm > 0 else 0.0
