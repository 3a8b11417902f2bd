"""A folder appears whole or not at all."""

from pathlib import Path

import pytest

from medseg.errors import UsageError
from medseg_pipelines.folders import RESULT_MARK, check_target, whole_folder


def _write(target: Path, text: str, *, overwrite: bool = False) -> None:
    with whole_folder(target, overwrite=overwrite) as partial:
        assert partial.parent == target.parent
        (partial / RESULT_MARK).write_text(text)


def test_appears_at_the_end(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), whole_folder(tmp_path / "out"):
        raise error
    assert not list(tmp_path.iterdir())


def test_earlier_results_stay_unless_asked(tmp_path: Path) -> None:
    target = tmp_path / "out"
    _write(target, "first")
    with pytest.raises(UsageError, match="--overwrite"):
        _write(target, "second")
    with pytest.raises(ZeroDivisionError), whole_folder(target, overwrite=True):
        raise ZeroDivisionError
    assert (target / RESULT_MARK).read_text() == "first"
    _write(target, "second", overwrite=True)
    assert (target / RESULT_MARK).read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    check_target(tmp_path / "out", overwrite=False)  # empty: nothing to lose
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="no earlier result"):
        check_target(tmp_path / "out", overwrite=True)
    with pytest.raises(UsageError, match="existing folder above"):
        check_target(tmp_path / "none" / "out", overwrite=False)


def test_what_dead_processes_left_is_cleaned_up(tmp_path: Path) -> None:
    dead = tmp_path / ".out.0123abcd.partial"
    dead.mkdir()
    (dead / "labels.nii.gz").write_text("half")
    _write(tmp_path / "out", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_runs_do_not_disturb_each_other(tmp_path: Path) -> None:
    slow = whole_folder(tmp_path / "out")
    partial = slow.__enter__()
    _write(tmp_path / "out", "quick")
    assert partial.exists()
    with pytest.raises(UsageError, match="already there"):
        slow.__exit__(None, None, None)
    assert (tmp_path / "out" / RESULT_MARK).read_text() == "quick"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_result_moved_away_by_a_dead_process_comes_back(tmp_path: Path) -> None:
    moved = tmp_path / ".out.0123abcd.replaced"
    moved.mkdir()
    (moved / RESULT_MARK).write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out", overwrite=True):
        raise RuntimeError
    assert (tmp_path / "out" / RESULT_MARK).read_text() == "old"
