"""Synthetic tasks: what repeats, what the masks mean, where slices lie, and anatomies that never were."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from brain_labels import TISSUES, head_labels
from medseg.episodes import (
    Anatomy,
    Episode,
    EpisodeOptions,
    Structure,
    anatomy,
    draw_anatomical,
    draw_invented,
    draw_structure,
    invented_subject,
)
from medseg.synthesis import SynthesisOptions, prepare_subject

GROUPS = [replace(tissue, target=index) for index, tissue in enumerate(TISSUES)]
HOW = EpisodeOptions(side=32, field=(38.4, 51.2))
STILL = SynthesisOptions(rotation=0.0, shear=0.0, elastic={}, cut=0.0, stripped=0.0, isotropic=1.0, shift=0.0)


@pytest.fixture(scope="module")
def heads() -> list[Anatomy]:
    return [anatomy(prepare_subject(head_labels(32), GROUPS, margin=8), GROUPS)] * 2


def _drawn(heads: list[Anatomy], seed: int, structure: Structure, **options: Any) -> Episode:
    counts: dict[str, Any] = {"axis": 2, "examples": 3, "queries": 2} | options
    return draw_anatomical(
        heads, GROUPS, structure, STILL, HOW, generator=torch.Generator().manual_seed(seed), **counts
    )


def test_a_task_repeats_with_its_generator_alone(heads: list[Anatomy]) -> None:
    first, again, other = (_drawn(heads, seed, Structure((2,), None)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == first.masks.shape == (5, 32, 32)
    assert float(first.images.min()) >= 0
    assert float(first.images.max()) <= 1


def test_examples_hold_the_structure_and_sides_split_it(heads: list[Anatomy]) -> None:
    both = _drawn(heads, 3, Structure((1,), None))
    left, right = (_drawn(heads, 3, Structure((1,), side)) for side in (1, 0))
    assert bool((both.masks[:3].sum((1, 2)) > 12).all())
    assert torch.equal(left.masks + right.masks, both.masks)
    middle = left.masks[0].nonzero()[:, 0].float().mean()
    assert abs(float(middle) - float(right.masks[0].nonzero()[:, 0].float().mean())) > 4, "X runs along the first axis"


def test_queries_can_be_asked_of_other_subjects(heads: list[Anatomy]) -> None:
    shell = replace(heads[0].subject, tissue=np.where(heads[0].subject.tissue == 1, 3, heads[0].subject.tissue))
    drawn = _drawn(heads, 3, Structure((1,), None), asked=[replace(heads[0], subject=shell)])
    assert drawn.masks[:3].any()
    assert not drawn.masks[3:].any(), "the other subject has another tissue in its place"


def test_several_tissues_are_one_mask(heads: list[Anatomy]) -> None:
    one, other, both = (_drawn(heads, 4, Structure(tissues, None)) for tissues in ((1,), (2,), (1, 2)))
    assert torch.equal(both.masks[0], one.masks[0] + other.masks[0])


def test_queries_of_a_sequence_are_neighbours(heads: list[Anatomy]) -> None:
    drawn = _drawn(heads, 5, Structure((1, 2), None), sequence=True, queries=3)
    assert len(drawn.images) == 6
    apart = [float((drawn.masks[i] - drawn.masks[j]).abs().mean()) for i, j in ((3, 4), (4, 5), (0, 3))]
    assert max(apart[:2]) < 0.1


def test_structures_are_those_asked_for_and_sides_only_where_slices_show_them(heads: list[Anatomy]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_structure(heads, GROUPS, [1, 2], HOW, axis=axis, generator=generator) for axis in (0, 1, 2) * 20]
    assert {index for structure in drawn for index in structure.tissues} == {1, 2}
    assert all(structure.side is None for structure in drawn[0::3]), "a sagittal slice lies in one half"
    assert {structure.side for structure in drawn[1::3]} == {None, 0, 1}


def test_invented_anatomies_have_their_regions_and_differ() -> None:
    first, other = (invented_subject(6, HOW, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert set(range(1, 7)) <= set(first.tissue.ravel().tolist())
    assert first.tissue.shape == other.tissue.shape == (34, 34, 8)
    assert (first.tissue != other.tissue).mean() > 0.5


def test_an_invented_task_outlines_the_same_thing_in_every_image() -> None:
    how = replace(HOW, pieces=0.0, same_contrast=1.0, deformation=())
    varied = replace(STILL, bias=0.0, noise=(0.0, 0.0), tissue_noise=(0.0, 0.0), gamma=0.0, flip=0.0)
    drawn = draw_invented(varied, how, examples=3, queries=2, generator=torch.Generator().manual_seed(3))
    overlap = 2 * (drawn.masks[0] * drawn.masks[1]).sum() / (drawn.masks[0] + drawn.masks[1]).sum()
    assert float(overlap) > 0.6, "without deformation only the scale differs a little"
    piece = draw_invented(
        varied, replace(how, pieces=1.0), examples=3, queries=2, generator=torch.Generator().manual_seed(3)
    )
    assert 0 < float(piece.masks.sum()) <= float(drawn.masks.sum())
