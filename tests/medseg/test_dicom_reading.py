"""DICOM series to grids: equal to what highdicom says to 0.001 mm, or refused with the slice and the millimetres."""

import copy
import re
import zipfile
from contextlib import suppress
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from dicom_cases import PRIVATE, Case, noise, rotation
from medseg.errors import InputRefused, UsageError
from medseg.io import inspect, read
from medseg.volume import Volume

EXACT = 1e-3  # mm


def corners(shape: tuple[int, ...]) -> np.ndarray:
    return np.array([[x, y, z, 1] for x in (0, shape[0] - 1) for y in (0, shape[1] - 1) for z in (0, shape[2] - 1)])


def assert_on_grid(volume: Volume, affine: np.ndarray, pixels: np.ndarray) -> None:
    """Every voxel has the value and the place of the slice, row and column that it came from."""
    to_index = np.linalg.inv(affine) @ volume.affine
    indices = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    found = indices @ to_index[:3, :3].T + to_index[:3, 3]
    x, y, z = np.rint(found).astype(int).T
    away = np.linalg.norm((found - np.rint(found)) @ affine[:3, :3].T, axis=1)
    assert away.max() < EXACT
    np.testing.assert_array_equal(volume.voxels.ravel(), pixels[z, y, x])
    assert volume.voxels.size == pixels.size


def refusal(path: Path, **options: object) -> str:
    """The message, which is one line, holds nothing of the patient, and is what `inspect` says as well."""
    with pytest.raises(InputRefused) as caught:
        read(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert not [word for word in PRIVATE if word in text]
    found = inspect(path, series=options.get("series"))
    if not options.get("correct_geometry") and "cannot be decoded" not in text:
        assert not found.readable
    return text


angles = st.floats(-180, 180)
unit = st.floats(0.1, 1)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axis=st.tuples(unit, unit, unit),
    degrees=st.one_of(angles, st.sampled_from([0.0, 90.0, 180.0])),
    turn=st.permutations(range(3)),
    flips=st.tuples(st.booleans(), st.booleans()),
    spacing=st.tuples(*[st.floats(0.2, 8)] * 3),
    decimals=st.sampled_from([None, None, 6]),
    seed=st.integers(0, 99),
)
def test_every_orientation_lies_where_highdicom_says(
    axis, degrees, turn, flips, spacing, decimals, seed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    axes = rotation(axis, degrees)[:, list(turn)] * [-1 if flip else 1 for flip in (*flips, False)]
    axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
    case = Case(axes=axes, spacing=spacing, decimals=decimals)
    folder = case.write(tmp_path_factory.mktemp("series"), shuffled=seed)
    volume = read(folder)
    assert_on_grid(volume, case.affine(), case.pixels)
    with pydicom.config.disable_value_validation():
        other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in folder.iterdir()])
    in_ras = np.diag([-1, -1, 1, 1]) @ other.affine @ np.eye(4)[[2, 1, 0, 3]]  # its axes are slice, row, column
    assert_on_grid(volume, in_ras, other.array)


@pytest.mark.parametrize(
    "axes", [np.eye(3), rotation((1, 2, 3), 40), np.eye(3)[:, [1, 2, 0]]], ids=["axial", "oblique", "turned"]
)
def test_multiframe_lies_like_its_slices(axes: np.ndarray, tmp_path: Path) -> None:
    case = Case(axes=axes)
    path = case.write_multiframe(tmp_path / "enhanced.dcm")
    assert_on_grid(read(path), case.affine(), case.pixels)


