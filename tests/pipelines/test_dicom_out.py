"""Results as DICOM objects, read back by other means: voxel for voxel on the source slices, and honest about it."""

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.sr.codedict import codes

from dicom_cases import PRIVATE, Case, noise, rotation
from medseg.errors import InputRefused, UsageError
from medseg.io import read
from medseg.volume import Volume
from medseg_pipelines.dicom_out.capture import capture
from medseg_pipelines.dicom_out.codes import terms_of
from medseg_pipelines.dicom_out.contours import trace
from medseg_pipelines.dicom_out.derived import derived_series
from medseg_pipelines.dicom_out.origin import Origin, Sources
from medseg_pipelines.dicom_out.report import report
from medseg_pipelines.dicom_out.segmentation import segmentation
from medseg_pipelines.dicom_out.structures import structure_set
from medseg_pipelines.dicom_out.writing import check_source
from medseg_pipelines.recipe import Label, load_recipe
from medseg_pipelines.statistics import measure

NAMES = load_recipe("brain-structures").labels
ORIGIN = Origin(model="brain-structures", weights="0123abcd", trained=True)
AXES = {
    "axial": np.eye(3),
    "coronal": np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "oblique": rotation((1, 2, 3), 40),
}
AXES["sagittal, turned"] = np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0.0]])


def opened(case: Case, folder: Path, *, multiframe: bool = False) -> tuple[Volume, Sources]:
    path = case.write_multiframe(folder / "a.dcm") if multiframe else case.write(folder / "a", shuffled=2)
    volume = read(path, correct_geometry=True)
    return volume, Sources.of(volume.source.series)


