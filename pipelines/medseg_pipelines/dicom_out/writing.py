"""Which DICOM objects can be written of a result, and the files that they become."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medseg.errors import InputRefused, UsageError
from medseg.volume import Volume
from medseg_pipelines.dicom_out.capture import capture
from medseg_pipelines.dicom_out.derived import derived_series
from medseg_pipelines.dicom_out.origin import Origin, Sources, written
from medseg_pipelines.dicom_out.report import report
from medseg_pipelines.dicom_out.segmentation import Encoding, segmentation
from medseg_pipelines.dicom_out.structures import structure_set
from medseg_pipelines.formats import DICOM_FOLDER
from medseg_pipelines.results import LabelResult, Result


def check_source(volume: Volume) -> None:
    """Find out before a long run whether DICOM results can refer to this image.

    Raises:
        UsageError: The image did not come from DICOM.
        InputRefused: Its slices state no positions.
    """
    series = volume.source.series if volume.source else None
    if series is None:
        raise UsageError("DICOM results need a DICOM input to refer to, got another format; leave them out of --format")
    if any(plane.position is None or plane.directions is None or plane.spacing is None for plane in series.slices):
        raise InputRefused("DICOM results need slices that state their position, these do not; use --format nifti")


def writer(result: Result, formats: Sequence[str], *, encoding: Encoding = "binary") -> Callable[[Path], None]:
    """What writes the DICOM objects of a result into its folder, for `Result.save`.

    Args:
        result: Of a DICOM series.
        formats: Any of "seg", "rtstruct", "sr", "sc" and "dicom"; "sr" brings "seg", which it refers to.
        encoding: Of the segmentation.
    """

    def write(folder: Path) -> None:
        assert result.image.source is not None  # `check_source` was asked before
        sources = Sources.of(result.image.source.series)
        target = folder / DICOM_FOLDER
        target.mkdir()
        origin = _origin(result)
        if "sc" in formats:
            _save(capture(sources, result.preview(), origin), target / "picture.dcm")
        if isinstance(result, LabelResult):
            _write_labels(result, sources, origin, target, formats, encoding)
        elif "dicom" in formats:
            (target / "restored").mkdir()
            images = derived_series(sources, result.volume, origin, what="Restored")
            for number, image in enumerate(images, start=1):
                _save(image, target / "restored" / f"{number:04d}.dcm")
        if not any(target.iterdir()):
            target.rmdir()  # nothing was found that an object could hold

    return write


def _write_labels(
    result: LabelResult, sources: Sources, origin: Origin, target: Path, formats: Sequence[str], encoding: Encoding
) -> None:
    labels = result.volume.voxels
    segments = None
    if {"seg", "sr"} & set(formats):
        segments = segmentation(sources, labels, result.labels, origin, encoding=encoding)
        _save(segments, target / "segmentation.dcm")
    if "sr" in formats and segments is not None:
        _save(report(sources, segments, result.statistics, result.labels, origin), target / "report.dcm")
    if "rtstruct" in formats:
        _save(structure_set(sources, labels, result.labels, origin), target / "structures.dcm")


def _origin(result: Result) -> Origin:
    model = result.manifest["model"]
    return Origin(
        model=model["name"],
        weights=model["weights_sha256"][:8],
        trained=bool(model["trained"]),
        warnings=result.warnings,
        correction=result.manifest.get("correction"),
    )


def _save(made: Any | None, path: Path) -> None:
    if made is not None:
        with written("a DICOM result"):
            made.save_as(path, enforce_file_format=True)
