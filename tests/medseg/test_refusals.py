"""Damaged and unusual files: refused with one clear line and exit code 3, or opened with a note."""

import gzip
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - the name that its own documentation uses

from medseg.errors import InputRefused, UsageError
from medseg.io import from_nibabel, inspect, read

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
Change = Callable[[nib.Nifti1Header], None]


def values(shape: tuple[int, ...] = (6, 7, 8)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)


def nifti(change: Change | None = None, voxels: np.ndarray | None = None) -> bytes:
    """A single-file NIfTI with a changed header."""
    voxels = values() if voxels is None else voxels
    fields = nib.Nifti1Header()
    fields.set_data_dtype(voxels.dtype)
    fields.set_data_shape(voxels.shape)
    fields.set_qform(AFFINE, 1)
    fields.set_sform(AFFINE, 1)
    fields.set_xyzt_units("mm")
    fields["vox_offset"] = 352
    if change:
        change(fields)
    return fields.binaryblock + bytes(4) + voxels.tobytes(order="F")


def setting(name: str, *entries: float) -> Change:
    def change(fields: nib.Nifti1Header) -> None:
        fields[name] = entries if len(entries) > 1 else entries[0]

    return change


def no_spacing(fields: nib.Nifti1Header) -> None:
    fields["srow_x"] = 0, 0, 0, 5
    fields["pixdim"][1] = 0


def only_qform_with_zero(fields: nib.Nifti1Header) -> None:
    fields["sform_code"] = 0
    fields["pixdim"][2] = 0


def flat(fields: nib.Nifti1Header) -> None:
    fields["srow_x"] = fields["srow_y"] = 1, 1, 0, 0


def negative_axis(fields: nib.Nifti1Header) -> None:
    fields["dim"][2] = -7


