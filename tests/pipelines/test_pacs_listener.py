"""The listener: what it is sent is segmented once and sent once, whatever fails, and whoever is killed when."""

import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import listen_with_stub
from dicom_made_up import IDENTITY, NAME, save_slice
from dicom_peer import Peer
from listen_with_stub import STUB
from medseg.errors import MedsegError, UsageError
from medseg_pipelines.pacs.address import Access, EntityAddress
from medseg_pipelines.pacs.connect import open_archive
from medseg_pipelines.pacs.listener import QUEUE_FILE, Listener
from medseg_pipelines.pacs.queue import Queue
from medseg_pipelines.pacs.rules import Listening
from orthanc import free_port
from stub_worker import COMMENT

_PATIENCE = 60.0  # seconds until a test gives up; machines are slow at times


@pytest.fixture
def peer() -> Iterator[Peer]:
    """Where results go."""
    peer = Peer().start()
    yield peer
    peer.stop()


class Hospital:
    """One listener, its rules and its sender."""

    def __init__(self, folder: Path, peer: Peer, **changes: object) -> None:
        self.folder, self.state = folder, folder / "state"
        content: dict[str, object] = {
            "port": free_port(),
            "quiet_seconds": 1e6,  # until a test says that a series is complete: a slow machine must not
            "retry_seconds": 0.2,
            "retry_longest": 0.5,
            "destinations": {"archive": peer.address},
            "rules": [{"name": "r", "modality": ["CT"], "model": "trained", "send": ["archive"]}],
            **changes,
        }
        (folder / "rules.json").write_text(json.dumps(content))
        self.rules = Listening.model_validate(content)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A listener in a thread."""
        stop, started = threading.Event(), threading.Event()
        listener = Listener(self.rules, self.state, Access(), STUB, look_every=0.05)
        faults: list[BaseException] = []

        def run() -> None:
            try:
                listener.run(stop, started=lambda port: started.set())
            except BaseException as fault:
                faults.append(fault)
                started.set()

        thread = threading.Thread(target=run)
        thread.start()
        assert started.wait(_PATIENCE)
        try:
            yield
        finally:
            stop.set()
            thread.join(_PATIENCE)
            assert not faults

    def send(self, series: str, numbers: range = range(2), **attributes: object) -> list[str | None]:
        """Send slices; gives the fault of each."""
        folder = self.folder / "in" / series
        folder.mkdir(parents=True, exist_ok=True)
        marks = {"SeriesInstanceUID": series, "SeriesDescription": series[-3:], "ImageComments": COMMENT}
        paths = [
            save_slice(folder / f"{n}.dcm", SOPInstanceUID=f"{series}.{n}", **{**marks, **attributes}) for n in numbers
        ]
        archive = open_archive(EntityAddress("MEDSEG", "127.0.0.1", self.rules.port), Access(timeout=10))
        faults = [fault for _, fault in archive.send(paths)]
        if faults == [None] * len(paths):
            self._falls_quiet(series)
        return faults

    def _falls_quiet(self, series: str) -> None:
        """Let the quiet period of a series be over."""
        base = sqlite3.connect(self.state / QUEUE_FILE, timeout=30)
        with base:
            base.execute("UPDATE series SET last = last - 1e6 WHERE uid = ? AND state = 'receiving'", (series,))
        base.close()

    def counts(self) -> dict[str, int]:
        """Jobs by state."""
        if not (self.state / QUEUE_FILE).exists():
            return {}
        queue = Queue(self.state / QUEUE_FILE)
        try:
            return queue.counts()
        finally:
            queue.close()

    def reaches(self, **counts: int) -> None:
        """Wait for these counts."""
        wanted = {"receiving": 0, **counts}
        _until(lambda: self.counts() == wanted, lambda: f"{self.counts()} instead of {wanted}")


def _until(holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.05)


def _uid(number: int) -> str:
    """Of a series; long enough to be made anew at the same length."""
    return f"1.2.826.{number + 10**20}"


def _images(peer: Peer) -> list[str]:
    """What the results say of the number of their images."""
    return sorted(held.ImageComments for held in peer.held.values())


def _results(peer: Peer) -> Counter[str]:
    """How many results the archive holds of each series."""
    return Counter(_uid(int(held.SeriesDescription)) for held in peer.held.values())


def test_series_are_segmented_and_sent_once(tmp_path: Path, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    hospital = Hospital(tmp_path, peer)
    caplog.set_level("INFO", "medseg")
    with hospital.listening():
        assert hospital.send(_uid(2)) + hospital.send(_uid(3)) == [None] * 4
        assert hospital.send(_uid(4), Modality="MR") == [None] * 2  # no rule fits it
        hospital.reaches(sent=2)
        assert hospital.send(_uid(2)) == [None] * 2  # the archive repeats itself
        (result,) = [each for each in peer.held.values() if each.SeriesDescription == "002"]
        path = tmp_path / "result.dcm"
        result.save_as(path, enforce_file_format=True)
        archive = open_archive(EntityAddress("MEDSEG", "127.0.0.1", hospital.rules.port), Access())
        assert list(archive.send([path])) == [(path, None)]  # and sends our own result back to us
        time.sleep(1.5)
    assert _results(peer) == {_uid(2): 1, _uid(3): 1}
    assert len(peer.arrivals) == 2
    assert hospital.counts() == {"receiving": 0, "sent": 2}
    assert hospital.state.stat().st_mode & 0o777 == 0o700
    told = caplog.text
    assert "job 1: segmented" in told
    for secret in (NAME, IDENTITY, _uid(2), str(result.SOPInstanceUID)):
        assert secret not in told
    names = " ".join(str(each) for each in hospital.state.rglob("*"))
    assert _uid(2) not in names


def test_an_archive_that_is_away_loses_nothing(tmp_path: Path, peer: Peer) -> None:
    hospital = Hospital(tmp_path, peer)
    with hospital.listening():
        peer.stop()
        hospital.send(_uid(2))
        hospital.reaches(segmented=1)
        queue = Queue(hospital.state / QUEUE_FILE)
        _until(lambda: "connection" in str(queue.listing()[0]["waiting"]), lambda: str(queue.listing()))
        queue.close()
    with hospital.listening():  # it is started again meanwhile
        peer.status = 0xA700
        peer.start()
        time.sleep(1.0)
        assert hospital.counts() == {"receiving": 0, "segmented": 1}
        peer.status = 0
        hospital.reaches(sent=1)
    assert _results(peer) == {_uid(2): 1}
    assert len(peer.arrivals) == 1


def test_a_file_whose_arrival_was_not_noted_is_not_sent_again(tmp_path: Path, peer: Peer) -> None:
    hospital = Hospital(tmp_path, peer)
    with hospital.listening():
        hospital.send(_uid(2))
        hospital.reaches(sent=1)
    queue = Queue(hospital.state / QUEUE_FILE)
    queue._base.execute("UPDATE jobs SET state = 'segmented'")
    queue._base.execute("UPDATE deliveries SET state = 'sending'")  # as if killed between the two
    queue.close()
    with hospital.listening():
        hospital.reaches(sent=1)
    assert len(peer.arrivals) == 1


@pytest.mark.parametrize(("model", "state"), [("untrained", "withheld"), ("refuses", "refused"), ("breaks", "failed")])
def test_what_must_not_be_sent_is_not(
    tmp_path: Path, peer: Peer, model: str, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    rule = {"name": "r", "modality": ["CT"], "model": model, "send": ["archive"]}
    hospital = Hospital(tmp_path, peer, rules=[rule], attempts=2)
    with hospital.listening():
        hospital.send(_uid(2))
        hospital.reaches(**{state: 1})
    assert peer.arrivals == []
    assert NAME not in caplog.text


def test_late_slices_are_segmented_with_the_others(tmp_path: Path, peer: Peer) -> None:
    hospital = Hospital(tmp_path, peer)
    with hospital.listening():
        hospital.send(_uid(2))
        hospital.reaches(sent=1)
        hospital.send(_uid(2), range(2, 5))
        hospital.reaches(sent=2)
    assert _images(peer) == ["images: 002", "images: 005"]


def test_a_full_disk_refuses_and_old_files_make_room(tmp_path: Path, peer: Peer) -> None:
    hospital = Hospital(tmp_path, peer, retention={"disk": 6000})
    with hospital.listening():
        big = bytes(1500)
        assert hospital.send(_uid(2), PixelData=big) == [None] * 2
        assert [fault and "0xA700" in fault for fault in hospital.send(_uid(3), PixelData=bytes(9000))] == [True] * 2
        hospital.reaches(sent=1)
        assert hospital.send(_uid(4), PixelData=big) == [None] * 2
        hospital.reaches(sent=2)
    assert _results(peer) == {_uid(2): 1, _uid(4): 1}


def test_files_go_when_their_time_is_over(tmp_path: Path, peer: Peer) -> None:
    hospital = Hospital(tmp_path, peer, retention={"sources_hours": 0, "results_days": 0})
    with hospital.listening():
        hospital.send(_uid(2))
        hospital.reaches(sent=1)
    with hospital.listening():
        _until(lambda: not list(hospital.state.rglob("*.dcm")), lambda: str(list(hospital.state.rglob("*.dcm"))))
        assert hospital.send(_uid(2)) == [None] * 2
        time.sleep(1.0)
    assert len(peer.arrivals) == 1


def test_only_one_listener_per_folder_and_port(tmp_path: Path, peer: Peer) -> None:
    hospital = Hospital(tmp_path, peer)
    with hospital.listening():
        with pytest.raises(UsageError, match="another is at work"):
            Listener(hospital.rules, hospital.state, Access(), STUB).run(threading.Event())
        with pytest.raises(UsageError, match="must be free"):
            Listener(hospital.rules, tmp_path / "other", Access(), STUB).run(threading.Event())


def test_strangers_are_turned_away(tmp_path: Path, peer: Peer) -> None:
    hospital = Hospital(tmp_path, peer, callers=["KNOWN"])
    with hospital.listening():
        with pytest.raises(MedsegError, match="refusal"):
            hospital.send(_uid(2))
        archive = open_archive(EntityAddress("MEDSEG", "127.0.0.1", hospital.rules.port), Access(title="KNOWN"))
        path = save_slice(tmp_path / "a.dcm")
        assert list(archive.send([path])) == [(path, None)]


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path: Path, peer: Peer) -> None:
    """kill -9 of the listener while it receives, segments and sends; the archive comes and goes."""
    chance = random.Random(20)
    hospital = Hospital(tmp_path, peer)
    every = [_uid(n) for n in range(8)]
    waiting = list(every)
    for round_ in range(5):
        with _process(hospital):
            deadline = time.monotonic() + chance.uniform(0.3, 3.5)
            while time.monotonic() < deadline:
                if waiting and _sent_whole(hospital, waiting[0]):
                    waiting.pop(0)
                time.sleep(0.02)
            peer.stop() if round_ % 2 else peer.stop() or peer.start()
    peer.stop()
    peer.start()
    with _process(hospital):
        for series in waiting:
            _until(lambda series=series: _sent_whole(hospital, series), lambda: "the listener takes nothing")
        hospital.reaches(sent=8)
    assert _results(peer) == dict.fromkeys(every, 1)
    assert set(_images(peer)) == {"images: 002"}
    assert len(peer.arrivals) == len(set(peer.arrivals))


def _sent_whole(hospital: Hospital, series: str) -> bool:
    try:
        return hospital.send(series) == [None, None]
    except MedsegError:
        return False


@contextmanager
def _process(hospital: Hospital) -> Iterator[None]:
    """A listener in a process that is killed at the end."""
    program = Path(str(listen_with_stub.__file__))
    with (hospital.folder / "log").open("ab") as log:
        process: subprocess.Popen[Any] = subprocess.Popen(
            [sys.executable, program, hospital.folder / "rules.json", hospital.state],
            stdout=subprocess.PIPE,
            stderr=log,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline(), (hospital.folder / "log").read_text()[-2000:]
            yield
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close() if process.stdout else None
