"""Losses against values worked out by hand."""

from math import log

import pytest
import torch

from medseg.losses import dice_and_cross_entropy, side_entropy

FAR = 40.0  # a logit that is certain


def _logits(classes: list[int], count: int) -> torch.Tensor:
    return FAR * torch.nn.functional.one_hot(torch.tensor(classes), count).T.float()


def test_a_certain_right_answer_costs_nothing() -> None:
    target = torch.tensor([0, 1, 1, 2])
    assert float(dice_and_cross_entropy(_logits([0, 1, 1, 2], 4), target)) == pytest.approx(0, abs=1e-6)


def test_values_of_an_undecided_answer() -> None:
    target = torch.tensor([0, 0, 0, 1], dtype=torch.uint8)
    # p = 1/2 everywhere: entropy ln 2; Dice (2 * 3/2 + 1) / (2 + 3 + 1) and (2 * 1/2 + 1) / (2 + 1 + 1)
    loss = dice_and_cross_entropy(torch.zeros(2, 4), target)
    assert float(loss) == pytest.approx(log(2) + 1 - (4 / 6 + 2 / 4) / 2)


def test_a_class_that_does_not_occur_is_not_averaged() -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])
    never = torch.cat((logits, torch.full((1, 8), -1e4)))
    assert float(dice_and_cross_entropy(never, target)) == pytest.approx(float(dice_and_cross_entropy(logits, target)))


def test_ignored_voxels_change_nothing() -> None:
    logits, target = torch.randn(3, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    more = torch.cat((logits, torch.full((3, 2), 1e6)), dim=1)
    marked = torch.cat((target, torch.tensor([255, 255])))
    assert torch.equal(dice_and_cross_entropy(more, marked), dice_and_cross_entropy(logits, target))
    kept = dice_and_cross_entropy(logits[:, 1::3], torch.tensor([1, 1]))
    assert torch.equal(dice_and_cross_entropy(logits, torch.tensor([0, 1, 0, 0, 1, 0]), ignore=0), kept)


def test_nothing_known_gives_zero_and_a_zero_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = dice_and_cross_entropy(logits, torch.full((4,), 255)) + side_entropy(logits[0], torch.full((4,), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_half_precision_logits_are_summed_in_single() -> None:
    logits = torch.randn(4, 5000, generator=torch.Generator().manual_seed(1)).bfloat16()
    target = torch.arange(5000) % 4
    loss = dice_and_cross_entropy(logits, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, dice_and_cross_entropy(logits.float(), target))


def test_gradient_points_to_the_truth() -> None:
    logits = torch.zeros(3, 7, requires_grad=True)
    target = torch.tensor([0, 1, 2, 255, 0, 0, 1])
    dice_and_cross_entropy(logits, target).backward()
    assert logits.grad is not None
    known = target != 255
    truth = torch.nn.functional.one_hot(target[known], 3).T.bool()
    assert bool((logits.grad[:, known] < 0).eq(truth).all())
    assert not logits.grad[:, ~known].any()


def test_side_is_left_where_positive() -> None:
    side = torch.tensor([1, 0, 255], dtype=torch.uint8)
    assert float(side_entropy(torch.tensor([FAR, -FAR, -FAR]), side)) == pytest.approx(0, abs=1e-6)
    assert float(side_entropy(torch.tensor([-FAR, FAR, 0.0]), side)) == pytest.approx(FAR)
    assert float(side_entropy(torch.zeros(3), side)) == pytest.approx(log(2))
