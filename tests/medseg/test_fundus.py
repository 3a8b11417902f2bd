"""The field of view of a fundus photograph, and light that is taken out of it."""

import numpy as np
import pytest

from medseg.fundus import diameter, field_of_view, flatten_light
from medseg.picture import Picture
from pictures import fundus


@pytest.mark.parametrize("size", [(240, 300), (700, 500), (1100, 1400)])
def test_the_disc_is_found_whatever_the_size(size: tuple[int, int]) -> None:
    pixels, _ = fundus(*size)
    field = field_of_view(Picture(pixels))
    y, x = np.mgrid[: size[0], : size[1]]
    disc = (y - size[0] / 2) ** 2 + (x - size[1] / 2) ** 2 <= (0.48 * min(size)) ** 2
    assert (field & disc).sum() / (field | disc).sum() > 0.94  # its dark rim is left out on purpose
    assert diameter(field) == pytest.approx(0.96 * min(size), rel=0.04)


def test_a_mark_beside_the_field_is_left_out() -> None:
    pixels, _ = fundus()
    plain = field_of_view(Picture(pixels))
    marked = pixels.copy()
    marked[40:50, 240:262] = (150, 90, 45)
    assert (field_of_view(Picture(marked)) ^ plain).mean() < 0.01


def test_without_a_dark_border_the_field_is_everything() -> None:
    pixels, _ = fundus()
    assert field_of_view(Picture(pixels[80:160, 110:190])).all()


def test_flattening_takes_out_light_and_keeps_vessels() -> None:
    pixels, vessels = fundus()
    field = field_of_view(Picture(pixels))
    plane = pixels[..., 1] / np.float32(255)
    shaded = (plane * np.linspace(0.4, 1.0, plane.shape[1], dtype=np.float32)).astype(np.float32)
    a, b = (flatten_light(p.astype(np.float32), field, 12.0) for p in (plane, shaded))
    assert np.corrcoef(a[field], b[field])[0, 1] > 0.97
    assert a[vessels & field].mean() < a[field & ~vessels].mean() - 1
    assert not a[~field].any()
