"""Which files are compared, and what they are taken for."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import InputRefused, UsageError
from medseg.io import write
from medseg.volume import Volume
from medseg_pipelines.evaluation_cases import Pair, case_name, find_pairs, load_pair, looks_like_labels


def _image(dtype: type = np.float32) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(20, 20, 20)), 1.0)
    return ((noise - noise.min()) / np.ptp(noise) * 250).astype(dtype)


def _mask() -> np.ndarray:
    return (_image() > 130).astype(np.uint8)


def _write(path: Path, voxels: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    write(Volume(voxels, np.eye(4), kind="labels" if voxels.dtype == np.uint8 else "image"), path)
    return path


def _result(folder: Path, model: str) -> Path:
    _write(folder / "labels.nii.gz", _mask())
    names = [{"id": 1, "name": "left cortex", "side": "left"}]
    (folder / "labels.json").write_text(json.dumps({"model": model, "file": "labels.nii.gz", "labels": names}))
    return folder


def test_folders_pair_by_case_name(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    _write(ours / "b.nii.gz", _mask())
    _write(ours / "c.nrrd", _mask())
    _result(ours / "a_tiny", "tiny")
    for name in ("a.mha", "b.nii", "d.nii.gz"):
        _write(theirs / name, _mask())
    (theirs / "labels.json").write_text('{"somebody": "else\'s"}')
    found = find_pairs(ours, theirs)
    assert [pair.case for pair in found.pairs] == ["a", "b"]
    assert found.unpaired == ("c (no reference)", "d (no prediction)")
    loaded = load_pair(found.pairs[0])
    assert [(name.id, name.name, name.structure) for name in loaded.names] == [(1, "left cortex", "cortex")]


def test_table(tmp_path: Path) -> None:
    _write(tmp_path / "data" / "p1.nii.gz", _mask())
    _write(tmp_path / "data" / "p2.nii.gz", _mask())
    table = tmp_path / "pairs.csv"
    table.write_text(
        "\ufeffprediction;reference;case\ndata/p1.nii.gz;data/p2.nii.gz;first\ndata/p2.nii.gz;data/p1.nii.gz;\n"
    )
    assert [pair.case for pair in find_pairs(table, None).pairs] == ["first", "p2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "columns prediction and reference"),
        ("image,reference\na,b\n", "columns prediction and reference"),
        ("prediction,reference\nmask.nii.gz,none.nii.gz\n", "row 1: 'none.nii.gz' must be a file"),
        ("prediction,reference\nmask.nii.gz,\n", "row 1"),
        ("prediction,reference\nmask.nii.gz,mask.nii.gz\nmask.nii.gz,mask.nii.gz\n", "stands there twice"),
    ],
    ids=["empty", "columns", "missing", "blank", "twice"],
)
def test_wrong_tables(text: str, words: str, tmp_path: Path) -> None:
    _write(tmp_path / "mask.nii.gz", _mask())
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(UsageError, match=words):
        find_pairs(tmp_path / "pairs.csv", None)


def test_wrong_pairs(tmp_path: Path) -> None:
    mask = _write(tmp_path / "in" / "mask.nii.gz", _mask())
    (tmp_path / "none").mkdir()
    for arguments, words in (
        ((mask, None), "needs a reference"),
        ((mask, tmp_path / "in"), "two files or two folders"),
        ((mask, tmp_path / "gone"), "is not there"),
        ((tmp_path / "none", tmp_path / "in"), "must hold cases, found none"),
    ):
        with pytest.raises(UsageError, match=words):
            find_pairs(*arguments)
    _write(tmp_path / "in" / "mask.nrrd", _mask())
    with pytest.raises(UsageError, match="'mask' stands there twice"):
        find_pairs(tmp_path / "in", tmp_path / "in")


def test_case_names(tmp_path: Path) -> None:
    assert case_name(Path("x.y.NII.GZ")) == "x.y"
    assert case_name(_result(tmp_path / "scan_1_tiny", "tiny")) == "scan_1"


@pytest.mark.parametrize(
    ("voxels", "labels"),
    [
        (_mask(), True),
        (_mask() * 255.0, True),
        (np.zeros((4, 4, 4), np.uint8), True),
        (ndimage.label(_mask())[0], True),
        (_image(), False),
        (_image(np.uint8), False),
        (_image(np.int16) - 100, False),
        (_mask() * 0.5, False),
    ],
    ids=["mask", "255", "empty", "many", "float", "eight bits", "negative", "fractions"],
)
def test_what_looks_like_labels(voxels: np.ndarray, labels: bool) -> None:
    assert looks_like_labels(voxels) == labels


def test_kind_is_found_or_given(tmp_path: Path) -> None:
    mask, image = _write(tmp_path / "m.nii.gz", _mask()), _write(tmp_path / "i.nii.gz", _image())
    empty = _write(tmp_path / "e.nii.gz", np.zeros((20, 20, 20), np.uint8))
    assert load_pair(Pair(case="", prediction=empty, reference=mask)).reference.kind == "labels"
    assert load_pair(Pair(case="", prediction=image, reference=image)).prediction.kind == "image"
    both = Pair(case="", prediction=image, reference=mask)
    with pytest.raises(InputRefused, match="got an image and labels"):
        load_pair(both)
    assert load_pair(both, kind="image").reference.kind == "image"
    with pytest.raises(InputRefused, match="expected whole numbers"):
        load_pair(both, kind="labels")