def some_labels(volume: Volume, count: int = 17) -> np.ndarray:
    """Blocks of labels, some of which do not occur."""
    coarse = np.random.default_rng(1).integers(0, count + 1, [size // 2 + 1 for size in volume.shape])
    x, y, z = (np.arange(size) // 2 for size in volume.shape)
    labels = coarse[np.ix_(x, y, z)]
    return np.where(labels == 5, 0, labels)


def assert_identity(data: pydicom.Dataset, source: pydicom.Dataset) -> None:
    """Of the same patient, study and frame of reference, in a series of its own, and not for diagnosis."""
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
        assert data[keyword].value == source[keyword].value
    assert data.SeriesInstanceUID != source.SeriesInstanceUID
    assert data.SOPInstanceUID != source.SOPInstanceUID
    assert "not for diagnosis" in data.SeriesDescription
    assert data.Manufacturer == "medseg"


@pytest.mark.parametrize("multiframe", [False, True])
@pytest.mark.parametrize("name", AXES)
def test_segmentation_comes_back_voxel_for_voxel(name: str, multiframe: bool, tmp_path: Path) -> None:
    volume, sources = opened(Case(axes=AXES[name], pixels=noise((4, 12, 10))), tmp_path, multiframe=multiframe)
    labels = some_labels(volume, count=8)
    for encoding in ("binary", "labelmap"):
        made = segmentation(sources, labels, NAMES, ORIGIN, encoding=encoding)
        made.save_as(tmp_path / "seg.dcm")
        back = hd.seg.segread(tmp_path / "seg.dcm")
        assert_identity(back, sources.first)
        assert back.FrameOfReferenceUID == sources.first.FrameOfReferenceUID
        assert back.ReferencedSeriesSequence[0].SeriesInstanceUID == sources.first.SeriesInstanceUID
        slices = sources.series.slices
        if multiframe:
            frames = [plane.frame + 1 for plane in slices]
            found = back.get_pixels_by_source_frame(slices[0].instance.uid, frames, combine_segments=True)
        else:
            uids = [plane.instance.uid for plane in slices]
            found = back.get_pixels_by_source_instance(uids, combine_segments=True)
        by_number = {n: back.get_segment_description(n).segment_label for n in back.segment_numbers if n}
        ids = {label.name: label.id for label in NAMES}
        table = np.array([0, *(ids[by_number[n]] for n in sorted(by_number))])
        assert np.array_equal(table[found], sources.series.to_slices(labels))


@pytest.mark.parametrize("multiframe", [False, True])
def test_segmentation_lies_where_the_volume_lies(multiframe: bool, tmp_path: Path) -> None:
    """The position of every frame, read by another way than the references."""
    volume, sources = opened(Case(axes=AXES["oblique"], pixels=noise((6, 12, 10))), tmp_path, multiframe=multiframe)
    labels = np.zeros(volume.shape, int)
    labels[3:7, 4:9, 1:5] = 3
    made = segmentation(sources, labels, NAMES, ORIGIN)
    made.save_as(tmp_path / "seg.dcm")
    found = hd.imread(tmp_path / "seg.dcm").get_volume()
    inside = np.argwhere(found.array.reshape(found.spatial_shape))
    centre = np.diag([-1, -1, 1, 1]) @ found.affine @ np.array([*inside.mean(axis=0), 1.0])
    expected = volume.affine @ np.array([*np.argwhere(labels == 3).mean(axis=0), 1.0])
    np.testing.assert_allclose(centre, expected, atol=1e-3)


def test_tilted_results_are_written_on_the_slices_as_taken(tmp_path: Path) -> None:
    volume, sources = opened(Case(shear=(0.0, 1.1), pixels=noise((6, 12, 10))), tmp_path)
    assert volume.shape != (10, 12, 6)
    labels = some_labels(volume)
    made = segmentation(sources, labels, NAMES, ORIGIN)
    assert (made.Rows, made.Columns) == (12, 10)
    positions = {tuple(f.PlanePositionSequence[0].ImagePositionPatient) for f in made.PerFrameFunctionalGroupsSequence}
    stated = np.array([plane.position for plane in sources.series.slices])
    for position in positions:
        assert np.linalg.norm(stated - np.array(position, float), axis=1).min() < 1e-6


def test_nothing_found_gives_no_segmentation(tmp_path: Path) -> None:
    volume, sources = opened(Case(), tmp_path)
    empty = np.zeros(volume.shape, int)
    assert segmentation(sources, empty, NAMES, ORIGIN) is None
    assert structure_set(sources, empty, NAMES, ORIGIN) is None


def test_untrained_results_say_so(tmp_path: Path) -> None:
    volume, sources = opened(Case(), tmp_path)
    untrained = Origin(model="tiny", weights="0", trained=False)
    for made in (
        segmentation(sources, some_labels(volume), NAMES, untrained),
        structure_set(sources, some_labels(volume), NAMES, untrained),
        next(iter(derived_series(sources, volume, untrained, what="Restored"))),
    ):
        assert made.SeriesDescription.startswith("UNTRAINED, NO MEANING: ")


def filled(outlines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies within an outline, by the number of edges above it."""
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(float)
    inside = np.zeros(shape, bool)
    for outline in outlines:
        crossed = np.zeros(shape, int)
        for (x, y), (x2, y2) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            at = y + (columns - x) * (y2 - y) / (x2 - x if x2 != x else 1)
            crossed += ((x > columns) != (x2 > columns)) & (at < rows)
        inside |= crossed % 2 == 1
    return inside


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.1, 0.95), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_outlines_give_every_pixel_back(seed: int, share: float, size: tuple[int, int]) -> None:
    mask = np.random.default_rng(seed).random(size) < share
    outlines = trace(mask)
    assert np.array_equal(filled(outlines, size), mask)
    areas = [abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 for x, y in (o.T for o in outlines)]
    assert sum(areas) == pytest.approx(mask.sum())


@pytest.mark.parametrize("name", AXES)
def test_structure_set_comes_back(name: str, tmp_path: Path) -> None:
    """Millimetres to pixels of the referenced image, filled: every pixel of every label."""
    volume, sources = opened(Case(axes=AXES[name], pixels=noise((6, 12, 10))), tmp_path)
    labels = some_labels(volume)
    structure_set(sources, labels, NAMES, ORIGIN).save_as(tmp_path / "rs.dcm", enforce_file_format=True)
    back = pydicom.dcmread(tmp_path / "rs.dcm")
    assert_identity(back, sources.first)
    names = {item.ROINumber: item.ROIName for item in back.StructureSetROISequence}
    ids = {label.name: label.id for label in NAMES}
    slices = {plane.instance.uid: (index, plane) for index, plane in enumerate(sources.series.slices)}
    found = np.zeros((6, 12, 10), int)
    for item in back.ROIContourSequence:
        by_slice: dict[int, list[np.ndarray]] = {}
        for contour in item.ContourSequence:
            index, plane = slices[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - plane.position
            assert np.abs(points @ np.cross(*plane.directions)).max() < 1e-3, "contours lie in their slice"
            by_slice.setdefault(index, []).append(points @ plane.directions.T / [plane.spacing[1], plane.spacing[0]])
        for index, outlines in by_slice.items():
            found[index][filled(outlines, (12, 10))] = ids[names[item.ReferencedROINumber]]
    assert np.array_equal(found, sources.series.to_slices(labels))


@pytest.mark.parametrize("span", [1.0, 30.0, 1e-4])
def test_derived_series_comes_back(span: float, tmp_path: Path) -> None:
    volume, sources = opened(Case(axes=AXES["oblique"]), tmp_path)
    values = (volume.voxels * span + np.random.default_rng(0).normal(size=volume.shape) * span).astype(np.float32)
    restored = volume.with_voxels(values)
    (tmp_path / "out").mkdir()
    for number, image in enumerate(derived_series(sources, restored, ORIGIN, what="Restored")):
        image.save_as(tmp_path / "out" / f"{number}.dcm", enforce_file_format=True)
    back = read(tmp_path / "out")
    assert back.grid.equals(volume.grid, tolerance=1e-5)
    step = back.source.slope
    np.testing.assert_allclose(back.voxels, values, atol=0.5 * step + 1e-6 * np.abs(values).max())
    image = pydicom.dcmread(tmp_path / "out" / "2.dcm")
    assert_identity(image, sources.first)
    assert image.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert "never acquired" in image.DerivationDescription
    assert image.SourceImageSequence[0].ReferencedSOPInstanceUID == sources.series.slices[2].instance.uid
    assert image.FrameOfReferenceUID == sources.first.FrameOfReferenceUID


def test_report_holds_the_volumes(tmp_path: Path) -> None:
    volume, sources = opened(Case(pixels=noise((6, 12, 10))), tmp_path)
    labels = some_labels(volume)
    segments = segmentation(sources, labels, NAMES, ORIGIN)
    structures = measure(labels, volume.affine, NAMES)
    report(sources, segments, structures, NAMES, ORIGIN).save_as(tmp_path / "sr.dcm")
    back = hd.sr.srread(tmp_path / "sr.dcm")
    assert_identity(back, sources.first)
    groups = back.content.get_volumetric_roi_measurement_groups()
    values = {g.tracking_identifier.split(" (")[0]: g.get_measurements(codes.SCT.Volume)[0].value for g in groups}
    assert values == {s.name: pytest.approx(s.ml) for s in structures if s.voxels}
    assert segments.SOPInstanceUID in {
        item.ReferencedSOPInstanceUID
        for study in back.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


def test_picture(tmp_path: Path) -> None:
    _, sources = opened(Case(), tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8))
    capture(sources, picture, ORIGIN).save_as(tmp_path / "sc.dcm")
    back = pydicom.dcmread(tmp_path / "sc.dcm")
    assert_identity(back, sources.first)
    assert np.array_equal(back.pixel_array, np.asarray(picture))


def test_codes_are_those_of_the_standard() -> None:
    standard = [getattr(scheme, name) for scheme in (codes.DCM, codes.SCT) for name in scheme.dir()]
    known: dict[tuple[str, str], set[str]] = {}
    for code in standard:
        known.setdefault((code.scheme_designator, code.value), set()).add(code.meaning.lower())
    for label in NAMES:
        terms = terms_of(label)
        assert terms.known, label.name
        assert (terms.side is not None) == (label.side is not None)
        for concept in (terms.category, terms.kind, *terms.regions):
            assert concept.meaning.lower() in known[concept.scheme_designator, concept.value]
    other = terms_of(Label(id=1, name="left thing", side="left", color=(1, 2, 3)))
    assert (other.known, other.kind.meaning, other.side and other.side.meaning) == (False, "Tissue", "Left")


def test_images_that_nothing_can_refer_to_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="need a DICOM input"):
        check_source(Volume(noise(), np.eye(4)))
    strip = Case(edit=lambda data, _: [data.pop(name) for name in ("ImagePositionPatient", "ImageOrientationPatient")])
    volume = read(strip.write(tmp_path / "a"), correct_geometry=True)
    with pytest.raises(InputRefused, match="state their position"):
        check_source(volume)


def test_complaints_quote_nothing_of_the_patient(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def spoil(data: pydicom.Dataset, _: int) -> None:
        data.StudyDate, data.PatientBirthDate = PRIVATE[0], PRIVATE[0]

    volume, sources = opened(Case(edit=spoil), tmp_path)
    try:
        segmentation(sources, some_labels(volume), NAMES, ORIGIN)
    except InputRefused as refusal:
        said = str(refusal)
    else:
        said = ""
    assert not [word for word in PRIVATE if word in said + "".join(capfd.readouterr())]
