"""What strangers may bring: every hostile or broken upload gets one sentence, and leaves nothing behind."""

import gzip
import io
import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from dicom_cases import Case, noise
from medseg_app.jobs.worker import answer
from pictures import fundus

MEMORY = 512 << 20


def _nifti(
    shape: tuple[int, ...] = (8, 8, 8), *, affine: np.ndarray | None = None, voxels: bytes | None = None
) -> bytes:
    header = nibabel.nifti1.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((8, 8, 8))
    header.set_sform(np.eye(4) if affine is None else affine, code=1)
    raw = bytearray(header.binaryblock) + b"\0\0\0\0"
    struct.pack_into("<8h", raw, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<f", raw, 108, 352.0)
    return bytes(raw) + (np.arange(512, dtype=np.int16).tobytes() if voxels is None else voxels)


def _zip(*members: tuple[str, bytes], link: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            if link:
                entry.create_system, entry.external_attr = 3, 0o120777 << 16
            archive.writestr(entry, content)
    return stream.getvalue()


def _encrypted() -> bytes:
    content = bytearray(_zip(("a.nii", _nifti())))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


NAN = np.diag([np.nan, 1, 1, 1])
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 64
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": (".nii", lambda: b""),
    "no volume": (".nii.gz", lambda: b"<script>alert(1)</script>"),
    "cut off": (".nii", lambda: _nifti()[:600]),
    "more voxels than any disk": (".nii", lambda: _nifti((32000, 32000, 30000))),
    "50,000 slices of nothing": (".mha", lambda: b"ObjectType = Image\nNDims = 3\nDimSize = 512 512 50000\n"
                                 b"ElementType = MET_SHORT\nElementSpacing = 1 1 1\nElementDataFile = LOCAL\n\0\0"),
    "negative size": (".nii", lambda: _nifti((-8, 8, 8))),
    "NaN geometry": (".nii", lambda: _nifti(affine=NAN)),
    "flat geometry": (".nii", lambda: _nifti(affine=np.diag([1.0, 1, 0, 1]))),
    "gzip bomb": (".nii.gz", lambda: gzip.compress(_nifti((2048, 2048, 1000), voxels=bytes(32 << 20)))),
    "zip bomb": (".zip", lambda: _zip(("a.dcm", bytes(64 << 20)))),
    "zip that leads out": (".zip", lambda: _zip(("../../../tmp/out.nii", _nifti()), ("/etc/out.nii", _nifti()))),
    "zip of links": (".zip", lambda: _zip(("a.nii", b"/etc/passwd"), link=True)),
    "zip of zips": (".zip", lambda: _zip(("a.zip", _zip(("a.nii", _nifti()))))),
    "zip of several images": (".zip", lambda: _zip(("a.nii", _nifti()), ("b.nii", _nifti()))),
    "encrypted zip": (".zip", _encrypted),
    "broken zip": (".zip", lambda: b"PK\x03\x04" + b"\0" * 100),
    "empty zip": (".zip", lambda: _zip()),
    "program as a picture": (".png", lambda: b"\x7fELF" + b"\0" * 100),
    "zip behind a picture": (".nii.gz", lambda: PNG + _zip(("a.nii", _nifti()))),
    "picture as DICOM": (".dcm", lambda: PNG),
    "picture bomb": (".png", lambda: _png(60_000)),
    "header that names a file": (".mha", lambda: b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = "
                                 b"MET_UCHAR\nElementSpacing = 1 1 1\nElementDataFile = /etc/passwd\n"),
    "header that names another": (".nrrd", lambda: b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
                                  b"data file: ../../../../etc/passwd\n\n"),
}  # fmt: skip


def _png(side: int) -> bytes:
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    start = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def _check(folder: Path, name: str, content: bytes) -> tuple[str, str]:
    (folder / "upload").mkdir(parents=True)
    (folder / "upload" / name).write_bytes(content)
    return _look(folder)


def _look(folder: Path, **request: object) -> tuple[str, str]:
    (folder / "job").mkdir()
    task = {"kind": "check", "folder": str(folder / "job"), "upload": str(folder / "upload"), "request": request}
    return answer(task | {"memory_limit": MEMORY}, lambda event: None)


def _found(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "job" / "result" / "manifest.json").read_text())
    shutil.rmtree(folder / "job")
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_gets_a_sentence(tmp_path: Path, name: str) -> None:
    ending, content = HOSTILE[name]
    state, reason = _check(tmp_path, f"image000000{ending}", content())
    assert state == "refused", reason
    assert reason
    assert "\n" not in reason
    assert len(reason) < 400
    assert str(tmp_path) not in reason
    assert not reason.startswith("image0"), "the name of our copy means nothing to the user"
    assert "root:" not in reason
    assert not (tmp_path / "job" / "result").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"upload", "job"}


def test_a_zipped_volume_is_opened(tmp_path: Path) -> None:
    state, reason = _check(tmp_path, "image000000.zip", _zip(("Doe^Jane/scan.nii.gz", gzip.compress(_nifti()))))
    assert (state, reason) == ("done", "")
    found = json.loads((tmp_path / "job" / "result" / "manifest.json").read_text())
    assert found["facts"]["shape"] == [8, 8, 8]
    assert (tmp_path / "job" / "image.nii.gz").is_file()
    assert "Doe" not in json.dumps(found)


def test_of_several_series_one_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "upload").mkdir()
    for case, number in ((Case(), 0), (Case(pixels=noise((4, 7, 6))), 100)):
        case.write(tmp_path / f"series{number}")
        for index, path in enumerate(sorted((tmp_path / f"series{number}").iterdir())):
            path.rename(tmp_path / "upload" / f"image{number + index:06d}.dcm")
    assert _look(tmp_path) == ("done", "")
    found = _found(tmp_path)
    assert found["kind"] == "series"
    assert sorted(series["images"] for series in found["series"]) == [4, 5]
    chosen = next(series for series in found["series"] if series["images"] == 4)
    assert _look(tmp_path, series=str(chosen["number"])) == ("done", "")
    found = _found(tmp_path)
    assert found["dicom"]
    assert found["facts"]["shape"][2] == 4


def test_a_picture_is_for_models_of_pictures(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(fundus()[0]).save(stream, "PNG")
    assert _check(tmp_path, "image000000.png", stream.getvalue()) == ("done", "")
    assert (tmp_path / "job" / "result" / "view.png").is_file()
    found = _found(tmp_path)
    assert (found["kind"], found["facts"]["shape"]) == ("picture", [300, 240])
    fits = {model["name"]: model["fits"] for model in found["models"]}
    assert fits["brain-structures"] == "no"


def test_archives_of_the_data_pack(shared_data: Path, tmp_path: Path) -> None:
    for path in (shared_data / "bad").glob("upload_*.zip"):
        state, reason = _check(tmp_path / path.stem, "image000000.zip", path.read_bytes())
        assert state in ("done", "refused"), f"{path.name}: {reason}"
        assert (tmp_path / path.stem / "job" / "result").exists() == (state == "done")
