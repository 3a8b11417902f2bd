"""Pictures in files: every kind reads as it is to be looked at, and a bad one is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that its own documentation uses
from PIL import Image

from medseg.errors import InputRefused, UsageError
from medseg.io.pictures import is_picture, read_indexed, read_mask, read_picture, write_indexed
from medseg.picture import Picture
from pictures import COLOURS, bad_picture, header_of


@pytest.mark.parametrize("ending", ["png", "tif", "tiff", "bmp", "ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_files_keep_every_value(tmp_path: Path, ending: str, channels: int) -> None:
    pixels = COLOURS[..., :channels]
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(tmp_path / f"a.{ending}")
    picture = read_picture(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(picture.pixels, pixels)
    assert picture.spacing is None


def test_jpeg_keeps_its_size_and_colours(tmp_path: Path) -> None:
    smooth = np.full((20, 30, 3), (200, 90, 30), np.uint8)
    smooth[:10] //= 2
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.size == (20, 30)
    assert abs(picture.pixels.astype(int) - smooth)[3:7].max() <= 4


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_stay_sixteen_bit(tmp_path: Path, ending: str, channels: int) -> None:
    deep = np.random.default_rng(2).integers(0, 65536, (20, 30, 3), dtype=np.uint16)[..., :channels]
    image = sitk.GetImageFromArray(deep if channels == 3 else deep[..., 0], isVector=channels == 3)
    sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
    np.testing.assert_array_equal(read_picture(tmp_path / f"a.{ending}").pixels, deep)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_that_of_pillow(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, shown)
    assert picture.source is not None
    assert picture.source.turned == (orientation != 1)


def test_palette_and_transparency_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).quantize(16).save(tmp_path / "palette.png")
    assert read_picture(tmp_path / "palette.png").channels == 3
    Image.fromarray(COLOURS).convert("RGBA").save(tmp_path / "alpha.png")
    picture = read_picture(tmp_path / "alpha.png")
    np.testing.assert_array_equal(picture.pixels, COLOURS)
    assert picture.notes == ("transparency was dropped",)


def test_imagej_states_micrometres_and_dots_per_inch_say_nothing(tmp_path: Path) -> None:
    tags = {270: "ImageJ=1.53\nunit=um\n", 282: 4.0, 283: 2.0}
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", tiffinfo=tags)
    assert read_picture(tmp_path / "a.tif").spacing == pytest.approx((0.5e-3, 0.25e-3))
    Image.fromarray(COLOURS).save(tmp_path / "b.tif", dpi=(72, 72))
    assert read_picture(tmp_path / "b.tif").spacing is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "empty"),
        ("text", "expected PNG as its name says, got something that is no picture"),
        ("cut", "incomplete or damaged"),
        ("cmyk", "CMYK"),
        ("animated", "3 frames"),
        ("pages", "2 pages"),
        ("png in disguise", "expected JPEG as its name says, got PNG"),
        ("gigapixel", "million pixels"),
        ("large", "million pixels"),
        ("float", "floating point"),
        ("one value", "same value"),
    ],
)
def test_a_bad_picture_is_refused_in_one_line(tmp_path: Path, kind: str, words: str) -> None:
    path = bad_picture(kind, tmp_path)
    with pytest.raises(InputRefused) as refusal:
        read_picture(path)
    text = str(refusal.value)
    assert words in text
    assert text.startswith(path.name)
    assert "\n" not in text


def test_memory_is_judged_by_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(header_of(5000, 5000))
    with pytest.raises(InputRefused, match="memory limit"):
        read_picture(tmp_path / "a.png", memory_limit=1 << 20)


def test_a_missing_file_is_the_requests_fault(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_picture(tmp_path / "nowhere.png")


def test_masks_of_any_scale_and_indexed_labels_return(tmp_path: Path) -> None:
    mask = COLOURS[..., 0] > 128
    for top in (1, 255):
        Image.fromarray((mask * top).astype(np.uint8)).save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), mask)
    Image.fromarray((mask * 255).astype(np.uint8)).save(tmp_path / "m.gif")  # as DRIVE has them
    np.testing.assert_array_equal(read_mask(tmp_path / "m.gif"), mask)
    write_indexed(mask.astype(np.uint8), tmp_path / "labels.png", [(0, 0, 0), (255, 64, 64)])
    np.testing.assert_array_equal(read_indexed(tmp_path / "labels.png"), mask)


def test_dicom_photographs_are_pictures_and_slices_are_not(tmp_path: Path) -> None:
    import pydicom
    from pydicom.data import get_testdata_file

    colour, slice_ = (Path(str(get_testdata_file(name))) for name in ("examples_rgb_color.dcm", "CT_small.dcm"))
    if not (colour.is_file() and slice_.is_file()):
        pytest.skip("pydicom came without its test files")
    assert is_picture(colour)
    np.testing.assert_array_equal(read_picture(colour).pixels, pydicom.dcmread(colour).pixel_array)
    assert not is_picture(slice_)
    asked = read_picture(slice_)  # a model of pictures may still be named for it
    assert asked.channels == 1
    assert asked.spacing == pytest.approx((0.661468, 0.661468))


def test_a_picture_checks_what_it_is_given() -> None:
    with pytest.raises(ValueError, match="pixels must be"):
        Picture(np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="spacing"):
        Picture(np.zeros((3, 4, 1), np.uint8), spacing=(0.0, 1.0))