RGB = np.zeros((4, 4, 4), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
REFUSED = {
    "nan affine": ("a.nii", nifti(setting("srow_x", np.nan, 0, 0, 0)), "finite"),
    "infinite affine": ("a.nii", nifti(setting("srow_z", 0, 0, 3, np.inf)), "finite"),
    "zero spacing": ("a.nii", nifti(no_spacing), "voxel size must be positive, got 0 x 2 x 3 mm"),
    "zero spacing in the qform": ("a.nii", nifti(only_qform_with_zero), "voxel size must be positive, got 1 x 0 x 3"),
    "singular affine": ("a.nii", nifti(flat), "singular"),
    "sheared": ("a.nii", nifti(setting("srow_x", 1, 0.2, 0, 0)), "sheared"),
    "broken quaternion": (
        "a.nii",
        nifti(lambda f: (setting("sform_code", 0)(f), setting("quatern_b", 9)(f))),
        "finite",
    ),
    "four axes": ("a.nii", nifti(voxels=values((4, 5, 6, 3))), "choose one from 0 to 2"),
    "five axes": ("a.nii", nifti(voxels=values((4, 5, 6, 1, 3))), "scalar volume, got 5 axes"),
    "two axes": ("a.nii", nifti(voxels=values((4, 5))), "three axes, got 2"),
    "colour": ("a.nii", nifti(voxels=RGB), "colour"),
    "complex": ("a.nii", nifti(voxels=values().astype(np.complex64)), "complex64"),
    "constant": ("a.nii", nifti(voxels=np.full((5, 5, 5), 37, np.int16)), "the value 37 in every voxel"),
    "all zero": ("a.nii.gz", gzip.compress(nifti(voxels=np.zeros((5, 5, 5), np.int16))), "the value 0 in every"),
    "only NaN": ("a.nii", nifti(voxels=np.full((5, 5, 5), np.nan, np.float32)), "finite voxels"),
    "empty": ("a.nii.gz", b"", "empty file"),
    "cut": ("a.nii", nifti()[:-100], r"incomplete: 1024 bytes expected, 924 there"),
    "cut in the header": ("a.nii", nifti()[:200], "expected a NIfTI header"),
    "cut gzip": ("a.nii.gz", gzip.compress(nifti())[:-60], "incomplete"),
    "gzip of too little": ("a.nii.gz", gzip.compress(nifti()[:-100]), "incomplete"),
    "gzip with a wrong checksum": (
        "a.nii.gz",
        gzip.compress(nifti())[:-8] + bytes(4) + (1024).to_bytes(4, "little"),
        "damaged",
    ),
    "text": ("a.nii.gz", gzip.compress(b"no volume at all, only words " * 30), "got plain text"),
    "picture": ("a.nii", b"\x89PNG\r\n\x1a\n" + bytes(500), "got a PNG picture"),
    "plain named gzip": ("a.nii.gz", nifti(), "name says gzip, the content is an uncompressed NIfTI"),
    "gzip named plain": ("a.nii", gzip.compress(nifti()), "name says uncompressed, the content is gzip"),
    "damaged magic": ("a.nii", nifti(setting("magic", b"xyz")), "magic"),
    "header of a pair": ("a.nii", nifti(setting("magic", b"ni1")), "pair"),
    "unknown voxel type": ("a.nii", nifti(setting("datatype", 12345)), "code 12345"),
    "negative axis": ("a.nii", nifti(negative_axis), "positive length"),
    "no axes": ("a.nii", nifti(lambda f: f["dim"].__setitem__(0, 0)), "positive length"),
    "offset NaN": ("a.nii", nifti(setting("vox_offset", np.nan)), "offset"),
    "pair without data": ("a.hdr", nifti(setting("magic", b"ni1"))[:348], r"\.img is missing"),
    "NRRD that is text": ("a.nrrd", b"hello", "expected a NRRD header, got plain text"),
    "NRRD named mha": ("a.mha", b"NRRD0004\ntype: short\n\n" + bytes(50), "got an NRRD file"),
    "mgz that is none": ("a.mgz", gzip.compress(bytes(400)), "expected an MGH header"),
    "unknown ending": ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(50), "a name that ends in .nii"),
    "DICOM": ("a.dcm", bytes(128) + b"DICM" + bytes(50), "without pixels"),
    "DICOM named NIfTI": ("a.nii", bytes(128) + b"DICM" + bytes(500), "without pixels"),
    "archive": ("a.zip", b"PK\x03\x04" + bytes(50), "expected a zip archive, got damaged data"),
}
FOUND_IN_VOXELS_ONLY = {"constant", "all zero", "only NaN", "gzip with a wrong checksum"}


def assert_refused(path: Path, match: str, **options: int) -> None:
    with pytest.raises(InputRefused, match=match) as caught:
        read(path, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert message.startswith(f"{path.name}: ")
    assert "\n" not in message
    assert str(path.parent) not in message


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_line(case: str, tmp_path: Path) -> None:
    name, content, match = REFUSED[case]
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(path, match)
    found = inspect(path)
    assert found.readable == (case in FOUND_IN_VOXELS_ONLY)
    assert list(tmp_path.iterdir()) == [path]


def test_a_header_that_promises_too_much_is_judged_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(nifti(setting("dim", 3, 30000, 30000, 30000, 1, 1, 1, 1))))
    assert_refused(path, "incomplete")
    small = tmp_path / "small.nii"
    small.write_bytes(nifti())
    assert_refused(small, r"6 x 7 x 8 voxels need .* GiB, the memory limit is", memory_limit=600)
    assert read(small, memory_limit=672).shape == (6, 7, 8)
    assert not inspect(small, memory_limit=600).readable


def test_scaled_voxels_count_with_the_room_of_both_types(tmp_path: Path) -> None:
    path = tmp_path / "scaled.nii"
    path.write_bytes(nifti(setting("scl_slope", 2.0)))
    assert inspect(path).memory == 6 * 7 * 8 * (2 + 4)


