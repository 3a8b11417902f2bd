"""What an upload holds, as one path that the readers take; archives are looked into, never unpacked as a whole."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import InputRefused
from medseg.io.dicom.files import File, find_files, looks_like_dicom

_VOLUMES = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".mha")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_CHUNK = 1 << 20


def image_in(upload: Path, scratch: Path) -> Path:
    """The one image of an upload: a file, a folder of DICOM, or an archive of DICOM.

    Args:
        upload: The folder of the upload.
        scratch: Where the one volume file of an archive may be put.

    Raises:
        InputRefused: There is nothing in it, or what is in it is not one image.
    """
    files = sorted(path for path in upload.iterdir() if not path.name.startswith("."))
    if not files:
        raise InputRefused("upload must hold a file, it is empty; drop one again")
    if len(files) == 1:
        return _from_archive(files[0], scratch) if files[0].suffix == ".zip" else files[0]
    strange = [path.suffix for path in files if path.suffix != ".dcm"]
    if strange:
        raise InputRefused(
            f"several files must all be DICOM of one study, one of them ends in {strange[0]}; drop other files singly"
        )
    return upload


def _from_archive(archive: Path, scratch: Path) -> Path:
    """The archive itself where it holds DICOM, else the one image file in it under a name of ours."""
    files = find_files(archive)[0]
    images = [file for file in files if (file.member or "").lower().endswith((*_VOLUMES, *_PICTURES))]
    if not images or any(_is_dicom(file) for file in files if file not in images):
        return archive
    if len(images) > 1:
        raise InputRefused(f"archive must hold DICOM or one image, got {len(images)} images; send them one by one")
    name = (images[0].member or "").lower()
    ending = next(end for end in (*_VOLUMES, *_PICTURES) if name.endswith(end))
    target = scratch / f"image{ending}"
    with images[0].open() as source, target.open("wb") as copy:
        while piece := source.read(_CHUNK):
            copy.write(piece)
    return target


def _is_dicom(file: File) -> bool:
    with file.open() as stream:
        return looks_like_dicom(stream)
