"""Super-resolution learned from fine volumes that are acquired again, coarser and with noise, as a scanner would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from medseg.acquisition import along_axes, kspace_axis, lanczos_axis, profile_axis
from medseg.degradation import add_rician_noise
from medseg.errors import InputRefused, UsageError
from medseg.geometry import to_ras
from medseg.io import read
from medseg.networks.disgan import LOBES, Generator
from medseg.synthesis import Subject, SynthesisOptions, Tissue, synthesise
from medseg_pipelines.recipe import SuperResolutionRecipe, Upscaling, load_recipe
from medseg_pipelines.slices import Scaling
from medseg_pipelines.superresolution_grid import channels_and_doublings, slice_distance
from medseg_pipelines.superresolution_steps import with_guide
from medseg_pipelines.training.adversarial import Adversarial, AdversarialTrainer
from medseg_pipelines.training.course import Course
from medseg_pipelines.training.loop import Optimisation, Section
from medseg_pipelines.training.synthetic import SyntheticOptions, load_subjects
from medseg_pipelines.training.together import rank_and_size

_TRIES = 4  # draws of a place until it holds more than background
_SOMETHING = 0.2  # of the scaled range between the darkest and the brightest voxel
_MARGIN = {"all": LOBES, "slices": 2}  # acquired voxels on each side that feed profiles and interpolation
_EMPTY = 0.02  # of the scaled range; what is darker than this all around is no image
_AIR = 8  # voxels kept around the image


class Source(Section):
    """One fine volume."""

    file: str  # below the data folder
    held_out: tuple[int, int] | None = None  # slices first to last - 1 that training never sees, from the feet up


class Synthetic(Section):
    """Fine volumes drawn from label maps before the first step."""

    labels: str  # pattern below the data folder
    tissues_of: str  # the model whose recipe names the tissues
    count: int = Field(default=24, ge=1)
    crop: tuple[int, int, int] = (96, 96, 96)


class SuperResolutionOptions(Optimisation):
    """The `training` section of a recipe that learns finer voxels."""

    images: tuple[Source, ...] = ()
    synthetic: Synthetic | None = None
    factors: tuple[int, ...] = (2,)  # finer voxels per acquired one; one of them is drawn for each step
    block: int = Field(default=36, ge=8)  # finer voxels along each side, filled up to a multiple of the factor
    context: int = Field(default=0, ge=0, le=2)  # voxels around the block that the network sees and nobody judges
    batch: int = Field(default=2, ge=1)
    steps: int = Field(ge=1)  # of the mean absolute error alone
    adversarial: Adversarial = Adversarial()
    real: float = Field(default=0.5, ge=0, le=1)  # share of blocks from `images` where there are both kinds
    clean: float = Field(default=0.35, ge=0, le=1)  # share of blocks without noise
    noise: tuple[float, float] = (0.005, 0.08)  # Rician, share of the brightest tissue
    taper: float = Field(default=0.4, ge=0, le=1)  # of k-space filters, at most; half of the blocks have none
    width: tuple[float, float] = (0.9, 1.15)  # of slice profiles
    profiles: float = Field(default=0.2, ge=0, le=1)  # share of doubled blocks with a slice profile along one axis

    @model_validator(mode="after")
    def _some_data(self) -> SuperResolutionOptions:
        if not self.images and self.synthetic is None:
            raise ValueError("give images, synthetic or both")
        if min(self.factors) < 2:
            raise ValueError(f"factors must be at least 2, got {self.factors}")
        return self


@dataclass(frozen=True)
class Pair:
    """Blocks as the network sees them, and as they were.

    Attributes:
        acquired: (B, C, x, y, z), of more than the block where the recipe gives it context.
        interpolated: (B, 1, X, Y, Z), by Lanczos from what lies around the block, too.
        fine: (B, 1, X, Y, Z).
    """

    acquired: Tensor
    interpolated: Tensor
    fine: Tensor


class Blocks(Dataset[Pair]):
    """Batch number n of a training: drawn from the seed, n, and the number of the process alone.

    Args:
        real: Fine volumes, scaled, (X, Y, Z) each.
        synthetic: Likewise.
        options: The training section.
        upscaling: Of the recipe; where only slices become thinner, the last axis of each block is acquired coarser.
    """

    def __init__(
        self,
        real: list[np.ndarray],
        synthetic: list[np.ndarray],
        options: SuperResolutionOptions,
        upscaling: Upscaling,
    ) -> None:
        self.real, self.synthetic, self.options = real, synthetic, options
        self.through_plane, self.guide = upscaling.axes == "slices", upscaling.guide

    def __len__(self) -> int:
        return self.options.steps + self.options.adversarial.steps

    def __getitem__(self, step: int) -> Pair:
        draw = _Draw(self.options.seed * 1_000_003 + step + 100_003 * rank_and_size()[0])  # 32 bits of it count
        factor = draw.one_of(self.options.factors)
        adversarial = step >= self.options.steps
        side = self.options.adversarial.block if adversarial else self.options.block
        batch = self.options.adversarial.batch if adversarial else self.options.batch
        blocks = zip(*(self._block(draw, factor, side) for _ in range(batch)), strict=True)
        return Pair(*(torch.stack(parts) for parts in blocks))

    def _block(self, draw: _Draw, factor: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """What one item of the batch adds to a `Pair`."""
        steps = (1, 1, factor) if self.through_plane else (factor,) * 3
        around = _MARGIN["slices" if self.through_plane else "all"]
        context = self.options.context
        margin = [context if step == 1 else around * step for step in steps]
        kept = [-(-side // step) * step for step in steps]
        fine = self._place(draw, [n + 2 * m for n, m in zip(kept, margin, strict=True)])
        fine = fine * draw.uniform(0.8, 1.2)
        acquired = along_axes(fine, self._operators(draw, fine.shape, steps))
        noise = 0.0 if draw.chance(self.options.clean) else draw.logarithmic(*self.options.noise)
        acquired = add_rician_noise(acquired, noise, draw.generator)  # a magnitude even without noise
        seen, scale = with_guide(acquired) if self.guide else acquired[None], factor
        lobes = 3 if self.through_plane else LOBES
        operators = [
            None if k == 1 else lanczos_axis(n, k, lobes=lobes).float()
            for n, k in zip(acquired.shape, steps, strict=True)
        ]
        interpolated = along_axes(seen[0], operators)  # what the network starts from
        if self.through_plane:
            distance = slice_distance(fine.shape[2], factor).expand(fine.shape)
            rest = [along_axes(volume, operators) for volume in seen[1:]]
            seen, scale = torch.stack((interpolated, *rest, distance)), 1
        cut = [m // scale - context for m in margin]
        return _inner(seen, cut), _inner(interpolated[None], margin), _inner(fine[None], margin)

    def _operators(self, draw: _Draw, shape: torch.Size, steps: tuple[int, ...]) -> list[Tensor | None]:
        """One way of acquiring, as the options let it vary."""
        if self.through_plane:
            return [None, None, profile_axis(shape[2], steps[2], width=draw.uniform(*self.options.width)).float()]
        taper = max(0.0, draw.uniform(-self.options.taper, self.options.taper))
        operators = [kspace_axis(n, step, taper=taper).float() for n, step in zip(shape, steps, strict=True)]
        if draw.chance(self.options.profiles):
            width = draw.uniform(*self.options.width)
            operators[2] = profile_axis(shape[2], steps[2], width=width).float()
        return list(operators)

    def _place(self, draw: _Draw, sides: list[int]) -> Tensor:
        """A place that holds more than background, in any of 48 orientations."""
        real = bool(self.real) and (not self.synthetic or draw.chance(self.options.real))
        volume = draw.one_of(self.real if real else self.synthetic)
        axes = torch.randperm(3, generator=draw.generator).tolist()
        block = np.zeros(0)
        for _ in range(_TRIES):
            wanted = dict(zip(axes, sides, strict=True))
            first = [draw.below(volume.shape[axis] - wanted[axis] + 1) for axis in range(3)]
            block = volume[tuple(slice(first[axis], first[axis] + wanted[axis]) for axis in range(3))]
            if block.size and np.ptp(block) > _SOMETHING:
                break
        missing = [(0, side - size) for side, size in zip(sides, block.transpose(axes).shape, strict=True)]
        block = torch.from_numpy(np.pad(block.transpose(axes), missing, mode="symmetric"))  # no edge where it ends
        return block.flip([axis for axis in range(3) if draw.chance(0.5)])


class _Draw:
    """Scalar draws from a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def logarithmic(self, low: float, high: float) -> float:
        return float(np.exp(self.uniform(np.log(low), np.log(high))))

    def chance(self, share: float) -> bool:
        return self.uniform(0, 1) < share

    def below(self, count: int) -> int:
        return int(torch.randint(max(1, count), (), generator=self.generator))

    def one_of(self, things):
        return things[self.below(len(things))]