@pytest.mark.parametrize("packed", [False, True])
def test_random_damage_to_the_header_is_read_or_refused_but_never_crashes(packed: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    whole = nifti(setting("scl_slope", 2.0))
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, 352, rng.integers(1, 6)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(gzip.compress(damaged, 1) if packed else damaged)
        with suppress(InputRefused):
            assert np.isfinite(read(path, memory_limit=1 << 20).voxels).all()


def test_missing_file_is_a_fault_of_the_request(tmp_path: Path) -> None:
    for look in (read, inspect):
        with pytest.raises(UsageError, match=r"^a\.nii: no such file") as caught:
            look(tmp_path / "a.nii")
        assert caught.value.exit_code == 2


def test_folder_and_archive_without_dicom(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    assert_refused(tmp_path, "expected DICOM, got plain text")
    (tmp_path / "a.zip").write_bytes(b"PK")
    assert_refused(tmp_path / "a.zip", "damaged")


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_a_slope_without_meaning_leaves_raw_values(slope: float, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(setting("scl_slope", slope)))
    assert np.array_equal(read(path).voxels, values())


@pytest.mark.parametrize(
    ("change", "voxels", "note"),
    [
        (lambda f: (setting("qform_code", 0)(f), setting("sform_code", 0)(f)), None, "states no orientation"),
        (setting("srow_x", -1, 0, 0, 5), None, "sform and qform disagree"),
        (setting("xyzt_units", 1), None, "stored in m and converted"),
        (None, values((5, 6, 1)), "single slice"),
        (setting("srow_z", 0, 0, 9, 0), None, "9.0 times thicker"),
    ],
    ids=["no orientation", "disagreeing forms", "metres", "single slice", "thick slices"],
)
def test_opened_with_a_note(change: Change | None, voxels: np.ndarray | None, note: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(change, voxels))
    assert any(note in text for text in read(path).notes)
    assert any(note in problem.text for problem in inspect(path).problems)


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b"Offset = 0 0 0", b"Offset = nan 0 0", "finite"),
        (b"ElementSpacing = 1 1 1", b"ElementSpacing = 0 1 1", "voxel size must be positive"),
        (b"TransformMatrix = 1 0 0", b"TransformMatrix = 1 0.3 0", "sheared"),
        (b"ElementDataFile = a.raw", b"ElementDataFile = ../a.raw", "another place"),
        (b"ElementDataFile = a.raw", b"ElementDataFile = LIST", "another place"),
        (b"ElementDataFile = a.raw", b"ElementDataFile = b.raw", "file is missing"),
        (b"DimSize = 8 7 6", b"DimSize = 8 7 9", "incomplete"),
        (b"NDims = 3", b"NDims = x", "cannot be decoded"),
    ],
)
def test_damaged_metaimage(old: bytes, new: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(values()), str(path))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    assert_refused(path, match)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_cut_itk_files(ending: str, compressed: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"a{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(values()), str(path), useCompression=compressed)
    path.write_bytes(path.read_bytes()[:-120])
    assert_refused(path, "incomplete")
    assert capfd.readouterr().err == ""


def test_colour_and_vectors_of_itk(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(values((6, 7, 8, 3)), isVector=True), str(path))
    assert_refused(path, "3 values per voxel")


def test_nrrd_whose_voxels_lie_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: ../secret\n\n")
    assert_refused(path, "another place")


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(voxels=(values() + 0.5).astype(np.float32)))
    with pytest.raises(InputRefused, match="whole numbers"):
        read(path, kind="labels")


def test_image_objects_are_checked_like_files() -> None:
    with pytest.raises(InputRefused, match="contrast"):
        from_nibabel(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), AFFINE))
    with pytest.raises(InputRefused, match="complex64"):
        from_nibabel(nib.Nifti1Image(values().astype(np.complex64), AFFINE))


