"""Means over cases, their intervals, and the files and the picture made of them."""

import csv
import io
import json
import math

import numpy as np
import pytest

from medseg.volume import Volume
from medseg_pipelines.evaluation import Name, evaluate, evaluate_images
from medseg_pipelines.evaluation_picture import draw_evaluation, round_ticks
from medseg_pipelines.evaluation_summary import (
    CaseResult,
    Failure,
    Summary,
    as_csv,
    as_json,
    bootstrap_intervals,
    summarise,
)

NAMES = (Name(id=1, name="liver", structure="liver"), Name(id=2, name="spleen", structure="spleen"))


def _labels(length: int, spleen: int = 0) -> Volume:
    voxels = np.zeros((16, 6, 6), np.uint8)
    voxels[1 : 1 + length, 1:5, 1:5] = 1
    voxels[12 : 12 + spleen, 1:5, 1:5] = 2
    return Volume(voxels, np.eye(4), kind="labels")


def _summary(lengths: tuple[int, ...]) -> Summary:
    """Livers of these lengths against one of 8; the spleen is missed in the first case and in no other reference."""
    found = (evaluate(_labels(n), _labels(8, 0 if i else 2), names=NAMES) for i, n in enumerate(lengths))
    return summarise([CaseResult(case=f"case {i}", found=one) for i, one in enumerate(found)])


def _images(noises: tuple[float, ...]) -> Summary:
    rng = np.random.default_rng(0)
    reference = Volume(rng.normal(size=(12, 12, 12)), np.eye(4))
    noisy = (reference.with_voxels(reference.voxels + s * rng.normal(size=(12, 12, 12))) for s in noises)
    return summarise(
        [CaseResult(case=f"case {i}", found=evaluate_images(v, reference)) for i, v in enumerate(noisy)],
        failures=[Failure(case="broken", error="could not be read")],
    )


def test_intervals_agree_with_theory() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 2)) * (1.0, 3.0)
    low, high = bootstrap_intervals(values, 4000, rng)
    half = 1.96 * values.std(axis=0) / 20  # the normal approximation, good at 400 cases
    np.testing.assert_allclose(values.mean(axis=0) - low, half, rtol=0.08)
    np.testing.assert_allclose(high - values.mean(axis=0), half, rtol=0.08)


def test_intervals_leave_out_what_is_not_defined() -> None:
    nan = math.nan
    low, high = bootstrap_intervals(
        np.array([[1.0, 1.0, nan], [1.0, nan, nan], [1.0, nan, nan]]), 500, np.random.default_rng(0)
    )
    assert (low[0], high[0]) == (1.0, 1.0)
    assert np.isnan(low[1:]).all()
    assert np.isnan(high[1:]).all()


def test_summary_of_several_cases() -> None:
    summary = _summary((8, 4, 8))
    liver, spleen = summary.rows
    estimate = liver.estimates["dice"]
    assert estimate.mean == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert estimate.low == pytest.approx(2 / 3)
    assert estimate.high == 1.0
    missed = spleen.estimates["hd95_mm"]
    assert (missed.cases, missed.infinite, math.isnan(missed.mean)) == (0, 1, True)
    assert summary.overall.estimates["dice"].mean == pytest.approx((0.5 + 2 / 3 + 1) / 3)
    assert "too narrow" in summary.notes[-1]
    again = _summary((8, 4, 8)).rows[0].estimates["dice"]
    assert again == estimate, "equal seeds give equal intervals"


def test_one_case_has_no_interval_and_says_so() -> None:
    summary = _summary((8,))
    content = as_json(summary)
    assert content["bootstrap"] is None
    assert content["structures"][0]["dice_low"] is None
    assert "no confidence interval" in content["notes"][-1]


def test_json_holds_no_nan_and_csv_one_row_per_case_and_structure() -> None:
    summary = _summary((8, 4))
    content = json.loads(json.dumps(as_json(summary), allow_nan=False))
    liver, spleen = content["structures"]
    assert (liver["cases"], spleen["cases"]) == (2, 1)
    assert (spleen["hd95_mm"], spleen["hd95_mm_infinite"], spleen["dice"]) == ("inf", 1, 0.0)
    assert [case["mean_dice"] for case in content["cases"]] == [0.5, pytest.approx(2 / 3, abs=1e-6)]
    rows = list(csv.DictReader(io.StringIO(as_csv(summary))))
    assert [(row["case"], row["structure"]) for row in rows] == [
        *(("case 0", "liver"), ("case 0", "spleen"), ("case 1", "liver"), ("case 1", "spleen"))
    ]
    assert (rows[1]["asd_mm"], rows[3]["dice"]) == ("inf", "")


def test_images_make_one_row_and_infinite_psnr_is_counted() -> None:
    content = as_json(_images((0.1, 0.0, 0.2)))
    assert content["psnr_db_infinite"] == 1
    assert content["ssim_low"] < content["ssim"] < content["ssim_high"] <= 1.0
    assert content["failed"] == [{"case": "broken", "error": "could not be read"}]
    assert as_csv(_images((0.1,))).splitlines()[0] == "case,psnr_db,ssim,nrmse,edges,flat_bias,data_range"


def test_kinds_do_not_mix() -> None:
    with pytest.raises(ValueError, match="one kind"):
        summarise([*_summary((8,)).results, *_images((0.1,)).results])
    with pytest.raises(ValueError, match="at least one"):
        summarise([])


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.5, 1.0), (0.0, 0.013), (28.1, 39.9), (-97.0, 97.0), (0.0, 0.0), (3.0, 3.0), (0.0, 812.0)],
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float) -> None:
    ticks = round_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= high - 1e-9
    np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


@pytest.mark.parametrize(
    "summary", [_summary((8,)), _summary((8, 4, 6, 7, 2, 5, 8)), _images((0.1, 0.2))], ids=["one", "seven", "images"]
)
def test_picture_shows_dots_and_boxes(summary: Summary) -> None:
    picture = np.asarray(draw_evaluation(summary))
    assert picture.shape[1] > 1000
    many = len(summary.results) >= 5
    blue = (picture[..., 2] > 200) & (picture[..., 0] < 140)
    assert blue.any() == many, "boxes are drawn from five cases on"
    red = (picture[..., 0] > 230) & (picture[..., 1] < 130)
    assert red.any() == any(e.infinite for row in summary.rows for e in row.estimates.values())
    assert (picture.reshape(-1, 3).min(axis=1) > 220).sum() > 50
