"""Every orientation, oblique or not, in every way to store voxels: what is written lies where the input lay."""

import os
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.geometry import Chain, Reorient, Resample
from medseg.io import read, write
from medseg.volume import Volume

SHAPE = (5, 6, 7)
SPACING = (0.7, 1.3, 3.1)
FORM_FIELDS = (
    *("dim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
STORED = {
    "uint8": (np.uint8, "<", None),
    "int8": (np.int8, "<", None),
    "int16": (np.int16, "<", None),
    "big-endian int16": (np.int16, ">", None),
    "uint16": (np.uint16, "<", None),
    "float32": (np.float32, "<", None),
    "scaled int16": (np.int16, "<", (0.37, -12.5)),
    "big-endian scaled uint16": (np.uint16, ">", (2.0, -1024.0)),
}
CODES_AND_UNITS = [(1, 1, "mm"), (0, 2, "mm"), (3, 0, "unknown"), (1, 4, "mm"), (2, 2, "micron"), (1, 1, "meter")]
SCALES = {"mm": 1.0, "unknown": 1.0, "micron": 1e3, "meter": 1e-3}  # the file's numbers for one millimetre


def oblique_rotation() -> np.ndarray:
    a, b, c = np.radians((11.0, -17.0, 8.0))
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def affine_for(axes: tuple[int, ...], signs: tuple[int, ...], *, oblique: bool) -> np.ndarray:
    directions = np.zeros((3, 3))
    directions[list(axes), range(3)] = signs
    affine = np.eye(4)
    affine[:3, :3] = (oblique_rotation() if oblique else np.eye(3)) @ directions * SPACING
    affine[:3, 3] = (-91.25, 126.5, -72.125)
    return affine


def store(path: Path, affine: np.ndarray, stored: str, codes_and_units: tuple[int, int, str]) -> None:
    """Write a file without the code under test."""
    dtype, order, scaling = STORED[stored]
    qcode, scode, unit = codes_and_units
    raw = np.random.default_rng(3).integers(0, 100, SHAPE).astype(dtype)
    fields = nib.Nifti1Header(endianness=order)
    fields.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    fields.set_data_shape(SHAPE)
    in_units = np.diag([SCALES[unit]] * 3 + [1.0]) @ affine
    fields.set_qform(in_units, qcode)
    fields.set_sform(in_units, scode)
    fields.set_xyzt_units(unit, "sec")
    fields["vox_offset"] = 352
    if scaling:
        fields["scl_slope"], fields["scl_inter"] = scaling
    voxels = raw.astype(raw.dtype.newbyteorder(order)).tobytes(order="F")
    path.write_bytes(fields.binaryblock + bytes(4) + voxels)


def assert_same_place(source: Path, result: Path) -> None:
    before, after = nib.load(source), nib.load(result)
    assert after.shape == before.shape
    np.testing.assert_allclose(after.affine, before.affine, rtol=0, atol=1e-6)
    for field in FORM_FIELDS:
        assert np.array_equal(after.header[field], before.header[field]), field
    assert np.array_equal(after.header["pixdim"][:4], before.header["pixdim"][:4])


@pytest.mark.parametrize("signs", list(product((1, -1), repeat=3)), ids=str)
@pytest.mark.parametrize("axes", list(permutations(range(3))), ids=str)
def test_written_labels_lie_on_the_input(
    axes: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _handle: None)  # 1500 waits for the disk are not what is tested
    source, result = tmp_path / "source.nii", tmp_path / "labels.nii.gz"
    for number, (oblique, stored) in enumerate(product((False, True), STORED)):
        affine = affine_for(axes, signs, oblique=oblique)
        store(source, affine, stored, CODES_AND_UNITS[number % len(CODES_AND_UNITS)])
        volume = read(source)
        np.testing.assert_allclose(volume.affine, affine, rtol=0, atol=2e-5)  # the file itself holds float32
        expected = np.asanyarray(nib.load(source).dataobj)
        np.testing.assert_allclose(volume.voxels, expected, rtol=2**-24)

        turn = Chain((Reorient.to_ras(volume.grid),))
        assert turn.apply(volume).orientation == "RAS"
        assert np.array_equal(turn.undo(turn.apply(volume)).voxels, volume.voxels)

        chain = turn.then(Resample.to_spacing(turn.steps[0].after, (1.0, 1.5, 2.0)))
        work = chain.apply(volume)
        labels = work.with_voxels((work.voxels > 50).astype(np.int64), kind="labels")
        write(chain.undo(labels), result)
        assert_same_place(source, result)
        again = read(result, kind="labels")
        assert again.voxels.dtype == np.uint8
        assert again.affine.tobytes() == volume.affine.tobytes()


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("oblique", [False, True])
def test_other_formats_keep_the_place(ending: str, oblique: bool, tmp_path: Path) -> None:
    path = tmp_path / f"volume{ending}"
    for axes, signs in product(permutations(range(3)), ((1, 1, 1), (-1, 1, -1))):
        affine = affine_for(axes, signs, oblique=oblique)
        voxels = np.random.default_rng(4).integers(-50, 50, SHAPE).astype(np.int16)
        write(Volume(voxels, affine), path)
        again = read(path)
        np.testing.assert_allclose(again.affine, affine, rtol=0, atol=1e-6)
        assert np.array_equal(again.voxels, voxels)