def _inner(block: Tensor, cut: list[int]) -> Tensor:
    place = tuple(slice(c, n - c) for c, n in zip(cut, block.shape[1:], strict=True))
    return block[(slice(None), *place)].contiguous()


class SuperResolutionCourse(Course[SuperResolutionOptions]):
    """Training of a DISGAN generator."""

    OPTIONS: ClassVar = SuperResolutionOptions
    TOGETHER: ClassVar = True
    _features: Path | None = None  # weights of the extractor, once the data folder is known

    def check(self) -> None:
        """The factors and the blocks must fit the kind of super-resolution."""
        upscaling = self._recipe().upscaling
        if upscaling.axes == "all" and self.options.factors != (2,):
            raise UsageError(f"training.factors must be [2] where every axis is doubled, got {self.options.factors}")

    def files(self, data: Path) -> list[Path]:
        """The fine volumes, then the label maps."""
        paths = [data / source.file for source in self.options.images]
        weights = self.options.adversarial.feature_weights
        self._features = data / weights if weights else None
        needed = [*paths, self._features] if self._features else paths
        missing = [path.name for path in needed if not path.is_file()]
        if missing:
            raise UsageError(f"data folder '{data}' must hold {', '.join(missing)}, found none; see --data")
        if self.options.synthetic is None:
            return paths
        labels = sorted(data.glob(self.options.synthetic.labels))
        if not labels:
            raise UsageError(f"data folder '{data}' must hold {self.options.synthetic.labels}, found none; see --data")
        return [*paths, *labels]

    def trainer(self, device: str) -> AdversarialTrainer:
        """The network must be a DISGAN generator that fits the kind of super-resolution."""
        network, recipe = self.network(), self._recipe()
        if not isinstance(network, Generator):
            raise UsageError(f"training 'super-resolution' needs the network disgan, got '{recipe.network.name}'")
        channels, doublings = channels_and_doublings(recipe.upscaling)
        found = (network.conv1.module.in_channels, network.num_upsample)
        if found != (channels, doublings):
            raise UsageError(
                f"network.options must be channels {channels} and num_upsample {doublings} to refine "
                f"{recipe.upscaling.axes}, got {found[0]} and {found[1]}"
            )
        o = self.options
        return AdversarialTrainer(
            network,
            o,
            o.adversarial,
            steps=o.steps,
            device=device,
            features=self._features if o.adversarial.steps else None,
        )

    def images(self, files: list[Path]) -> Blocks:
        """Blocks of all volumes that training may see."""
        count = len(self.options.images)
        real = [part for pair in zip(files[:count], self.options.images, strict=True) for part in self._parts(*pair)]
        synthetic = self._drawn(files[count:])
        if not real and not synthetic:
            raise InputRefused("volumes of the training hold nothing but background or held-out slices")
        return Blocks(real, synthetic, self.options, self._recipe().upscaling)

    def _recipe(self) -> SuperResolutionRecipe:
        if not isinstance(self.recipe, SuperResolutionRecipe):
            raise UsageError(f"training 'super-resolution' needs a recipe of that task, got task {self.recipe.task}")
        return self.recipe

    def _parts(self, path: Path, source: Source) -> list[np.ndarray]:
        """A fine volume below and above what is held out, cropped to its content."""
        volume = to_ras(read(path))[0]
        scaled = Scaling.of_percentile(volume.voxels, self._recipe().upscaling.percentile).apply(volume.voxels)
        low, high = source.held_out or (0, 0)
        parts = (scaled[:, :, :low], scaled[:, :, high:])
        return [_cropped(part) for part in parts if part.size and np.ptp(part) > _SOMETHING]

    def _drawn(self, files: list[Path]) -> list[np.ndarray]:
        """Synthetic volumes of the label maps, without any degradation."""
        synthetic = self.options.synthetic
        if synthetic is None:
            return []
        named = load_recipe(synthetic.tissues_of)
        options = SyntheticOptions.model_validate({k: v for k, v in named.training.items() if k != "kind"})
        tissues = [tissue.tissue() for tissue in options.tissues.values()]
        subjects = load_subjects(files, options)
        generator = torch.Generator().manual_seed(self.options.seed)
        return [_fine_image(subjects[i % len(subjects)], tissues, synthetic, generator) for i in range(synthetic.count)]


def _fine_image(
    subject: Subject, tissues: list[Tissue], synthetic: Synthetic, generator: torch.Generator
) -> np.ndarray:
    options = SynthesisOptions(
        crop=synthetic.crop, isotropic=1.0, noise=(0.0, 0.0), blur=(0.6, 0.9), tissue_noise=(0.0, 0.01), cut=0.0
    )
    return synthesise(subject, tissues, options, generator).image.numpy()


def _cropped(volume: np.ndarray) -> np.ndarray:
    """The box around everything that is not background, with some air."""
    filled = volume > _EMPTY
    place = []
    for axis in range(3):
        line = np.flatnonzero(filled.any(axis=tuple({0, 1, 2} - {axis})))
        place.append(slice(max(0, int(line[0]) - _AIR), int(line[-1]) + 1 + _AIR))
    return np.ascontiguousarray(volume[tuple(place)])