def test_archive_directory_and_folder_are_equal(tmp_path: Path) -> None:
    case = Case(axes=rotation((3, 1, 2), 25))
    folder = case.write(tmp_path / "series", shuffled=1)
    with zipfile.ZipFile(tmp_path / "series.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"study/{path.name}")
        archive.writestr("study/readme.txt", "not an image")
    medium = FileSet()
    for path in folder.iterdir():
        medium.add(path)
    (tmp_path / "medium").mkdir()
    medium.write(tmp_path / "medium")
    volume = read(folder)
    for path in (tmp_path / "series.zip", tmp_path / "medium" / "DICOMDIR", tmp_path / "medium"):
        other = read(path)
        assert np.array_equal(other.voxels, volume.voxels), path.name
        assert other.grid.equals(volume.grid, tolerance=1e-9)
    assert not list(tmp_path.glob("**/readme.txt"))


def test_names_in_archives_and_directories_stay_inside(tmp_path: Path) -> None:
    folder = Case().write(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
        for name in ("../evil.dcm", "/etc/evil.dcm", "C:\\evil.dcm", "a/..\\..\\evil.dcm"):
            archive.writestr(name, b"x" * 200)
    assert any("4 entries whose names lead out" in note for note in read(tmp_path / "a.zip").notes)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(64 << 20))
    assert "not opened" in refusal(tmp_path / "bomb.zip")
    (tmp_path / "cut.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:300])
    assert "damaged" in refusal(tmp_path / "cut.zip")


def test_an_archive_is_listed_once_however_many_files_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing it again for each of them takes hours for an archive of 60 000 empty ones."""
    listed = []

    class Counted(zipfile.ZipFile):
        def _RealGetContents(self) -> None:  # noqa: N802 - zipfile calls it so
            listed.append(self.filename)
            super()._RealGetContents()  # pyright: ignore[reportAttributeAccessIssue] - it is not in the stubs

    folder = Case().write(tmp_path / "series")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    read(tmp_path / "a.zip")
    assert 1 <= len(listed) <= 2, "once to choose the kind of file, once to read"


def test_many_small_files_are_a_bomb_too(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("0.dcm", bytes(16 << 20))
        for number in range(1, 70):  # all of them the same bytes, under names of their own
            again = copy.copy(archive.filelist[0])
            again.filename = f"{number}.dcm"
            archive.filelist.append(again)
    assert "1.1 GiB from" in refusal(tmp_path / "many.zip")


def test_several_series_are_listed_and_chosen_from(tmp_path: Path) -> None:
    first, second = Case(), Case(pixels=noise(seed=1))
    first.write(tmp_path / "all")
    second.write(tmp_path / "all", start=100)
    text = refusal(tmp_path / "all")
    assert "expected one series, got 2 (1: CT, 5 images; 2: CT, 5 images); choose one with --series" in text
    listed = inspect(tmp_path / "all").series
    assert [summary.number for summary in listed] == [1, 2]
    assert {summary.uid for summary in listed} == {first.series, second.series}
    for summary in listed:
        wanted = first if summary.uid == first.series else second
        for name in (str(summary.number), summary.uid):
            assert_on_grid(read(tmp_path / "all", series=name), wanted.affine(), wanted.pixels)
    with pytest.raises(UsageError, match="series must be one of"):
        read(tmp_path / "all", series="3")


def localiser(data: Dataset, index: int) -> None:
    data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def test_localisers_are_left_out(tmp_path: Path) -> None:
    case = Case()
    case.write(tmp_path)
    Case(axes=rotation((1, 0, 0), 90), edit=localiser).write(tmp_path, start=50)
    volume = read(tmp_path)
    assert_on_grid(volume, case.affine(), case.pixels)
    assert any("localiser" in note for note in volume.notes)
    Case(axes=rotation((1, 0, 0), 90), edit=localiser, series=case.series, study=case.study).write(tmp_path, start=80)
    assert any("5 localiser images of the series" in note for note in read(tmp_path, series=case.series).notes)


def test_missing_slices_are_named_and_filled_on_request(tmp_path: Path) -> None:
    ramp = np.arange(8 * 7 * 6, dtype=np.int16).reshape(8, 7, 6)
    case = Case(pixels=ramp, axes=rotation((1, 2, 1), 33))
    folder = case.write(tmp_path / "a")
    for number in (3, 4):
        (folder / f"{number:04d}.dcm").unlink()
    assert "2 slices are missing: 7.500 mm instead of 2.500 mm between instance 3 and instance 6" in refusal(folder)
    volume = read(folder, correct_geometry=True)
    assert_on_grid(volume.with_voxels(np.rint(volume.voxels).astype(np.int16)), case.affine(), ramp)
    assert any("corrected: 2 slices are missing" in note for note in volume.notes)
    series = volume.source.series
    assert np.array_equal(series.to_slices(volume.voxels), ramp[[0, 1, 2, 5, 6, 7]])


@pytest.mark.parametrize("shear", [(0.0, -0.9), (0.35, 0.0), (0.27, 0.64)], ids=str)
def test_tilt_is_measured_and_straightened_on_request(shear: tuple[float, float], tmp_path: Path) -> None:
    """On an image that is a linear function of place, straightening is exact wherever a slice reaches."""
    case = Case(axes=rotation((1, 2, 1), 33), shear=shear, pixels=noise((6, 9, 8)))
    direction = np.array([31.0, -17.0, 12.0])
    for z in range(6):
        x, y = np.meshgrid(np.arange(8) * case.spacing[1], np.arange(9) * case.spacing[0])
        place = case.position(z) + x[..., None] * case.axes[:, 0] + y[..., None] * case.axes[:, 1]
        case.pixels[z] = np.rint(place @ direction)
    folder = case.write(tmp_path / "a")
    degrees = np.degrees(np.arctan(np.hypot(*shear) / 2.5))
    text = refusal(folder)
    assert f"tilt of {degrees:.2f} degrees" in text
    assert f"shifted by {np.hypot(*shear):.3f} mm, instance 6 by {5 * np.hypot(*shear):.3f} mm" in text
    volume = read(folder, correct_geometry=True)
    directions = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    indices = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), axis=-1)
    in_lps = (indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]
    starts = np.array([case.position(z) for z in range(6)])
    pixel = (in_lps - starts) @ case.axes[:, :2] / [case.spacing[1], case.spacing[0]]
    covered = ((pixel > -1e-6) & (pixel < np.array([8, 9]) - 1 + 1e-6)).all(axis=-1)
    assert covered.mean() > 0.3
    assert np.abs(volume.voxels - in_lps @ direction)[covered].max() < 0.51  # pixels are whole numbers
    assert np.unique(volume.voxels[~covered]).size == 1


def test_results_on_a_straightened_grid_go_back_to_the_slices(tmp_path: Path) -> None:
    """Each pixel of a source slice gets the label of the voxel it lies in."""
    case = Case(shear=(0.0, 1.3), heights=[0, 2.5, 5, 6.2, 11, 13.5], pixels=noise((6, 12, 10)))
    volume = read(case.write(tmp_path / "a"), correct_geometry=True)
    labels = np.random.default_rng(0).integers(0, 5, volume.shape)
    slices = volume.source.series.to_slices(labels)
    assert slices.shape == case.pixels.shape
    to_index = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ volume.affine)
    for z, y, x in np.ndindex(*slices.shape):
        place = case.position(z) + case.axes @ [x * case.spacing[1], y * case.spacing[0], 0]
        index = to_index[:3, :3] @ place + to_index[:3, 3]
        nearest = np.clip(np.rint(index), 0, np.array(volume.shape) - 1).astype(int)
        if np.abs(index - np.rint(index)).max() < 0.499:  # at a tie either neighbour is right
            assert slices[z, y, x] == labels[tuple(nearest)]


def test_uneven_slices(tmp_path: Path) -> None:
    folder = Case(heights=[0, 2.5, 5, 6.2, 8.7]).write(tmp_path / "a")
    assert "got 1.200 mm instead of 2.500 mm between instance 3 and instance 4" in refusal(folder)
    wide = Case(heights=[0, 2.5, 5, 7.5, 90]).write(tmp_path / "b")
    assert "too wide to be filled" in refusal(wide, correct_geometry=True)
    sideways = Case(edit=lambda data, index: slide(data, index, 3, 4.0)).write(tmp_path / "c")
    assert "instance 4 shifted sideways by 4.000 mm" in refusal(sideways)


def slide(data: Dataset, index: int, which: int, by: float) -> None:
    if index == which:
        x, y, z = map(float, data.ImagePositionPatient)
        data.ImagePositionPatient = [x + by, y, z]


def change(keyword: str, value: object, which: int = 2):
    def edit(data: Dataset, index: int) -> None:
        if index == which:
            setattr(data, keyword, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (change("PixelSpacing", [0.7, 1.0]), r"one pixel spacing, got 0.7 x 1 mm at instance 3 and 0.7 x 0.9 mm"),
        (change("ImageOrientationPatient", [1, 0, 0, 0, 0, -1]), r"got instance 3 tipped by 90 degrees \(1 of 5"),
        (change("ImageOrientationPatient", [0, 1, 0, -1, 0, 0]), r"got instance 3 turned within its plane"),
        (change("ImagePositionPatient", None), r"one stated position, got none at instance 3"),
        (change("FrameOfReferenceUID", "1.2.3"), r"one frame of reference"),
        (change("SamplesPerPixel", 3), r"instance 3: .*colour"),
        (change("PixelData", b"\0\0" * 5), r"instance 3: .*incomplete: 84 bytes of pixels expected, 10 there"),
        (lambda data, _: setattr(data, "ImageOrientationPatient", [1, 0, 0, 0.5, 1, 0]), r"unit vectors"),
        (lambda data, _: setattr(data, "PixelSpacing", None), r"pixel spacing must be stated"),
        (lambda data, _: setattr(data, "PixelSpacing", [0, 0]), r"pixel spacing must be positive"),
        (lambda data, _: setattr(data, "PhotometricInterpretation", "PALETTE COLOR"), "colour"),
        (lambda data, _: data.pop("PixelData"), "without pixels"),
    ],
)
def test_unusable_slices_are_named(edit, match: str, tmp_path: Path) -> None:
    assert re.search(match, refusal(Case(edit=edit).write(tmp_path / "a")))


def test_copies_are_left_out_and_twins_refused(tmp_path: Path) -> None:
    case = Case()
    folder = case.write(tmp_path / "a")
    (folder / "copy.dcm").write_bytes((folder / "0002.dcm").read_bytes())
    volume = read(folder)
    assert_on_grid(volume, case.affine(), case.pixels)
    assert any("1 copies with equal values at one place were left out (instance 3)" in note for note in volume.notes)
    twin = pydicom.dcmread(folder / "0002.dcm")
    twin.SOPInstanceUID, twin.InstanceNumber = generate_uid(), 40
    twin.PixelData = bytes(reversed(twin.PixelData))
    twin.save_as(folder / "twin.dcm")
    assert "got 2 different ones at the place of instance 3 (instance 40; 1 of 5 places" in refusal(folder)


def test_time_points_are_told_apart(tmp_path: Path) -> None:
    first, second = noise(seed=1), noise(seed=2)
    case = Case(pixels=first, edit=lambda data, _: setattr(data, "AcquisitionTime", "101010"))
    folder = case.write(tmp_path / "a", shuffled=4)
    case.pixels, case.edit = second, lambda data, _: setattr(data, "AcquisitionTime", "091010")
    case.write(folder, shuffled=5, start=10)
    assert "got 2 time points" in refusal(folder)
    assert_on_grid(read(folder, time_point=0), case.affine(), second)
    assert_on_grid(read(folder, time_point=1), case.affine(), first)
    assert inspect(folder).series[0].time_points == 2


def test_time_points_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    case = Case(pixels=noise(seed=1))
    folder = case.write(tmp_path / "a")
    case.pixels = noise(seed=2)
    case.write(folder, start=10)
    assert "nothing in the headers says which belong together" in refusal(folder)


def test_missing_positions_are_guessed_on_request_only(tmp_path: Path) -> None:
    def strip(data: Dataset, index: int) -> None:
        del data.ImagePositionPatient, data.ImageOrientationPatient

    folder = Case(edit=strip).write(tmp_path / "a")
    assert "got none for 5 slices; add --correct-geometry to stack them by instance number every 2.5 mm" in refusal(
        folder
    )
    volume = read(folder, correct_geometry=True)
    assert volume.spacing == pytest.approx((0.9, 0.7, 2.5))
    assert np.array_equal(volume.voxels, Case().pixels.transpose())
    assert sum("guessed" in note or "unknown" in note for note in volume.notes) == 2


@pytest.mark.parametrize("decimals", [3, 4, 5])
def test_rounded_directions_are_made_orthonormal(decimals: int, tmp_path: Path) -> None:
    case = Case(axes=rotation((1, 2, 3), 21.3), decimals=decimals)
    volume = read(case.write(tmp_path / "a"))
    directions = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-5)
    places = corners(volume.shape) @ volume.affine.T
    assert np.abs(places - corners(volume.shape) @ case.affine().T).max() < 30 * 10.0**-decimals


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept", "expected"),
    [
        (np.uint16, 1, -1024, np.int16),
        (np.int16, 1, 0, np.int16),
        (np.uint8, 1, 0, np.uint8),
        (np.uint16, 0.5, 3, np.float32),
        (np.int16, 2, 1, np.int16),
        (np.uint16, 1, 30000, np.int32),
    ],
)
def test_modality_values(dtype, slope: float, intercept: float, expected, tmp_path: Path) -> None:
    def scale(data: Dataset, index: int) -> None:
        data.RescaleSlope, data.RescaleIntercept = slope, intercept

    pixels = (noise() % 255 if dtype == np.uint8 else noise() + (6000 if dtype == np.uint16 else -900)).astype(dtype)
    volume = read(Case(pixels=pixels, edit=scale).write(tmp_path / "a"))
    assert volume.voxels.dtype == expected
    np.testing.assert_allclose(volume.voxels.transpose(), pixels * float(slope) + intercept)


def test_slope_per_slice_as_in_pet(tmp_path: Path) -> None:
    def scale(data: Dataset, index: int) -> None:
        data.RescaleSlope = f"{0.1 * (index + 1):.6f}"

    volume = read(Case(edit=scale).write(tmp_path / "a", shuffled=3))
    expected = Case().pixels * (0.1 * np.arange(1, 6))[:, None, None]
    np.testing.assert_allclose(volume.voxels.transpose(), expected, rtol=1e-6)


def test_unused_bits_and_compression(tmp_path: Path) -> None:
    def overlay(data: Dataset, index: int) -> None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 0
        values = np.frombuffer(data.PixelData, np.uint16) | 0x8000  # an old overlay lives in the high bits
        data.PixelData = values.tobytes()

    case = Case()
    assert_on_grid(read(Case(edit=overlay).write(tmp_path / "a")), case.affine(), case.pixels)
    for number, syntax in enumerate((RLELossless, JPEGLSLossless, JPEG2000Lossless)):
        packed = Case(pixels=noise((2, 64, 48)), edit=lambda data, _, to=syntax: data.compress(to))
        assert_on_grid(read(packed.write(tmp_path / f"b{number}")), packed.affine(), packed.pixels)


def test_inverted_images_are_kept_and_said(tmp_path: Path) -> None:
    case = Case(edit=lambda data, _: setattr(data, "PhotometricInterpretation", "MONOCHROME1"))
    volume = read(case.write(tmp_path / "a"))
    assert_on_grid(volume, case.affine(), case.pixels)
    assert any("MONOCHROME1" in note for note in volume.notes)


def test_memory_limit_and_damaged_files(tmp_path: Path) -> None:
    folder = Case().write(tmp_path / "a")
    needed = 5 * 7 * 6 * 2
    assert read(folder, memory_limit=needed).shape == (6, 7, 5)
    with pytest.raises(InputRefused, match="memory limit"):
        read(folder, memory_limit=needed - 1)
    rng = np.random.default_rng(0)
    whole = (folder / "0002.dcm").read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(128, len(whole), 4):
            damaged[place] = rng.integers(0, 256)
        (folder / "0002.dcm").write_bytes(damaged)
        with suppress(InputRefused):
            assert np.isfinite(read(folder).voxels).all()
    (tmp_path / "empty").mkdir()
    assert "no files" in refusal(tmp_path / "empty")


def test_nothing_of_the_patient_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    volume = read(Case().write(tmp_path / "a"))
    assert not [word for word in PRIVATE if word in repr(volume.source) + repr(volume.notes) + repr(inspect(tmp_path))]
    assert capfd.readouterr() == ("", "")
