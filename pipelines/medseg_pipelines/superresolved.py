"""A volume with finer voxels as a result: how well it reproduces what was acquired, and where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medseg import io
from medseg.acquisition import along_axes, spline_axis
from medseg.noise import noise_level
from medseg.volume import Volume
from medseg_pipelines.planes import crosshair, three_planes
from medseg_pipelines.recipe import SuperResolutionRecipe
from medseg_pipelines.restored_preview import Column, draw_columns
from medseg_pipelines.results import Result, write_json
from medseg_pipelines.superresolution_grid import FinerGrid
from medseg_pipelines.words import RESEARCH_USE, RESTORED_MARK

_LARGE = 6.0  # noise levels: noise alone exceeds this once in a billion voxels
_MANY = 1e-3  # share of voxels


@dataclass(frozen=True)
class Consistency:
    """How far the result, acquired again as the recipe takes the scanner to have done it, is from the input.

    Attributes:
        difference: Root mean square, in grey values.
        largest: Largest absolute difference.
        relative: `difference` as a share of the input's root mean square.
        noise: Noise level of the input, estimated; removed noise is a difference, too.
        large: Share of voxels that differ by more than six noise levels: contrast was lost or invented there.
    """

    difference: float
    largest: float
    relative: float
    noise: float
    large: float

    @classmethod
    def of(cls, acquired: Tensor, again: Tensor, width: float) -> Consistency:
        """Compare two volumes on the acquired grid, in units of `width` grey values."""
        off = (acquired - again).abs()
        root = float(off.square().mean().sqrt())
        strength = float(acquired.square().mean().sqrt())
        noise = noise_level(acquired.numpy()) if min(acquired.shape[:2]) > 2 else 0.0
        large = float((off > _LARGE * noise).float().mean()) if noise > 0 else 0.0
        return cls(root * width, float(off.max()) * width, root / strength if strength else 0.0, noise * width, large)

    def as_json(self) -> dict[str, float]:
        """Six significant digits of each figure."""
        return {name: float(f"{value:.6g}") for name, value in asdict(self).items()}

    def doubts(self, unit: str) -> list[str]:
        """What a reader has to know before using the result."""
        if self.large <= _MANY:
            return []
        return [
            f"{100 * self.large:.2g} % of the acquired voxels are not reproduced within six noise levels "
            f"({_LARGE * self.noise:.3g} {unit}): look at the difference, or use --enforce-consistency"
        ]


@dataclass(frozen=True, eq=False, kw_only=True)
class FinerResult(Result):
    """A volume on a finer grid with the same outer edges.

    Attributes:
        difference: The input minus the result acquired again, on the grid of the input.
        factors: Finer voxels per acquired one along each array axis.
        consistency: Of what the network gave.
        enforced: After the projection onto the acquired data, where it was asked for.
    """

    recipe: SuperResolutionRecipe
    difference: Volume
    factors: tuple[int, int, int]
    consistency: Consistency
    enforced: Consistency | None = None

    @classmethod
    def judged(
        cls,
        finer: FinerGrid,
        restored: Volume,
        image: Volume,
        difference: Volume,
        consistency: Sequence[Consistency],
        *,
        manifest: dict[str, Any],
        recipe: SuperResolutionRecipe,
    ) -> FinerResult:
        """A result whose manifest tells its grid and its consistency, before and after a projection."""
        grid = {"shape": list(restored.shape), "spacing_mm": list(restored.spacing), "factors": list(finer.factors)}
        names = ("consistency", "consistency_enforced")
        told = {name: found.as_json() for name, found in zip(names, consistency, strict=False)}
        return cls(
            volume=restored,
            image=image,
            difference=difference,
            factors=finer.factors,
            consistency=consistency[0],
            enforced=consistency[1] if len(consistency) > 1 else None,
            manifest={**manifest, "grid": grid, **told},
            recipe=recipe,
        )

    @property
    def interpolated(self) -> Volume:
        """The input on the finer grid by cubic splines, float32, to compare with."""
        return Volume(self._refined(spline_axis), self.volume.affine)

    @property
    def main_file(self) -> str:
        """Name of the volume with finer voxels."""
        return "restored" + self.ending

    @property
    def difference_file(self) -> str:
        """Name of the map of what is not reproduced."""
        return "difference" + self.ending

    def preview(self) -> Image.Image:
        """Three planes: as acquired, by cubic splines, the result, and what it has beyond the splines."""
        mask = self.volume.with_voxels((self.volume.voxels > self.volume.voxels.mean()).astype(np.uint8), kind="labels")
        where = crosshair(mask)
        spline = self.interpolated
        added = self.volume.with_voxels(self.volume.voxels - spline.voxels)
        acquired = Volume(
            self._refined(lambda size, factor: torch.eye(size).repeat_interleave(factor, 0)), spline.affine
        )
        columns = {
            "acquired": Column(three_planes(acquired, mask, where)),
            "cubic spline": Column(three_planes(spline, mask, where)),
            RESTORED_MARK: Column(three_planes(self.volume, mask, where)),
            "restored minus spline": Column(three_planes(added, mask, where), kind="difference"),
        }
        return draw_columns(columns, self.lines(), self.caption())

    def _refined(self, make: Any) -> np.ndarray:
        sizes = zip(self.image.shape, self.factors, strict=True)
        operators = [None if factor == 1 else make(size, factor).float() for size, factor in sizes]
        return along_axes(torch.from_numpy(self.image.voxels.astype(np.float32)), operators).numpy()

    def lines(self) -> list[str]:
        """The figures beside the picture, one sentence each."""
        unit = self.recipe.unit
        steps = [" x ".join(f"{v:.3g}" for v in volume.spacing) for volume in (self.image, self.volume)]
        lines = [f"voxels of {steps[0]} mm became {steps[1]} mm; the outer edges of the image stay where they were"]
        for name, c in (("acquired again", self.consistency), ("after the projection", self.enforced)):
            if c is not None:
                lines.append(
                    f"{name}: off by {c.difference:.3g} {unit} ({100 * c.relative:.2g} %), at most {c.largest:.3g}; "
                    f"noise level of the input {c.noise:.3g}"
                )
        return lines

    def _write(self, folder: Path) -> None:
        io.write(self.volume, folder / self.main_file, like=self.image)
        io.write(self.difference, folder / self.difference_file, like=self.image)
        write_json(folder / "statistics.json", {"notice": RESEARCH_USE, **self.statistics()})

    def statistics(self) -> dict[str, Any]:
        """The figures as plain data."""
        after = {} if self.enforced is None else {"consistency_enforced": self.enforced.as_json()}
        return {"unit": self.recipe.unit, "consistency": self.consistency.as_json(), **after}
