"""`medseg evaluate` as a user calls it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner, Result

from medseg.io import write
from medseg.volume import Volume
from medseg_app.cli import app


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "120"})


def _mask(path: Path, shift: int = 0, spacing: float = 1.0) -> Path:
    voxels = np.zeros((20, 20, 20), np.uint8)
    voxels[4 + shift : 12 + shift, 4:12, 4:12] = 1
    path.parent.mkdir(exist_ok=True)
    write(Volume(voxels, np.diag([spacing, 1.0, 1.0, 1.0]), kind="labels"), path)
    return path


def _image(path: Path, noise: float) -> Path:
    rng = np.random.default_rng(0)
    values = ndimage.gaussian_filter(rng.normal(size=(16, 16, 16)), 1.0) + noise * rng.normal(size=(16, 16, 16))
    write(Volume(values.astype(np.float32), np.eye(4)), path)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three predictions, shifted by 0 to 2 mm, and their references."""
    for number in range(3):
        _mask(tmp_path / "ours" / f"case{number}.nii.gz", shift=number)
        _mask(tmp_path / "theirs" / f"case{number}.nrrd")
    return tmp_path / "ours", tmp_path / "theirs"


def test_one_pair_as_table_json_and_csv(tmp_path: Path) -> None:
    paths = _mask(tmp_path / "a.nii.gz"), _mask(tmp_path / "b.nii.gz", shift=2)
    table = _call(*paths)
    assert table.exit_code == 0
    assert "0.750" in table.stdout
    assert "in only one of them its Dice and NSD are 0" in table.stdout
    assert "One case: there is no confidence interval." in table.stdout
    content = json.loads(_call(*paths, "--json").stdout)
    structure = content["structures"][0]
    assert (structure["hd95_mm"], structure["volume_error"], content["mean_dice"]) == (2.0, 0.0, 0.75)
    assert 0 < structure["asd_mm"] < 2.0
    assert structure["nsd"] < json.loads(_call(*paths, "--json", "--tolerance", 2).stdout)["mean_nsd"] == 1.0
    assert _call(*paths, "--csv").stdout.splitlines()[1].startswith("a,label 1,0.75,")


def test_folders_give_intervals_and_a_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "report"
    answer = _call(*folders, "-o", out)
    assert answer.exit_code == 0
    assert "[0.750, 1.000]" in answer.stdout
    assert sorted(path.name for path in out.iterdir()) == [
        *("evaluation.csv", "evaluation.json", "evaluation.png", "manifest.json")
    ]
    content = json.loads((out / "evaluation.json").read_text())
    assert content["bootstrap"] == {"resamples": 2000, "seed": 0, "confidence": 0.95}
    assert [case["case"] for case in content["cases"]] == ["case0", "case1", "case2"]
    assert len((out / "evaluation.csv").read_text().splitlines()) == 4
    assert Image.open(out / "evaluation.png").width > 1000
    assert _call(*folders, "-o", out).exit_code == 2
    assert _call(*folders, "-o", out, "--overwrite", "--seed", 1).exit_code == 0


def test_unpaired_cases_are_named_and_refused_unless_allowed(folders: tuple[Path, Path]) -> None:
    (folders[1] / "case1.nrrd").unlink()
    refused = _call(*folders)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "case1 (no reference)" in refused.stderr
    allowed = _call(*folders, "--allow-unpaired", "--json")
    assert len(json.loads(allowed.stdout)["cases"]) == 2
    assert "left out: case1" in allowed.stderr


def test_a_case_that_fails_does_not_stop_the_others(folders: tuple[Path, Path]) -> None:
    _mask(folders[1] / "case1.nrrd", spacing=2.0)
    answer = _call(*folders, "--json")
    assert answer.exit_code == 4
    content = json.loads(answer.stdout)
    assert [failure["case"] for failure in content["failed"]] == ["case1"]
    assert len(content["cases"]) == 2


def test_table_of_images(tmp_path: Path) -> None:
    _image(tmp_path / "clean.nii.gz", 0.0)
    rows = [f"{_image(tmp_path / f'{n}.nii.gz', n / 100).name},clean.nii.gz" for n in (1, 2)]
    (tmp_path / "pairs.csv").write_text("\n".join(("prediction,reference", *rows)) + "\n")
    content = json.loads(_call(tmp_path / "pairs.csv", "--json").stdout)
    assert content["kind"] == "image"
    assert content["psnr_db_low"] < content["psnr_db"] < content["psnr_db_high"]
    table = _call(tmp_path / "pairs.csv")
    assert "PSNR dB" in table.stdout
    assert "maximum minus minimum of the reference" in table.stdout


def test_other_grids_are_refused_or_resampled_on_request(tmp_path: Path) -> None:
    paths = _mask(tmp_path / "a.nii.gz"), _mask(tmp_path / "b.nii.gz", spacing=2.0)
    refused = _call(*paths)
    assert refused.exit_code == 3
    assert "--resample" in refused.stderr
    assert _call(*paths, "--resample").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--kind", "mask"], "must be one of auto, labels, image"),
        (["--tolerance", "-1"], "--tolerance must be"),
        (["--data-range", "0"], "--data-range must be"),
        (["--map", "nowhere.json"], "map 'nowhere.json' is not there"),
        (["--kind", "image", "--map", "freesurfer"], "--map is for label maps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options(options: list[str], words: str, tmp_path: Path) -> None:
    path = _mask(tmp_path / "a.nii.gz")
    answer = _call(path, path, *options)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert words in answer.stderr
