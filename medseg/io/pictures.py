"""Pictures in files: PNG, JPEG, TIFF, BMP, PPM and GIF by Pillow, single-frame DICOM by pydicom; masks as indexed PNG.

A name must agree with the content, and the header is judged before a pixel is decoded. Print resolution (dots per inch)
says nothing of the thing that is shown, so only DICOM and ImageJ's TIFF give a spacing.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from medseg.errors import InputRefused, UsageError
from medseg.io.checks import default_memory_limit
from medseg.io.series import is_series
from medseg.picture import Picture, PictureSource

ENDINGS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".gif": "GIF",
}
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"P5": "PPM",
    b"P6": "PPM",
    b"GIF8": "GIF",
}
_OTHERS = {b"%PDF": "PDF", b"PK\x03\x04": "a zip archive", b"RIFF": "WebP or another RIFF file", b"\x1f\x8b": "gzip"}
_GREY, _COLOUR = ("1", "L", "LA", "La"), ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr")
_DEEP_GREY = ("I;16", "I;16L", "I;16B")
_MOST_OF_16_BIT = 65_535
_MOST_PIXELS = 150_000_000  # below the size from which Pillow itself refuses
_BYTES_PER_PIXEL = 40  # of a picture while it is read and prepared: the file's, the turned and the scaled values
_ORIENTATION, _DESCRIPTION, _WIDTH_RESOLUTION, _HEIGHT_RESOLUTION = 274, 270, 282, 283
_IMAGEJ_MM = {"mm": 1.0, "millimeter": 1.0, "um": 1e-3, "µm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3, "cm": 10.0}
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, MemoryError, struct.error)


def is_picture(path: Path) -> bool:
    """Whether a file would be read as a picture: by its ending, or a DICOM file with colours or from a camera.

    Raises:
        UsageError: There is no such file.
    """
    if path.suffix.lower() in ENDINGS and not path.is_dir():
        require_file(path)
        return True
    if not path.is_file() or not is_series(path) or path.suffix.lower() == ".zip" or path.name.upper() == "DICOMDIR":
        return False
    from medseg.io import pictures_dicom  # pydicom takes longer to load than most pictures to read

    return pictures_dicom.shows_picture(path)


def read_picture(path: Path, *, memory_limit: int | None = None) -> Picture:
    """The picture in a file, turned as the file says.

    Args:
        path: `.png`, `.jpg`, `.tif`, `.bmp`, `.ppm`, `.gif`, or one DICOM file.
        memory_limit: Bytes that reading may take; by default half of the machine's memory.

    Raises:
        InputRefused: The file is empty, damaged, not what its name says, too large, has several frames or colours other
            than grey and RGB, or shows one value everywhere.
        UsageError: There is no such file.
    """
    path = Path(path)
    picture = _read(path, memory_limit)
    if picture.pixels.min() == picture.pixels.max():
        raise InputRefused(f"{path.name}: every pixel has the same value, expected a picture; export the file again")
    return picture


def read_mask(path: Path, *, memory_limit: int | None = None) -> NDArray[np.bool_]:
    """(H, W): where the brightest channel reaches half of the brightest value in the file.

    Raises:
        InputRefused: As for `read_picture`, but for one value everywhere.
        UsageError: There is no such file.
    """
    pixels = _read(Path(path), memory_limit).pixels.max(axis=2)
    return pixels >= max(1, (int(pixels.max()) + 1) // 2)


def write_indexed(mask: NDArray[np.uint8], path: Path, colors: Sequence[tuple[int, int, int]]) -> None:
    """Label ids as an indexed PNG; see `indexed`."""
    indexed(mask, colors).save(path, format="PNG", optimize=True)


def indexed(mask: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Label ids as a picture with a palette.

    Args:
        mask: (H, W), ids below the number of colours.
        colors: sRGB of id 0, 1, ...; 256 at most.
    """
    image = Image.fromarray(mask).copy()
    image.putpalette([value for color in colors for value in color])
    return image


def read_indexed(path: Path) -> NDArray[np.uint8]:
    """The ids of an indexed or grey PNG, (H, W).

    Raises:
        InputRefused: The file is something else.
        UsageError: There is no such file.
    """
    with opened(path) as image:
        if image.mode not in ("P", "L"):
            raise InputRefused(f"{path.name}: expected label ids (an indexed or 8 bit grey PNG), got {image.mode}")
        return np.array(image, np.uint8)


def write_ids(ids: NDArray[np.integer], path: Path) -> None:
    """Numbers of labels or things as a grey picture; see `numbers_as_image`.

    Args:
        ids: (H, W), 0 to 65535 for `.png`.
        path: Ends in `.png` or `.tif`; see `name_for_ids`.
    """
    numbers_as_image(ids).save(path, **({"compression": "tiff_deflate"} if path.suffix == ".tif" else {}))


