"""What holds no image in a volume, and the volume carried on there."""

import torch

from medseg.blank import blank_voxels, carried_on
from medseg.neighbours import mirrored, near


def _cut_out() -> tuple[torch.Tensor, torch.Tensor]:
    """A noisy block within zeros, and where it is."""
    image, inside = torch.zeros(16, 14, 12), torch.zeros(16, 14, 12, dtype=torch.bool)
    inside[5:, 4:10, 3:9] = True
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(7))
    return torch.where(inside, 20 + noise, image), inside


def test_cubes_at_the_smallest_value_are_blank_and_single_voxels_are_not() -> None:
    image, inside = _cut_out()
    image[10, 6, 5] = 0.0
    image[7:9, 6, 5] = 0.0
    inside[5, 4, 3] = False
    image[5, 4, 3] = 0.0
    assert torch.equal(blank_voxels(image), ~inside), "touching them they are"
    assert torch.equal(blank_voxels(image - 3), ~inside), "whatever the smallest value is"
    assert torch.equal(blank_voxels(image[:, :, 5:6]), ~inside[:, :, 5:6]), "one slice alone"
    noisy = image + torch.rand(image.shape, generator=torch.Generator().manual_seed(8))
    assert not blank_voxels(noisy).any()


def test_the_image_is_carried_on_by_means_ring_by_ring() -> None:
    image, inside = _cut_out()
    found = carried_on(image, ~inside, 2)
    assert torch.equal(found[inside], image[inside])
    assert torch.equal(found > 0, near(inside, 2)), "two rings and no more"
    torch.testing.assert_close(found[4, 3, 2], image[5, 4, 3])  # one neighbour at a corner
    torch.testing.assert_close(found[4, 6, 5], image[5, 5:8, 4:7].mean())
    torch.testing.assert_close(found[3, 6, 5], found[4, 5:8, 4:7].mean())
    whole = torch.ones(4, 4, 4)
    assert torch.equal(carried_on(whole, torch.zeros_like(whole, dtype=torch.bool), 3), whole)
    assert torch.equal(carried_on(whole, torch.ones_like(whole, dtype=torch.bool), 3), whole), "nothing to carry on"


def test_lines_go_on_as_their_mirror_images() -> None:
    assert mirrored(3, 4).tolist() == [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]
    assert mirrored(1, 2).tolist() == [0, 0, 0, 0, 0]


def test_both_compile_to_the_same() -> None:
    image, inside = _cut_out()
    assert torch.equal(torch.jit.script(blank_voxels)(image), ~inside)
    assert torch.equal(torch.jit.script(carried_on)(image, ~inside, 3), carried_on(image, ~inside, 3))
