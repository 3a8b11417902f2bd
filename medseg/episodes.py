"""Segmentation tasks to learn to learn from: several synthetic slices of one contrast, one structure outlined in each.

Half of the tasks come from label maps of heads. The others come from anatomies that never were, smooth random regions
that every image of a task deforms anew: with structures of every shape there is nothing to learn by heart, and a
network that is taught on them has to look at the examples (after Butoi et al., UniverSeg, ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medseg.synthesis import IGNORE, Subject, SynthesisOptions, Tissue, synthesise, tissue_means

_LEVELS = np.linspace(0.02, 0.98, 25)  # shares of a structure that lie before a slice through it
_BEYOND = 2  # slices kept on both sides of those that are used, for what blurs along them
_FEWEST = 12 / 128**2  # share of an example that its structure covers
_VOXEL = 1.5  # mm, of anatomies that never were
_TRIES = 8
SIDES = 3  # right, left, neither


@dataclass(frozen=True, kw_only=True)
class EpisodeOptions:
    """How tasks vary.

    Attributes:
        side: Pixels of both sides of a slice; shifts and elastic deformations of the images are meant for 128.
        field: mm across a slice, least and most.
        jitter: Greatest difference of level between the images of a task, as a share of the structure.
        same_contrast: Share of tasks whose images have one contrast; the others have one each.
        one_side: Share of the tasks on paired structures that ask for one side only.
        union: Share of tasks that ask for two or three tissues together.
        away: Share of queries from anywhere in the brain, where the structure may be missing.
        pieces: Share of tasks on an anatomy that never was that ask for one connected piece of a region.
        regions: Of an anatomy that never was, fewest and most.
        deformation: Of these anatomies: control spacing to standard deviation, both in pixels of 128.
    """

    side: int = 128
    field: tuple[float, float] = (155.0, 245.0)
    jitter: float = 0.15
    same_contrast: float = 0.85
    one_side: float = 0.4
    union: float = 0.25
    away: float = 0.25
    pieces: float = 0.6
    regions: tuple[int, int] = (5, 16)
    deformation: tuple[tuple[int, float], ...] = ((40, 6.0), (16, 2.0))


class Episode(NamedTuple):
    """One task.

    Args:
        images: Examples, then queries, (n, side, side), as prepared for inference.
        masks: The structure, 0 or 1, alike.
        parts: What each pixel is of, alike, int64: `SIDES` times its tissue, and 0 right, 1 left, 2 neither.
    """

    images: Tensor
    masks: Tensor
    parts: Tensor

    @staticmethod
    def of(drawn: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Episode:
        """From images, masks and parts, one behind the other."""
        return Episode(*(torch.cat(column) for column in zip(*drawn, strict=True)))


@dataclass(frozen=True)
class Anatomy:
    """A subject, and where its tissues lie.

    Attributes:
        subject: From `prepare_subject`.
        levels: Voxel of each axis at `_LEVELS` of each tissue; tissues that are absent are missing.
        brain: The same of all that counts as brain.
    """

    subject: Subject
    levels: dict[int, np.ndarray]  # (3, levels) each
    brain: np.ndarray  # (3, levels)


class Structure(NamedTuple):
    """What a task asks for.

    Args:
        tissues: Their numbers.
        side: 1 left, 0 right, None both.
    """

    tissues: tuple[int, ...]
    side: int | None

    def mask(self, target: Tensor, side: Tensor) -> Tensor:
        """Where it is, from the tissue and the side of each voxel; float32."""
        found = torch.isin(target, torch.tensor(self.tissues, dtype=target.dtype))
        return (found if self.side is None else found & (side == self.side)).float()


def anatomy(subject: Subject, tissues: Sequence[Tissue]) -> Anatomy:
    """A subject with the levels of its tissues."""
    levels = {}
    for index in range(1, len(tissues)):
        places = np.nonzero(subject.tissue == index)
        if places[0].size:
            levels[index] = _quantiles(places)
    return Anatomy(subject, levels, _quantiles(np.nonzero(subject.distance == 0)))


def draw_structure(
    anatomies: Sequence[Anatomy],
    tissues: Sequence[Tissue],
    asked: Sequence[int],
    how: EpisodeOptions,
    *,
    axis: int,
    generator: torch.Generator,
) -> Structure:
    """Something that every anatomy has, to be looked for in slices across an axis."""
    common = [index for index in asked if all(index in each.levels for each in anatomies)]
    order = [common[i] for i in torch.randperm(len(common), generator=generator).tolist()]
    count = 1
    if _chance(how.union, generator):
        count = 2 + int(_chance(0.5, generator))
    sided = axis != 0 and all(tissues[index].right for index in order[:count])
    side = int(_chance(0.5, generator)) if sided and _chance(how.one_side, generator) else None
    return Structure(tuple(order[:count]), side)


def draw_anatomical(
    anatomies: Sequence[Anatomy],
    tissues: Sequence[Tissue],
    structure: Structure,
    synthesis: SynthesisOptions,
    how: EpisodeOptions,
    *,
    axis: int,
    examples: int,
    queries: int,
    generator: torch.Generator,
    sequence: bool = False,
    asked: Sequence[Anatomy] | None = None,
) -> Episode:
    """Slices through a structure at about one level, each of another draw of a subject.

    Args:
        anatomies: To draw from.
        tissues: Groups, each with its own number as target.
        structure: What to outline.
        synthesis: How images vary; crop and scaling are set here.
        how: How tasks vary.
        axis: That the slices are across: 0, 1, 2 for sagittal, coronal, axial.
        examples: How many come first; the structure is in each.
        queries: How many follow.
        generator: The only source of randomness.
        sequence: The queries are neighbouring slices of one image.
        asked: To draw the queries from, where those are other subjects.
    """
    level = _uniform(0.1, 0.9, generator)
    inside = all(tissues[index].brain for index in structure.tissues)
    stripped = float(inside and _chance(synthesis.stripped, generator))  # the images of a task are alike in this
    paint = _Paint(tissues, replace(synthesis, stripped=stripped), how, axis, generator)
    drawn = []
    for number in range(examples + (1 if sequence else queries)):
        query = number >= examples
        for _ in range(1 if query else _TRIES):  # an example without the structure says nothing
            others = asked if query and asked else anatomies
            subject, middle = _place(others, structure, level, how, axis, generator, away=how.away if query else 0)
            image = paint(subject, structure, middle, queries if sequence and query else 1)
            if float(image[1].mean()) >= _FEWEST:
                break
        drawn.append(image)  # pyright: ignore[reportPossiblyUnboundVariable] # one try at least
    return Episode.of(drawn)


def _place(
    anatomies: Sequence[Anatomy],
    structure: Structure,
    level: float,
    how: EpisodeOptions,
    axis: int,
    generator: torch.Generator,
    *,
    away: float,
) -> tuple[Subject, tuple[float, float, float]]:
    """A subject, and the voxel of it in the middle of a slice at about a level of a structure."""
    drawn = anatomies[int(torch.randint(len(anatomies), (), generator=generator))]
    lines = drawn.levels[structure.tissues[0]]
    at = level + _uniform(-how.jitter, how.jitter, generator)
    if _chance(away, generator):
        lines, at = drawn.brain, _uniform(0, 1, generator)
    middle = list(drawn.subject.centre)
    middle[axis] = float(np.interp(at, _LEVELS, lines[axis]))
    return drawn.subject, cast(tuple[float, float, float], tuple(middle))


def draw_invented(
    synthesis: SynthesisOptions,
    how: EpisodeOptions,
    *,
    examples: int,
    queries: int,
    generator: torch.Generator,
    sequence: bool = False,
) -> Episode:
    """A task on an anatomy that never was; arguments as in `draw_anatomical`."""
    low, high = how.regions
    regions = low + int(torch.randint(high - low + 1, (), generator=generator))
    subject = invented_subject(regions, how, generator)
    chosen = _one_region(subject.tissue, regions, generator)
    if _chance(how.pieces, generator):
        _cut_out_piece(subject.tissue, chosen, regions + 1, generator)
        chosen = regions + 1
    tissues = [Tissue(ids=(index,), target=index) for index in range(regions + 2)]
    structure = Structure((chosen,), None)
    varied = replace(synthesis, contrasts={"random": 1.0}, elastic=dict(how.deformation), stripped=0.0)
    paint = _Paint(tissues, varied, how, 2, generator, voxel=_VOXEL)
    counts = [1] * examples + ([queries] if sequence else [1] * queries)
    drawn = [paint(subject, structure, subject.centre, count) for count in counts]
    return Episode.of(drawn)


def invented_subject(regions: int, how: EpisodeOptions, generator: torch.Generator) -> Subject:
    """Smooth random regions 1 to `regions`, in half of the cases within a round body with air, 0, around it."""
    wide, deep = round(how.field[1] / _VOXEL), 8
    ends = torch.zeros(2, regions, wide, wide)  # first and last slice; those between are mixed from them
    for spacing in (16, 40):
        coarse = torch.randn((2, regions, *(2 * [wide // spacing + 2])), generator=generator)
        weight = _uniform(0.3, 1.0, generator)
        ends += weight * F.interpolate(coarse, size=(wide, wide), mode="bilinear", align_corners=True)
    mixed = torch.linspace(0, 0.7, deep).tolist()
    tissue = 1 + torch.stack([torch.lerp(ends[0], ends[1], share).argmax(0) for share in mixed], dim=2)
    if _chance(0.5, generator):
        x, y = ((torch.arange(wide) - wide / 2) / (wide * _uniform(0.3, 0.48, generator)) for _ in range(2))
        tissue[x[:, None].square() + y[None].square() > 1] = 0
    voxels = tissue.numpy().astype(np.uint8)
    sides, distance = np.full_like(voxels, IGNORE), np.zeros_like(voxels)
    return Subject(voxels, sides, distance, (wide / 2, wide / 2, deep / 2))


def _one_region(tissue: np.ndarray, regions: int, generator: torch.Generator) -> int:
    """One of those that are neither tiny nor huge in the middle slice."""
    middle = tissue[:, :, tissue.shape[2] // 2]
    share = np.bincount(middle.ravel(), minlength=regions + 1)[1:] / middle.size
    weights = torch.from_numpy(((share > 0.002) & (share < 0.3)) + 1e-6)
    return 1 + int(torch.multinomial(weights, 1, generator=generator))


def _cut_out_piece(tissue: np.ndarray, region: int, number: int, generator: torch.Generator) -> None:
    """Give one of the larger connected pieces of a region a number of its own, in place."""
    pieces, count = cast(tuple[np.ndarray, int], ndimage.label(tissue == region))
    if count:
        size = torch.from_numpy(np.bincount(pieces.ravel())[1:].astype(np.float64))
        tissue[pieces == 1 + int(torch.multinomial(size, 1, generator=generator))] = number


class _Paint:
    """Draws the images of one task.

    Args:
        tissues: The groups.
        synthesis: How images vary.
        how: How tasks vary.
        axis: That slices are across.
        generator: The only source of randomness.
        voxel: mm, of the subjects.
    """

    def __init__(
        self,
        tissues: Sequence[Tissue],
        synthesis: SynthesisOptions,
        how: EpisodeOptions,
        axis: int,
        generator: torch.Generator,
        *,
        voxel: float = 1.0,
    ) -> None:
        self.tissues, self.how, self.axis, self.generator = tissues, how, axis, generator
        pixel = _uniform(*how.field, generator) / how.side / voxel
        share = how.side / 128
        self.synthesis = replace(
            synthesis,
            scaling=(0.9 / pixel, 1.1 / pixel),
            shift=synthesis.shift * share,
            elastic={max(4, round(at * share)): by * share for at, by in synthesis.elastic.items()},
        )
        same = _chance(how.same_contrast, generator)
        self.means = tissue_means(tissues, synthesis, generator) if same else None

    def __call__(
        self, subject: Subject, structure: Structure, middle: tuple[float, float, float], count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`count` neighbouring slices, masks and parts, (count, side, side) each."""
        side = self.how.side
        crop = [side, side, side]
        crop[self.axis] = count + 2 * _BEYOND
        means = self.means
        if means is not None:
            means = (means + 0.03 * torch.randn(means.shape, generator=self.generator)).clamp(0, 1.1)
        options = replace(self.synthesis, crop=cast(tuple[int, int, int], tuple(crop)))
        sample = synthesise(subject, self.tissues, options, self.generator, centre=middle, means=means)
        used = slice(_BEYOND, _BEYOND + count)
        image, target, of_side = (x.movedim(self.axis, 0)[used] for x in (sample.image, sample.target, sample.side))
        parts = SIDES * target.long() + of_side.long().clamp(max=2)
        return image.clamp(0, 1), structure.mask(target, of_side), parts


def _quantiles(places: tuple[np.ndarray, ...]) -> np.ndarray:
    """Voxel of each axis at `_LEVELS`, (3, levels)."""
    return np.stack([np.quantile(line, _LEVELS) for line in places])


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return _uniform(0, 1, generator) < probability