def numbers_as_image(ids: NDArray[np.integer]) -> Image.Image:
    """Numbers (H, W) as a grey picture of 16 bit, or of 32 bit where one is larger."""
    return Image.fromarray(ids.astype(np.uint16 if ids.max(initial=0) <= _MOST_OF_16_BIT else np.int32))


def write_pixels(pixels: NDArray[np.integer], path: Path) -> None:
    """A picture as it is.

    Args:
        pixels: (H, W, C), C 1 or 3, 8 bit, or 16 bit of one channel.
        path: Ends in `.png`.
    """
    pixels_as_image(pixels).save(path)


def pixels_as_image(pixels: NDArray[np.integer]) -> Image.Image:
    """Pixels (H, W, C) of a `Picture`, colours of 8 bit, as Pillow holds them."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def name_for_ids(stem: str, count: int) -> str:
    """The name of a file for numbers up to a count: 16 bit PNG, or TIFF where there are too many."""
    return f"{stem}.png" if count <= _MOST_OF_16_BIT else f"{stem}.tif"


def read_ids(path: Path, *, memory_limit: int | None = None) -> NDArray[np.int32]:
    """Numbers of labels or things, (H, W), of a grey picture of 8 to 32 bit, an indexed PNG, or a colour per thing.

    Raises:
        InputRefused: As for `read_picture`, but for one value everywhere.
        UsageError: There is no such file.
    """
    path = Path(path)
    require_file(path)
    if path.suffix.lower() not in ENDINGS:
        raise InputRefused(f"{path.name}: expected a picture with numbers, a name that ends in {', '.join(ENDINGS)}")
    with opened(path) as image:
        refuse_large(path.name, image.width, image.height, _limit(memory_limit))
        _require_one_frame(path.name, image)
        if image.mode in ("1", "L", "P", "I", *_DEEP_GREY):
            return np.array(image).astype(np.int32)
    pixels = _read(path, memory_limit).pixels.astype(np.int64)
    colours = pixels @ np.array([1, 1 << 16, 1 << 32])[: pixels.shape[2]]
    return np.unique(colours, return_inverse=True)[1].reshape(colours.shape).astype(np.int32)


def _read(path: Path, memory_limit: int | None) -> Picture:
    require_file(path)
    if path.suffix.lower() not in ENDINGS:
        if is_series(path) and not path.is_dir():
            from medseg.io import pictures_dicom

            return pictures_dicom.read(path, _limit(memory_limit))
        raise InputRefused(f"{path.name}: expected a name that ends in {', '.join(ENDINGS)}, or DICOM; convert it")
    with opened(path) as image:
        refuse_large(path.name, image.width, image.height, _limit(memory_limit))
        _require_one_frame(path.name, image)
        return picture_in(path, image)


def _limit(memory_limit: int | None) -> int:
    return default_memory_limit() if memory_limit is None else memory_limit


def refuse_large(name: str, width: int, height: int, limit: int) -> None:
    """Judge the size that a header states before anything is decoded.

    Raises:
        InputRefused: More pixels than are allowed, or than the memory holds.
    """
    if width * height > _MOST_PIXELS:
        raise InputRefused(
            f"{name}: {width} x {height} is {width * height / 1e6:.0f} million pixels, "
            f"{_MOST_PIXELS / 1e6:.0f} million are read; crop or reduce it"
        )
    needed = width * height * _BYTES_PER_PIXEL
    if needed > limit:
        raise InputRefused(
            f"{name}: {width} x {height} pixels need {needed / 2**30:.3g} GiB, "
            f"the memory limit is {limit / 2**30:.3g} GiB; reduce the picture or raise the limit"
        )


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header was read and whose format is that of its name; what Pillow raises becomes a refusal."""
    found = _format_of(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes and tags, which are judged here
            with Image.open(path, formats=["JPEG", "MPO"] if found == "JPEG" else [found]) as image:
                yield image
    except UnidentifiedImageError:
        raise InputRefused(f"{path.name}: expected a {found} header, got one that cannot be decoded") from None
    except Image.DecompressionBombError:
        raise InputRefused(
            f"{path.name}: the picture has more than {_MOST_PIXELS / 1e6:.0f} million pixels; crop or reduce it"
        ) from None
    except _BROKEN:
        raise InputRefused(f"{path.name}: the file is incomplete or damaged; export it again") from None


def _format_of(path: Path) -> str:
    """The format that both name and content tell."""
    with path.open("rb") as file:
        head = file.read(132)
    if not head:
        raise InputRefused(f"{path.name}: the file is empty, expected a picture; export or copy it again")
    named = ENDINGS[path.suffix.lower()]
    found = next((format_ for sign, format_ in _SIGNATURES.items() if head.startswith(sign)), None)
    if found == named:
        return named
    other = found or next((what for sign, what in _OTHERS.items() if head.startswith(sign)), None)
    other = "DICOM" if head[128:] == b"DICM" else other
    text = f"{path.name}: expected {named} as its name says, got {other or 'something that is no picture'}"
    raise InputRefused(f"{text}; {'rename' if found else 'export'} the file")


def require_file(path: Path) -> None:
    """Refuse what is no file.

    Raises:
        InputRefused: It is a folder.
        UsageError: It is not there.
    """
    if not path.exists():
        raise UsageError(f"{path.name}: no such file; check the path")
    if path.is_dir():
        raise InputRefused(f"{path.name}: expected one picture, got a folder; name the file")


def frame_count(image: Image.Image) -> int:
    """Frames of an opened file; a camera's MPO has one, and previews of it."""
    return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _require_one_frame(name: str, image: Image.Image) -> None:
    frames = frame_count(image)
    if frames > 1:
        kind = "pages" if image.format == "TIFF" else "frames"
        raise InputRefused(
            f"{name}: expected one picture, got {frames} {kind}; choose with `medseg infer --frames` or export one"
        )


def picture_in(path: Path, image: Image.Image, *, single: bool = True) -> Picture:
    """The frame that an opened file stands at.

    Args:
        path: Of the file.
        image: From `opened`.
        single: Whether it is the only one.

    Raises:
        InputRefused: Its colours are not grey or RGB, or have 16 bit where it is not the only one.
    """
    mode, notes = image.mode, []
    if mode not in (*_GREY, *_COLOUR, *_DEEP_GREY):
        known = {"CMYK": "CMYK (inks)", "I": "32 bit integers", "F": "floating point", "LAB": "CIELAB"}
        raise InputRefused(f"{path.name}: expected grey or RGB of 8 or 16 bit, got {known.get(mode, mode)}; convert it")
    deep = mode in _DEEP_GREY or (mode == "RGB" and _sixteen_bit(image))
    if deep and mode == "RGB" and not single:
        raise InputRefused(f"{path.name}: frames in colours of 16 bit are not read; save them with 8 bit")
    if deep and mode == "RGB":
        pixels = _deep_colour(path)
    elif mode in _DEEP_GREY:
        pixels = np.asarray(image).astype(np.uint16)
    else:
        pixels = np.asarray(image.convert("L" if mode in _GREY else "RGB"))
    if image.info.get("transparency") is not None or mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        notes.append("transparency was dropped")
    turn = int(image.getexif().get(_ORIENTATION, 1) or 1)
    pixels = _turned(pixels if pixels.ndim == 3 else pixels[..., None], turn)
    spacing = _imagej_spacing(image)
    if spacing and turn in (5, 6, 7, 8):
        spacing = (spacing[1], spacing[0])
    told = f"{'grey' if pixels.shape[2] == 1 else 'RGB'}, {16 if deep else 8} bit"
    source = PictureSource(format=ENDINGS[path.suffix.lower()], mode=told, turned=turn != 1)
    return Picture(np.ascontiguousarray(pixels), spacing, source, tuple(notes))


def _sixteen_bit(image: Any) -> bool:
    """Whether the file stores 16 bit colours, which Pillow would cut to 8."""
    return any("16" in str(tile[3]) for tile in image.tile)


def _deep_colour(path: Path) -> NDArray[np.uint16]:
    import SimpleITK as sitk  # noqa: N813 - slow to load, and few pictures need it

    try:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError:
        raise InputRefused(f"{path.name}: the file is incomplete or damaged; export it again") from None
    return pixels.reshape(*pixels.shape[-3:])[..., :3].astype(np.uint16)


def _turned(pixels: NDArray[np.integer], orientation: int) -> NDArray[np.integer]:
    """(H, W, C) as EXIF's orientation 1 to 8 wants it shown."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _imagej_spacing(image: Image.Image) -> tuple[float, float] | None:
    """mm per row and column of a TIFF that ImageJ wrote with a unit of length."""
    tags = getattr(image, "tag_v2", {})
    words = str(tags.get(_DESCRIPTION, ""))
    if not words.startswith("ImageJ="):
        return None
    unit = next((line[5:].strip() for line in words.splitlines() if line.startswith("unit=")), "")
    steps = [float(tags.get(tag, 0) or 0) for tag in (_HEIGHT_RESOLUTION, _WIDTH_RESOLUTION)]
    if unit not in _IMAGEJ_MM or min(steps) <= 0:
        return None
    return _IMAGEJ_MM[unit] / steps[0], _IMAGEJ_MM[unit] / steps[1]
