"""Every DICOM object of the developer data pack: the right grid, or the right refusal; never a traceback."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from medseg.errors import InputRefused
from medseg.io import inspect, read

REFUSED = {
    "bad/emri_small_jpeg_2k_lossless_too_short.dcm": "pixel spacing must be stated",
    "bad/missing_slices": "3 slices are missing: 6.000 mm instead of 2.000 mm between instance 5 and instance 8, and 1",
    "bad/missing_slices_real": "202.500 mm instead of 1.250 mm between instance 18 and instance 180",
    "bad/mixed_series": "expected one series, got 4 (1: CT, 5 images; 2: CT, 8 images; 3: OT, 1 image; 4: CT, 1 image)",
    "bad/no_pixel_data.dcm": "without pixels",
    "bad/no_positions": "must state its position and direction, got none for 5 slices",
    "bad/one_slice_rotated": "got instance 4 tipped by 90 degrees (1 of 8 differ)",
    "bad/pixels_cut.dcm": "22528 bytes of pixels expected",
    "bad/spacing_changes": "got 2.5 x 2.5 mm at instance 6 and 2 x 2 mm at instance 1 (3 of 8 differ)",
    "bad/two_time_points": "got 2 time points (88 x 128 x 5 x 2); choose one from 0 to 1 with --time-point",
    "bad/unknown_transfer_syntax.dcm": "1.2.840.99999.1.29",
    "bad/wrong_rows.dcm": "23760 bytes of pixels expected",
    "dicom/ct-head-gantry-tilt": "tilt of 18.50 degrees: each slice is shifted by 1.339 mm, instance 21 by 22.446 mm",
    "dicom/single/JLSN_RGB_ILV0.dcm": "colour",
    "dicom/single/OT-PAL-8-face.dcm": "colour",
    **{f"dicom/single/emri_small{end}.dcm": "pixel spacing must be stated" for end in ("", "_RLE", "_big_endian")},
    **{f"dicom/single/emri_small_jpeg_{end}_lossless.dcm": "pixel spacing must be stated" for end in ("2k", "ls")},
    "dicom/single/liver.dcm": "segmentation object",
    "dicom/single/liver_deflate.dcm": "segmentation object",
}
NOTED = {
    "bad/duplicate_slices": "2 copies with equal values at one place were left out (instance 3, instance 5)",
    "bad/monochrome1.dcm": "MONOCHROME1",
    "bad/upload_path_traversal.zip": "2 entries whose names lead out of the archive",
    "bad/upload_series_nested.zip": "1 files that are not DICOM",
}
SHAPES = {  # what the manifest does not say: how many slices an archive or a cleaned folder has
    "bad/duplicate_slices": (88, 128, 8),
    "bad/upload_series_nested.zip": (88, 128, 5),
    "bad/upload_path_traversal.zip": (88, 128, 1),
}


def entries(folder: Path) -> list[dict]:
    files = json.loads((folder / "MANIFEST.json").read_text())["files"]
    bad = [e for e in files if e["path"].startswith("bad/") and (e["kind"].startswith("dicom") or ".zip" in e["path"])]
    return bad + [e for e in files if e["path"].startswith("dicom/")]


def identity(path: Path) -> set[str]:
    """Everything in the files that a message must not repeat."""
    found = set()
    for file in [path] if path.is_file() else path.iterdir():
        if file.suffix == ".zip":
            continue
        data = pydicom.dcmread(file, stop_before_pixels=True, force=True)
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyDescription", "SeriesDescription"):
            found |= {part for part in str(data.get(keyword, "")).split("^") if len(part) > 3 and part != "None"}
    return found


@pytest.mark.filterwarnings("ignore")
def test_every_object_gives_its_grid_or_its_refusal(shared_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for entry in entries(shared_data):
        name, path = entry["path"].rstrip("/"), shared_data / entry["path"]
        found = inspect(path)
        # One object has its series number as patient ID too.
        said = repr(found.problems) + repr([replace(summary, series_number=0) for summary in found.series])
        expected = REFUSED.get(name) or ("colour" if _colour(path) else None)
        assert found.readable == (expected is None), name
        if expected is not None:
            with pytest.raises(InputRefused) as refused:
                read(path)
            assert expected in str(refused.value), name
            said += str(refused.value)
        else:
            volume = read(path)
            assert any(NOTED.get(name, "") in note for note in (*volume.notes, "")), name
            columns_first = tuple(reversed(entry.get("shape", ())))
            assert volume.shape == SHAPES.get(name, (*columns_first, 1)[:3] if columns_first else volume.shape), name
            if "pixel_spacing_mm" in entry:
                rows, columns = entry["pixel_spacing_mm"]
                assert volume.spacing[:2] == pytest.approx((columns, rows), abs=1e-4), name
            said += repr(volume.notes) + repr(volume.source)
        assert not [word for word in identity(path) if word in said], name
    assert capfd.readouterr() == ("", "")


def _colour(path: Path) -> bool:
    if path.is_dir() or path.suffix == ".zip":
        return False
    found = pydicom.dcmread(path, stop_before_pixels=True, force=True).get("PhotometricInterpretation", "MONOCHROME2")
    return not found.startswith("MONOCHROME")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["dicom/mr-t1gd-16", "dicom/mr-marked-as-ct", "bad/duplicate_slices"])
def test_real_series_lie_where_highdicom_says(name: str, shared_data: Path) -> None:
    volume = read(shared_data / name)
    kept = {plane.instance.uid: plane.instance.file.path for plane in volume.source.series.slices}
    other = highdicom.get_volume_from_series([pydicom.dcmread(path) for path in kept.values()])
    in_ras = np.diag([-1, -1, 1, 1]) @ other.affine @ np.eye(4)[[2, 1, 0, 3]]
    to_index = np.linalg.inv(in_ras) @ volume.affine
    corner = np.array([*np.subtract(volume.shape, 1), 1.0])
    for place in (np.array([0, 0, 0, 1.0]), corner):
        index = to_index @ place
        assert np.linalg.norm(in_ras @ (index - np.rint(index))) < 1e-3
        x, y, z = np.rint(index).astype(int)[:3]
        assert volume.voxels[tuple(place[:3].astype(int))] == other.array[z, y, x]


def test_multiframe_lies_where_highdicom_says(shared_data: Path) -> None:
    for name in ("enhanced_mr_phantom_named", "eCT_Supplemental"):
        path = shared_data / "dicom" / "single" / f"{name}.dcm"
        volume = read(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = highdicom.imread(path).get_volume(apply_modality_transform=True)
        in_ras = np.diag([-1, -1, 1, 1]) @ other.affine @ np.eye(4)[[2, 1, 0, 3]]
        ours, theirs = ([a @ corner for corner in _corners(volume.shape)] for a in (volume.affine, in_ras))
        assert max(min(np.linalg.norm(one - other) for other in theirs) for one in ours) < 1e-3, name
        assert volume.voxels.min() == other.array.min()


def _corners(shape: tuple[int, ...]) -> list[np.ndarray]:
    return [np.array([*(i * (n - 1) for i, n in zip(at, shape, strict=True)), 1.0]) for at in np.ndindex(2, 2, 2)]


def test_tilted_head_is_straightened(shared_data: Path) -> None:
    """Every voxel of the corrected grid that a slice passes through has the value of that slice, to interpolation."""
    with pytest.raises(InputRefused, match="--correct-geometry"):
        read(shared_data / "dicom" / "ct-head-gantry-tilt")
    volume = read(shared_data / "dicom" / "ct-head-gantry-tilt", correct_geometry=True)
    assert volume.spacing == pytest.approx((0.4883, 0.4883, 4.002), abs=1e-3)
    series = volume.source.series
    back = series.to_slices(volume.voxels)
    assert back.shape == (14, 512, 512)
    plane = series.slices[0].instance.file.path
    original = pydicom.dcmread(plane).pixel_array.astype(float) - 1024
    inner = (slice(60, -60), slice(60, -60))
    assert np.corrcoef(back[0][inner].ravel(), original[inner].ravel())[0, 1] > 0.999