EXPECTED = {
    **dict.fromkeys(("truncated.nii.gz", "truncated.nii"), "incomplete"),
    "nan_affine.nii.gz": "finite",
    "zero_spacing.nii.gz": "voxel size must be positive, got 0",
    "four_d.nii.gz": "choose one from 0 to 2",
    "five_d_vector.nii.gz": "scalar volume",
    "two_d.nii.gz": "three axes",
    **dict.fromkeys(("all_zero.nii.gz", "constant.nii.gz"), "contrast"),
    **dict.fromkeys(("plain_named_gz.nii.gz", "gz_named_plain.nii"), "rename"),
    "empty.nii.gz": "empty",
    "text.nii.gz": "plain text",
    "huge_header.nii": "incomplete",
    "wrong_magic.nii": "magic",
}
OPENED = {
    "sform_qform_disagree.nii.gz": "disagree",
    "no_orientation.nii.gz": "left and right are unknown",
    "single_slice.nii.gz": "single slice",
    "nan_inf_voxels.nii.gz": "voxels replaced",
    "thick_slices.nii.gz": "thicker",
    "microns.nii.gz": "converted to mm",
    **dict.fromkeys(
        ("slope_zero.nii.gz", "slope_nan.nii.gz", "tiny_3x3x3.nii.gz", "int64.nii.gz", "big_endian.nii"), None
    ),
    **dict.fromkeys(("nifti2.nii.gz", "left_handed.nii.gz", "label_float.nii.gz"), None),
    "name with spaces and ümlaut (1).nii.gz": None,
}


def entries(shared_data: Path, folder: str) -> dict[str, dict]:
    files = json.loads((shared_data / "MANIFEST.json").read_text())["files"]
    return {entry["path"].removeprefix(folder): entry for entry in files if entry["path"].startswith(folder)}


def test_every_bad_file_of_the_data_pack(shared_data: Path) -> None:
    for name in entries(shared_data, "bad/"):
        path = shared_data / "bad" / name
        if path.is_dir() or name.endswith((".dcm", ".zip")):
            continue  # DICOM has its own tests
        if name == "bomb_1gib.nii.gz":
            assert_refused(path, "memory limit", memory_limit=2**29)
        elif name in EXPECTED:
            assert_refused(path, EXPECTED[name])
        else:
            note = OPENED[name]
            volume = read(path)
            assert np.isfinite(volume.voxels).all()
            assert volume.spacing == pytest.approx((3, 3, 18 if "thick" in name else 3)), name
            assert (note is None and not volume.notes) or any(note in text for text in volume.notes), name


def test_bad_labels_and_mirrored_images_of_the_data_pack(shared_data: Path) -> None:
    labels = read(shared_data / "bad" / "label_float.nii.gz", kind="labels")
    assert labels.voxels.max() == 3
    mirrored = read(shared_data / "bad" / "left_handed.nii.gz")
    plain = read(shared_data / "bad" / "nifti2.nii.gz")
    assert np.array_equal(mirrored.voxels[::-1], plain.voxels)
    first = mirrored.affine @ (mirrored.shape[0] - 1, 0, 0, 1)
    np.testing.assert_allclose(first, plain.affine[:, 3], atol=1e-4)


def test_every_volume_of_the_data_pack(shared_data: Path) -> None:
    refused = {"rgb24_ct_perfusion.nii.gz": "colour", "complex64.nii.gz": "complex", "asl_4d.nii.gz": "time points"}
    refused["sheared_affine_phantom.nii.gz"] = "sheared"
    for name, entry in entries(shared_data, "volumes/").items():
        path = shared_data / "volumes" / name
        if name in refused:
            assert_refused(path, refused[name])
            continue
        volume = read(path, kind="labels" if entry.get("kind") == "label-map" else "image")
        assert list(volume.shape) == entry["shape"]
        assert volume.spacing == pytest.approx(entry["spacing_mm"], abs=1e-3)
        assert volume.orientation == entry.get("orientation", volume.orientation)
        if "range" in entry:
            assert [volume.voxels.min(), volume.voxels.max()] == pytest.approx(entry["range"], rel=1e-6)
    assert read(shared_data / "volumes" / "asl_4d.nii.gz", time_point=9).shape == (52, 68, 20)
