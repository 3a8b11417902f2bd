"""A segmented picture against its reference, inside the field of view: overlap, ranking and connectivity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medseg.errors import InputRefused
from medseg.io.pictures import ENDINGS, read_mask, read_picture
from medseg.networks.fsg_net_training import vessel_scores
from medseg.vessels import centre_line_dice
from medseg_pipelines.picture_results import FIELD_FILE, PROBABILITY_FILE

_SEVERAL = 16  # grey values from which a picture is taken for probabilities and not for a mask


@dataclass(frozen=True, kw_only=True)
class PictureEvaluation:
    """Agreement on the labelled pixels; 0 to 1 each, the MCC -1 to 1."""

    f1: float  # equal to Dice
    sensitivity: float
    specificity: float
    mcc: float
    auc: float  # area under the ROC curve of the probabilities; nan where only a mask is known
    cldice: float  # along the centre lines
    notes: tuple[str, ...] = ()


def is_picture_pair(prediction: Path, reference: Path) -> bool:
    """Whether two files or result folders hold pictures."""
    files = [_file(path) for path in (prediction, reference)]
    return all(file.suffix.lower() in ENDINGS and file.is_file() for file in files)


def evaluate_pictures(prediction: Path, reference: Path) -> PictureEvaluation:
    """The agreement of a predicted mask, or of probabilities, with a reference mask.

    Args:
        prediction: A result folder of `medseg infer`, whose field of view and probabilities are used, or a file: a
            mask, or probabilities as grey values from 0 to the most that the file can hold.
        reference: A mask, or a result folder.

    Raises:
        InputRefused: A file cannot be used, or the sizes differ.
        UsageError: A file is not there.
    """
    truth = read_mask(_file(reference))
    file, field, probability = _file(prediction), None, None
    if prediction.is_dir():
        field = _optional(prediction / FIELD_FILE)
        likely = prediction / PROBABILITY_FILE
        probability = _unit(likely) if likely.is_file() else None
        mask = read_mask(file)
    else:
        values = _unit(file)
        graded = len(np.unique(values)) >= _SEVERAL
        mask, probability = (values > 0.5, values) if graded else (read_mask(file), None)
    for other in (mask, field, probability):
        if other is not None and other.shape != truth.shape:
            sizes = [f"{each.shape[1]} x {each.shape[0]}" for each in (other, truth)]
            raise InputRefused(f"prediction and reference must have one size, got {sizes[0]} and {sizes[1]} pixels")
    note = () if field is not None else ("No field of view is known: the whole picture counts.",)
    return score_picture(mask, truth, np.ones(truth.shape, bool) if field is None else field, probability, note)


def score_picture(
    mask: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    field: NDArray[np.bool_],
    probability: NDArray[np.float32] | None = None,
    notes: tuple[str, ...] = (),
) -> PictureEvaluation:
    """The agreement of a mask with the truth, all (H, W), inside a field of view."""
    scores = vessel_scores(mask[field].astype(np.float32), truth[field])
    auc = float("nan") if probability is None else vessel_scores(probability[field], truth[field])["auc"]
    return PictureEvaluation(
        f1=scores["f1"],
        sensitivity=scores["sensitivity"],
        specificity=scores["specificity"],
        mcc=scores["mcc"],
        auc=auc,
        cldice=centre_line_dice(mask & field, truth & field),
        notes=notes,
    )


def _file(path: Path) -> Path:
    """The file itself, or the labels in a result folder."""
    return path / "labels.png" if path.is_dir() else path


def _optional(path: Path) -> NDArray[np.bool_] | None:
    return read_mask(path) if path.is_file() else None


def _unit(path: Path) -> NDArray[np.float32]:
    """(H, W), 0 to 1 over the range of the file's type."""
    pixels = read_picture(path).pixels
    return pixels.max(axis=2).astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
