"""What is told of a run where stderr is a log."""

import pytest

from medseg_app import progress
from medseg_app.progress import ProgressView
from medseg_pipelines.events import Event


def _event(done: int, left: float | None) -> Event:
    return Event(stage="segmenting", done=done, total=8, seconds_left=left)


def test_a_line_every_ten_seconds_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    with ProgressView() as view:
        view.start_case(2, 3)
        for done in range(8):
            now[0] = 4.0 * done
            view(_event(done, 40.0 - 4 * done))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "2 of 3, segmenting, 3 of 8, about 28 s left",
        "2 of 3, segmenting, 6 of 8, about 16 s left",
    ]


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY", 0.0)
    with ProgressView(quiet=True) as view:
        view(_event(1, None))
    assert capsys.readouterr() == ("", "")
