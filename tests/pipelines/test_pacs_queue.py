"""The queue: states, what is due, what may go; each step holds after the file is opened anew."""

from pathlib import Path
from typing import Any

import pytest

from dicom_made_up import made_up_slice
from medseg_pipelines.pacs.archive import Head
from medseg_pipelines.pacs.queue import INCOMPLETE, Queue, digest_of


class Reopened:
    """A queue that is closed and opened again between any two steps."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getattr__(self, name: str) -> object:
        def step(*arguments: object) -> object:
            queue = Queue(self._path)
            try:
                return getattr(queue, name)(*arguments)
            finally:
                queue.close()

        return step


@pytest.fixture
def queue(tmp_path: Path) -> Reopened:
    """A queue in a new file."""
    return Reopened(tmp_path / "queue.sqlite")


def head(number: int, series: str = "1.2") -> Head:
    """The head of an instance."""
    return Head(made_up_slice(SOPInstanceUID=f"{series}.{number}", SeriesInstanceUID=series))


def _closed(queue: Any, rules: tuple[str, ...] = ("r",), count: int = 2, at: float = 10) -> int:
    series = [queue.add(head(number), at) for number in range(count)].pop()
    assert queue.close_series(series, rules, at + 1)
    return series


def test_a_series_is_closed_once_it_is_quiet(queue: Any) -> None:
    assert queue.add(head(0), 10) == queue.add(head(1), 20) == queue.add(head(1), 20)
    assert queue.add(head(0, "1.3"), 30) == 2
    assert queue.quiet_series(25) == [(1, "1.2")]
    assert queue.instances(1) == ["1.2.0", "1.2.1"]
    assert not queue.is_done_with("1.2.0")
    assert queue.close_series(1, ("a", "b"), 31)
    assert not queue.close_series(1, ("a", "b"), 31)
    assert queue.is_done_with("1.2.0")
    assert queue.counts() == {"receiving": 1, "received": 2}
    job = queue.next_job(31)
    assert (job.rule, job.series_uid, job.digest) == ("a", "1.2", digest_of(["1.2.1", "1.2.0"]))
    assert queue.next_job(30) is None


def test_late_slices_make_a_new_job(queue: Any) -> None:
    _closed(queue)
    first = queue.next_job(99)
    assert not queue.is_done_with("1.2.7")
    queue.add(head(7), 40)
    queue.close_series(1, ("r",), 41)
    assert queue.next_job(99).id != first.id
    queue.segmented(first.id, [("a.dcm", head(1, "9"))], ("x",), 42)
    assert queue.due("x", 99) == []
    assert queue.counts() == {"receiving": 0, "received": 1, "superseded": 1}


def test_late_slices_after_the_others_are_gone_are_refused(queue: Any) -> None:
    _closed(queue)
    queue.end(1, "refused", "no", 12)
    assert queue.sources_to_remove(20, 0) == [(1, "1.2")]
    queue.sources_removed(1)
    assert queue.sources_to_remove(20, 0) == []
    queue.add(head(7), 40)
    queue.close_series(1, ("r",), 41)
    assert queue.next_job(99) is None
    assert queue.listing()[-1]["reason"] == INCOMPLETE
    assert queue.sources_to_remove(50, 0) == [(1, "1.2")]


def test_a_job_is_sent_when_its_last_file_is(queue: Any) -> None:
    _closed(queue)
    files = [("a.dcm", head(1, "9")), ("b.dcm", head(2, "9"))]
    queue.segmented(1, files, ("x", "y"), 12)
    assert queue.is_done_with("9.1")
    first, second = queue.due("x", 12)
    assert (first.file, first.begun, first.attempts) == ("a.dcm", False, 0)
    queue.sending("x", [first, second])
    queue.sent("x", first, 13)
    queue.not_sent("x", [second], "away", 50)
    assert queue.due("x", 49) == []
    (again,) = queue.due("x", 50)
    assert (again.instance, again.begun, again.attempts) == ("9.2", True, 1)
    assert queue.listing()[0]["waiting"] == "away"
    queue.sent("x", again, 51)
    assert queue.counts()["segmented"] == 1
    for each in queue.due("y", 99):
        queue.sent("y", each, 52)
    assert queue.counts() == {"receiving": 0, "sent": 1}
    assert queue.listing()[0]["sent"] == 4


def test_a_job_with_nothing_to_send_is_done(queue: Any) -> None:
    _closed(queue)
    queue.segmented(1, [("a.dcm", head(1, "9"))], (), 12)
    assert queue.counts() == {"receiving": 0, "sent": 1}


def test_attempts_and_revival(queue: Any) -> None:
    _closed(queue)
    queue.retry(1, "broke", 60, 12)
    assert queue.next_job(59) is None
    assert queue.next_job(60).attempts == 1
    queue.end(1, "failed", "broke", 61)
    assert queue.next_job(99) is None
    assert queue.sources_to_remove(99, 60) == []
    assert queue.revive(70) == 1
    assert queue.next_job(70).attempts == 0


def test_nothing_goes_while_it_is_needed(queue: Any) -> None:
    _closed(queue)
    assert queue.sources_to_remove(1e9, 1e9) == []
    queue.segmented(1, [("a.dcm", head(1, "9"))], ("x",), 12)
    assert queue.sources_to_remove(1e9, 1e9) == [(1, "1.2")]
    assert queue.results_to_remove(1e9, 1e9) == []
    queue.sent("x", queue.due("x", 99)[0], 100)
    assert queue.results_to_remove(99, 1e9) == []
    assert queue.results_to_remove(100, 0) == [1]
    queue.forget(1e9)
    assert queue.is_done_with("1.2.0")
    queue.sources_removed(1)
    queue.forget(1e9)
    assert queue.is_done_with("1.2.0")
    queue.results_removed(1)
    queue.forget(9)
    assert queue.is_done_with("1.2.0")
    queue.forget(1e9)
    assert not queue.is_done_with("1.2.0")
    assert queue.listing() == []


def test_an_error_in_a_step_takes_it_back(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue.sqlite")
    _closed(queue)
    with pytest.raises(AttributeError):
        queue.segmented(1, [("a.dcm", None)], ("x",), 1)  # pyright: ignore[reportArgumentType]
    assert queue.counts() == {"receiving": 0, "received": 1}
    queue.close()
