"""Files and image objects to volumes and back."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that its own documentation uses

import medseg
from medseg.errors import InputRefused, UsageError
from medseg.io import from_nibabel, from_sitk, inspect, read, to_nibabel, to_sitk, write
from medseg.volume import Volume

AFFINE = np.array([[-0.9, 0.0, 0.0, 80.0], [0.0, 1.1, 0.0, -90.5], [0.0, 0.0, 2.5, -30.25], [0.0, 0.0, 0.0, 1.0]])
ENDINGS = [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"]


def values(shape: tuple[int, ...] = (6, 7, 8), dtype: type = np.int16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64], ids=lambda t: t.__name__)
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back(ending: str, dtype: type, tmp_path: Path) -> None:
    path = tmp_path / f"volume{ending}"
    write(Volume(values(dtype=dtype), AFFINE), path)
    again = read(path)
    assert again.voxels.dtype == dtype
    assert np.array_equal(again.voxels, values())
    np.testing.assert_allclose(again.affine, AFFINE, rtol=0, atol=1e-5 if ".nii" in ending else 1e-12)
    assert again.notes == ()


def test_int64_voxels_are_kept(tmp_path: Path) -> None:
    write(Volume(values(dtype=np.int64) + 2**40, AFFINE), tmp_path / "wide.nii")
    assert np.array_equal(read(tmp_path / "wide.nii").voxels, values(dtype=np.int64) + 2**40)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, np.uint8), (-1, 9, np.int16), (0, 12175, np.int16), (0, 40000, np.uint16), (0, 70000, np.int32)],
)
def test_labels_take_the_smallest_type(low: int, high: int, dtype: type, tmp_path: Path) -> None:
    labels = np.full((3, 3, 3), low, np.int64)
    labels[1, 1, 1] = high
    write(Volume(labels, AFFINE, "labels"), tmp_path / "labels.nii.gz")
    stored = nib.load(tmp_path / "labels.nii.gz")
    assert stored.get_data_dtype() == dtype
    assert stored.header.get_intent()[0] == "label"
    assert np.array_equal(read(tmp_path / "labels.nii.gz", kind="labels").voxels, labels)


@pytest.mark.parametrize("ending", [".nii", ".mha"])
def test_masks_and_half_precision_take_a_type_that_formats_have(ending: str, tmp_path: Path) -> None:
    for voxels, dtype in ((values() > 60, np.uint8), (values(dtype=np.float16), np.float32)):
        write(Volume(voxels, AFFINE), tmp_path / f"volume{ending}")
        again = read(tmp_path / f"volume{ending}").voxels
        assert again.dtype == dtype
        assert np.array_equal(again, voxels)


def test_labels_stored_as_float_are_rounded(tmp_path: Path) -> None:
    stored = np.zeros((4, 4, 4), np.float32)
    stored[1], stored[2] = 2.9999998, 1.0000001
    nib.Nifti1Image(stored, AFFINE).to_filename(tmp_path / "labels.nii")
    labels = read(tmp_path / "labels.nii", kind="labels").voxels
    assert labels.dtype == np.uint8
    assert np.array_equal(np.unique(labels), (0, 1, 3))


def test_an_empty_label_map_is_no_error(tmp_path: Path) -> None:
    write(Volume(np.zeros((4, 4, 4), np.uint8), AFFINE, "labels"), tmp_path / "none.nii.gz")
    assert not read(tmp_path / "none.nii.gz", kind="labels").voxels.any()


def test_non_finite_voxels_are_counted_and_replaced(tmp_path: Path) -> None:
    stored = values(dtype=np.float32)
    stored[0, 0, :3], stored[1, 0, 0], stored[1, 1, 0] = np.nan, np.inf, -np.inf
    nib.Nifti1Image(stored, AFFINE).to_filename(tmp_path / "gaps.nii.gz")
    volume = read(tmp_path / "gaps.nii.gz")
    assert np.isfinite(volume.voxels).all()
    assert not volume.voxels[0, 0, :3].any()
    assert volume.notes == ("3 NaN voxels replaced by 0", "2 infinite voxels replaced by 0")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz", ".nrrd"])
def test_one_time_point_of_a_series(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"series{ending}"
    series = values((4, 5, 6, 3))
    if ending == ".nrrd":
        sitk.WriteImage(sitk.GetImageFromArray(series.T, isVector=False), str(path))
    elif ending == ".mgz":
        nib.MGHImage(series, AFFINE).to_filename(path)
    else:
        nib.Nifti1Image(series, AFFINE).to_filename(path)
    for time_point in range(3):
        assert np.array_equal(read(path, time_point=time_point).voxels, series[..., time_point])
    with pytest.raises(UsageError, match=r"from 0 to 2 .* got 3"):
        read(path, time_point=3)


def test_a_single_time_point_needs_no_choice(tmp_path: Path) -> None:
    nib.Nifti1Image(values((4, 5, 6, 1)), AFFINE).to_filename(tmp_path / "one.nii")
    volume = read(tmp_path / "one.nii")
    assert volume.shape == (4, 5, 6)
    assert volume.source is not None
    assert volume.source.shape == (4, 5, 6, 1)


def test_slightly_skewed_axes_are_repaired_and_said_but_written_as_they_were(tmp_path: Path) -> None:
    skewed = AFFINE.copy()
    skewed[0, 1] = 4e-4
    image = nib.Nifti1Image(values(), skewed)
    image.set_sform(skewed, 1)
    image.to_filename(tmp_path / "skewed.nii")
    volume = read(tmp_path / "skewed.nii")
    assert any("made orthonormal" in note for note in volume.notes)
    directions = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)
    middle = (np.array(volume.shape) - 1) / 2
    for matrix in (volume.affine, skewed):
        place = matrix[:3, :3] @ middle + matrix[:3, 3]
        np.testing.assert_allclose(place, AFFINE[:3, :3] @ middle + AFFINE[:3, 3], atol=2e-3)
    write(volume, tmp_path / "result.nii")
    written = nib.load(tmp_path / "result.nii")
    np.testing.assert_allclose(written.affine, skewed, rtol=0, atol=1e-5)


def test_nifti2_stays_nifti2(tmp_path: Path) -> None:
    nib.Nifti2Image(values(), AFFINE).to_filename(tmp_path / "two.nii")
    write(read(tmp_path / "two.nii"), tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert isinstance(written, nib.Nifti2Image)
    assert np.array_equal(written.affine, AFFINE)


def test_another_grid_gets_its_own_forms_with_the_codes_of_like(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.header.set_xyzt_units("micron")
    image.set_qform(image.affine, 0)
    image.set_sform(image.affine, 4)
    like = from_nibabel(image)
    moved = np.array(like.affine)
    moved[:3, 3] += 0.01
    written = to_nibabel(Volume(values(), moved), like=like)
    assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (0, 4)
    np.testing.assert_allclose(written.affine[:3] / 1000, moved[:3], rtol=1e-6)


def test_pairs_are_read_from_either_name(tmp_path: Path) -> None:
    nib.Nifti1Pair(values(), AFFINE).to_filename(tmp_path / "pair.img")
    for ending in (".hdr", ".img"):
        assert np.array_equal(read(tmp_path / f"pair{ending}").voxels, values())


def test_image_objects_are_accepted_and_returned() -> None:
    volume = Volume(values(), AFFINE)
    for there, back in ((to_nibabel, from_nibabel), (to_sitk, from_sitk)):
        again = back(there(volume))
        assert np.array_equal(again.voxels, volume.voxels)
        np.testing.assert_allclose(again.affine, AFFINE, rtol=0, atol=1e-12 if there is to_sitk else 1e-5)
    scaled = nib.Nifti1Image(values(dtype=np.float64) * 0.5, AFFINE)
    assert np.array_equal(from_nibabel(scaled).voxels, values() * 0.5)
    with pytest.raises(InputRefused, match="contrast"):
        from_sitk(sitk.Image(4, 4, 4, sitk.sitkInt16))


def test_an_image_object_gives_the_numbers_of_its_file(tmp_path: Path) -> None:
    image = nib.Nifti1Image(values(), AFFINE)
    image.header.set_slope_inter(0.37, -12.5)
    image.to_filename(tmp_path / "scaled.nii")
    of_file, of_image = read(tmp_path / "scaled.nii"), from_nibabel(nib.load(tmp_path / "scaled.nii"))
    assert of_file.voxels.dtype == of_image.voxels.dtype == np.float32
    assert np.array_equal(of_file.voxels, of_image.voxels)


def test_equal_volumes_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write(Volume(values(), AFFINE), tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_names_may_hold_anything_a_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / "with spaces, ümlaut (1).NII.GZ"
    write(Volume(values(), AFFINE), path)
    assert np.array_equal(read(path).voxels, values())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_write_leaves_nothing_and_spares_the_old_file(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"volume{ending}"
    write(Volume(values(), AFFINE), path)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(_handle: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(Volume(values() + 1, AFFINE), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_a_killed_write_leaves_the_whole_result_or_none(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii.gz"
    program = (
        "import numpy, os, signal, sys, threading, medseg; delay = float(sys.argv[2]);"
        "volume = medseg.Volume(numpy.random.default_rng(0).random((96, 96, 96)), numpy.eye(4));"
        "threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start();"
        "medseg.write(volume, sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
    )
    for delay in (0.05, 0.15, 0.3, 60.0):
        path.unlink(missing_ok=True)
        command = [sys.executable, "-c", program, str(path), str(delay)]
        subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(Path(medseg.__file__).parents[1])})
        if path.exists():
            assert read(path).shape == (96, 96, 96)
    assert path.exists()


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    volume = Volume(values(), AFFINE)
    with pytest.raises(UsageError, match="must end in"):
        write(volume, tmp_path / "volume.png")
    with pytest.raises(UsageError, match="folder") as caught:
        write(volume, tmp_path / "nowhere" / "volume.nii")
    assert str(tmp_path) not in str(caught.value)
    sheared = AFFINE.copy()
    sheared[0, 1] = 0.5
    with pytest.raises(ValueError, match="right angles"):
        write(Volume(values(), sheared), tmp_path / "sheared.nrrd")
    assert list(tmp_path.iterdir()) == []


def test_inspect_tells_the_header(tmp_path: Path) -> None:
    write(Volume(values(), AFFINE), tmp_path / "volume.nii.gz")
    found = inspect(tmp_path / "volume.nii.gz")
    assert found.readable
    assert found.problems == ()
    assert (found.name, found.format, found.shape, found.orientation) == ("volume.nii.gz", "NIfTI-1", (6, 7, 8), "LAS")
    assert found.spacing == pytest.approx((0.9, 1.1, 2.5))
    assert (found.dtype, found.units, found.qform_code, found.sform_code) == ("int16", "mm", 1, 1)
    assert found.memory == 6 * 7 * 8 * 2


def test_joined_gzip_parts_are_one_file(tmp_path: Path) -> None:
    write(Volume(values(), AFFINE), tmp_path / "volume.nii")
    content = (tmp_path / "volume.nii").read_bytes()
    (tmp_path / "parts.nii.gz").write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert inspect(tmp_path / "parts.nii.gz").readable
    assert np.array_equal(read(tmp_path / "parts.nii.gz").voxels, values())


def test_public_names_are_loaded_when_first_used() -> None:
    program = (
        "import sys, medseg; assert not {'nibabel', 'SimpleITK', 'torch', 'numpy'} & sys.modules.keys();"
        "from medseg.io import read; medseg.Volume;"
        "assert not {'nibabel', 'SimpleITK', 'torch', 'monai', 'gradio'} & sys.modules.keys()"
    )
    root = str(Path(medseg.__file__).parents[1])
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": root})
