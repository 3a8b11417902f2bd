"""What strangers may bring: every hostile or broken upload gets one sentence, and leaves nothing behind."""

import gzip
import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset

from dicom_cases import Case, noise
from hostile import HOSTILE, nifti_bytes, zip_bytes
from medseg import io
from medseg.io.dicom import opening
from medseg_app.jobs.thumbnails import of_series, of_volume
from medseg_app.jobs.worker import answer
from pictures import fundus

MEMORY = 512 << 20


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
    pictured = [one["thumbnail"] for one in (found, *found["series"]) if "thumbnail" in one]
    assert pictured
    for name in pictured:
        with Image.open(folder / "job" / "result" / name) as picture:
            assert (picture.format, max(picture.size), picture.info) == ("PNG", 96, {})
            assert np.ptp(np.asarray(picture)) > 100, "it shows something"
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
    state, reason = _check(
        tmp_path, "image000000.zip", zip_bytes(("Doe^Jane/scan.nii.gz", gzip.compress(nifti_bytes())))
    )
    assert (state, reason) == ("done", "")
    found = json.loads((tmp_path / "job" / "result" / "manifest.json").read_text())
    assert found["facts"]["shape"] == [8, 8, 8]
    assert (tmp_path / "job" / "image.nii.gz").is_file()
    assert "Doe" not in json.dumps(found)


def test_of_several_series_one_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "upload").mkdir()
    for case, number in ((Case(), 0), (Case(pixels=noise((4, 14, 6))), 100)):
        case.write(tmp_path / f"series{number}")
        for index, path in enumerate(sorted((tmp_path / f"series{number}").iterdir())):
            path.rename(tmp_path / "upload" / f"image{number + index:06d}.dcm")
    lists = Mock(wraps=opening.list_series)
    monkeypatch.setattr(opening, "list_series", lists)
    assert _look(tmp_path) == ("done", "")
    assert lists.call_count == 1, "every file is opened once for the list and its thumbnails"
    found = _found(tmp_path)
    assert found["kind"] == "series"
    assert sorted(series["images"] for series in found["series"]) == [4, 5]
    assert len({series["thumbnail"] for series in found["series"]}) == 2
    chosen = next(series for series in found["series"] if series["images"] == 4)
    assert _look(tmp_path, series=str(chosen["number"])) == ("done", "")
    found = _found(tmp_path)
    assert found["dicom"]
    assert found["facts"]["shape"][2] == 4


def test_a_thumbnail_is_the_middle_slice_and_may_be_missing(tmp_path: Path) -> None:
    pixels = np.zeros((5, 20, 40), np.int16)
    pixels[2] = 500
    pixels[2, :10] = 1000  # front half of the middle slice, at the top of the picture
    pixels[2, -1, -1] = 0
    case = Case(pixels=pixels, spacing=(1.0, 1.0, 4.0)).write(tmp_path / "one", shuffled=3)
    of_volume(io.read(case), tmp_path / "volume.png")

    def cut(data: Dataset, index: int) -> None:
        data.PixelData = data.PixelData[:-40]

    Case(edit=cut).write(case, start=50)
    names = of_series(io.inspect(case).series, tmp_path)
    assert names in ({1: "series1.png"}, {2: "series2.png"}), "half a slice has no picture"
    for name in ("volume.png", *names.values()):
        shown = np.asarray(Image.open(tmp_path / name))
        assert shown.shape == (48, 96), name
        assert shown[:20].min() > 250 > 5 > shown[28:].max(), name


def test_a_picture_is_for_models_of_pictures(tmp_path: Path) -> None:
    stream = BytesIO()
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
