"""The image generator: what repeats, what follows a flip, what is missing where, and its sampling operators."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from brain_labels import TISSUES, head_labels
from medseg.synthesis import (
    IGNORE,
    Sample,
    Subject,
    SynthesisOptions,
    Tissue,
    _cut,
    _Draw,
    _sampling,
    prepare_subject,
    synthesise,
)
from medseg.volume import Volume

CROP = (40, 44, 36)
STILL: dict[str, Any] = {  # the head as it is, without any deformation
    "crop": (48, 48, 48),
    "shift": 0.0,
    "rotation": 0.0,
    "scaling": (1.0, 1.0),
    "shear": 0.0,
    "elastic": {},
    "cut": 0.0,
    "flip": 0.0,
    "stripped": 0.0,
}


@pytest.fixture(scope="module")
def subject() -> Subject:
    return prepare_subject(head_labels(), TISSUES, margin=12)


def _sample(subject: Subject, seed: int, **options: Any) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return synthesise(subject, TISSUES, SynthesisOptions(**{"crop": CROP, **options}), generator)


def _target(subject: Subject, seed: int, **options: Any) -> tuple[Tensor, Tensor]:
    sample = _sample(subject, seed, **{**STILL, **options})
    return sample.target, sample.side


def test_one_seed_one_image(subject: Subject) -> None:
    first, again, other = (_sample(subject, seed) for seed in (5, 5, 6))
    for name in ("image", "target", "side"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.image, other.image)


@pytest.mark.parametrize("seed", range(6))
def test_ranges(subject: Subject, seed: int) -> None:
    sample = _sample(subject, seed)
    assert sample.image.shape == sample.target.shape == sample.side.shape == CROP
    assert sample.image.dtype == torch.float32
    assert bool(sample.image.isfinite().all())
    assert 0 <= float(sample.image.min()) < float(sample.image.max()) <= 1.5 * 1.15
    assert set(sample.target.unique().tolist()) <= {0, 1, 2, 3, IGNORE}
    assert set(sample.side.unique().tolist()) <= {0, 1, IGNORE}
    assert bool((sample.side[sample.target == IGNORE] == IGNORE).all())


def test_target_is_the_label_map_where_nothing_moves(subject: Subject) -> None:
    target, side = _target(subject, 0)
    labels = head_labels().voxels
    classes = {0: 0, 502: 0, 2: 1, 41: 1, 3: 2, 42: 2, 4: 3, 30: IGNORE}
    sides = {2: 1, 3: 1, 41: 0, 42: 0}
    truth = np.vectorize(classes.get)(labels)
    assert np.array_equal(target.numpy(), truth)
    assert np.array_equal(side.numpy(), np.vectorize(lambda i: sides.get(i, IGNORE))(labels))


def test_sides_follow_a_flip(subject: Subject) -> None:
    target, side = _target(subject, 0)
    mirrored, turned = _target(subject, 0, flip=1.0)
    assert torch.equal(mirrored, target.flip(0))
    sided = side.flip(0) != IGNORE
    assert torch.equal(turned != IGNORE, sided)
    # after the flip the right half of the subject lies left, and is left
    assert torch.equal(turned[sided], 1 - side.flip(0)[sided])
    half = turned[:24][turned[:24] != IGNORE].float()
    assert float(half.mean()) == 1.0


def test_outside_the_brain_nothing_is_left_beyond_the_margin(subject: Subject) -> None:
    # nothing that would vary the grey value of air
    plain = {"isotropic": 1.0, "noise": (0.0, 0.0), "blur": (0.05, 0.05), "tissue_noise": (0.0, 0.0), "bias": 0.0}
    options: dict[str, Any] = {**STILL, **plain, "strip_margin": (0.0, 2.9)}
    labels = torch.from_numpy(head_labels().voxels.astype(np.int32))
    brain = (labels != 0) & (labels != 502)
    near = torch.nn.functional.max_pool3d(brain[None, None].float(), 7, stride=1, padding=3)[0, 0] > 0
    outside = ~near & (labels == 502)
    for seed in range(4):
        whole = _sample(subject, seed, **options).image
        stripped = _sample(subject, seed, **{**options, "stripped": 1.0}).image
        assert bool((stripped[outside] == stripped[0, 0, 0]).all())
        assert bool((whole[outside] != whole[0, 0, 0]).all())
        assert float(stripped[brain].std()) > 0


@pytest.mark.parametrize("seed", range(5))
def test_cut_ends_image_and_target_together(seed: int) -> None:
    image, target = torch.ones(20, 30, 40), torch.ones(20, 30, 40, dtype=torch.uint8)
    _cut(image, target, _Draw(torch.Generator().manual_seed(seed)))
    assert torch.equal(image == 0, target == 0)
    gone = [int((image.amin([i for i in range(3) if i != axis]) == 0).sum()) for axis in range(3)]
    cut = [axis for axis in range(3) if gone[axis] < image.shape[axis]]
    if not cut:
        assert int((image == 0).sum()) == 0
        return
    (axis,) = cut
    assert gone[axis] / image.shape[axis] <= 0.4
    line = image.amin([i for i in range(3) if i != axis])
    assert bool(line[0] == 0) != bool(line[-1] == 0)


@pytest.mark.parametrize("size", [8, 31, 64])
@pytest.mark.parametrize(("step", "width", "phase"), [(1.0, 0.5, 0.3), (2.0, 0.8, 0.0), (3.7, 1.4, 0.9), (9.0, 3, 1.0)])
def test_sampling_and_its_return(size: int, step: float, width: float, phase: float) -> None:
    profile, back = _sampling(size, step, width, phase)
    count = profile.shape[0]
    assert profile.shape == (count, size)
    assert back.shape == (size, count)
    for operator in (profile, back):
        assert float(operator.min()) >= 0
        torch.testing.assert_close(operator.sum(1), torch.ones(len(operator)))
    centres = torch.arange(size).float() if step == 1 else phase * (step - 1) + step * torch.arange(count)
    inside = (torch.arange(size) >= centres[0]) & (torch.arange(size) <= centres[-1])
    # slices that sample a ramp at their centres are interpolated back to the ramp itself
    torch.testing.assert_close((back @ centres)[inside], torch.arange(size).float()[inside], rtol=0, atol=1e-4)
    before, after = torch.arange(size) < centres[0], torch.arange(size) > centres[-1]
    assert bool(((back @ centres)[before] == centres[0]).all())
    assert bool(((back @ centres)[after] == centres[-1]).all())


def test_thick_slices_lose_what_lies_between_them(subject: Subject) -> None:
    options = {**STILL, "noise": (0.0, 0.0), "tissue_noise": (0.0, 0.05), "contrasts": {"random": 1.0}}
    thin, thick = (
        _sample(subject, 3, **options, isotropic=share, thick=(8.0, 8.0), coarse=(1.0, 1.0)).image
        for share in (1.0, 0.0)
    )

    def roughness(image: Tensor) -> list[float]:
        return [float(image.diff(n=2, dim=axis).abs().mean() / image.std()) for axis in range(3)]

    assert min(a / b for a, b in zip(roughness(thick), roughness(thin), strict=True)) < 0.5


def test_realistic_contrasts_order_the_tissues(subject: Subject) -> None:
    clean = {"noise": (0.0, 0.0), "isotropic": 1.0, "bias": 0.0, "gamma": 0.0, "tissue_noise": (0.0, 0.0)}
    for kind, order in {"t1": (3, 2, 1), "t2": (1, 2, 3)}.items():
        for seed in range(3):
            sample = _sample(subject, seed, **STILL, **clean, contrasts={kind: 1.0})
            means = [float(sample.image[sample.target == c].median()) for c in order]
            assert means == sorted(means)


def test_subject_is_cropped_to_the_head(subject: Subject) -> None:
    small = prepare_subject(head_labels(), TISSUES, margin=2)
    assert subject.tissue.shape == (48, 48, 48)
    assert small.tissue.shape == (40, 40, 40)
    assert small.centre == pytest.approx((19.5, 19.5, 19.5), abs=0.2)
    assert int(small.distance[20, 20, 20]) == 0
    assert int(small.distance.max()) <= 40


def test_what_is_no_label_map_of_a_head_is_refused() -> None:
    labels = head_labels(16)
    for affine, got in ((np.diag([-1.0, 1, 1, 1]), "LAS"), (np.diag([1.0, 1, 2, 1]), "2.0")):
        with pytest.raises(ValueError, match=f"must be RAS at 1 mm, got .*{got}"):
            prepare_subject(Volume(labels.voxels, affine, kind="labels"), TISSUES)
    for voxels in (np.zeros_like(labels.voxels), np.where(labels.voxels == 502, 502, 0).astype(np.uint16)):
        with pytest.raises(ValueError, match="must hold brain tissue"):
            prepare_subject(labels.with_voxels(voxels), TISSUES)


def test_unnamed_and_negative_ids_are_air() -> None:
    labels = head_labels(16)
    known = prepare_subject(labels, TISSUES)
    odd = np.where(labels.voxels == 0, -3, labels.voxels).astype(np.int32)
    odd[0, 0, 0] = 9999
    again = prepare_subject(labels.with_voxels(odd), TISSUES)
    assert np.array_equal(known.tissue, again.tissue)


def test_free_tissues_need_no_contrast_of_their_own() -> None:
    tissues = [*TISSUES[:3], replace(TISSUES[3], fluid=False), Tissue(ids=(30, 502), target=0, brain=False)]
    generator = torch.Generator().manual_seed(0)
    options = SynthesisOptions(crop=(24, 24, 24), contrasts={"flair": 1.0})
    sample = synthesise(prepare_subject(head_labels(24), tissues), tissues, options, generator)
    assert bool(sample.image.isfinite().all())
