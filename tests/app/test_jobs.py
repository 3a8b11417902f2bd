"""Jobs of the web application: turns, progress, cancelling, death of workers and servers, folders."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import stub_job_worker
from medseg.errors import InputRefused
from medseg_app.jobs.store import Limits, Store, TooLarge
from medseg_app.jobs.supervisor import Bounds, Supervisor
from medseg_app.jobs.table import Job, Table

STUB = (sys.executable, "-I", stub_job_worker.__file__)


class Place:
    """A server's jobs without the server; it can be stopped and opened again."""

    def __init__(self, home: Path, **bounds: int) -> None:
        home.mkdir(exist_ok=True)
        self.table = Table(home / "jobs.sqlite")
        self.store = Store(home, self.table, Limits())
        self.ended: list[Job] = []
        self.supervisor = Supervisor(self.table, self.store, Bounds(**bounds), command=STUB, ended=self.ended.append)

    def add(self, do: str, owner: str = "ann", kind: str = "run") -> Job:
        upload = self.table.add_upload(owner, "head.nii.gz")
        return self.table.add_job(owner, upload.id, kind, {"do": do})

    def wait(self, job: Job, *states: str) -> Job:
        for _ in range(400):
            now = self.table.find(job.id)
            assert now is not None
            if now.state in (states or ("done", "failed", "refused", "cancelled")):
                return now
            time.sleep(0.025)
        raise AssertionError(f"job stayed {now}")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "home")
    yield made
    made.supervisor.stop()


def test_owners_take_turns(place: Place) -> None:
    ann = [place.add("finish").id for _ in range(3)]
    bob = [place.add("finish", "bob").id for _ in range(2)]
    assert place.table.queue(["run"]) == [ann[0], bob[0], ann[1], bob[1], ann[2]]
    first = place.table.claim(["run"])
    assert first is not None
    assert first.id == ann[0]
    assert place.table.queue(["run"]) == [bob[0], ann[1], bob[1], ann[2]], "who is being served comes last"
    assert place.table.queue(["check"]) == []


def test_nobody_sees_the_work_of_others(place: Place) -> None:
    job = place.add("finish")
    assert place.table.job("ann", job.id) == job
    assert place.table.job("bob", job.id) is None
    assert place.table.upload("bob", job.upload) is None
    assert place.table.jobs("bob") == []
    assert not place.table.cancel("bob", job.id)
    assert place.table.cancel("ann", job.id)


def test_results_refusals_and_deaths(place: Place) -> None:
    expected = {
        "finish": ("done", ""),
        "refuse": ("refused", "image is not what the model was made for"),
        "die once": ("done", ""),
        "die after the result": ("done", ""),
        "die": ("failed", "the worker stopped without an answer, three times; the image may need too much memory"),
    }
    jobs = {do: place.add(do) for do in expected}
    place.supervisor.start()
    for do, job in jobs.items():
        ended = place.wait(job)
        assert (ended.state, ended.reason) == expected[do], do
        assert (place.store.result(job.id) is not None) == (ended.state == "done")
        assert ended.attempts == {"die": 3, "die once": 2}.get(do, 1)
    place.supervisor.stop()
    assert sorted(job.id for job in place.ended) == sorted(job.id for job in jobs.values())


def test_cancelling_frees_the_worker(place: Place) -> None:
    running, waiting = place.add("sleep"), place.add("finish")
    place.supervisor.start()
    at = place.wait(running, "running")
    while at.stage != "segmenting":
        at = place.wait(running, "running")
    assert (at.done, at.total, at.seconds_left) == (1, 4, 3.0)
    pids = {worker.pid for worker in place.supervisor.workers()}
    assert place.table.cancel("ann", running.id)
    assert place.wait(running).state == "cancelled"
    assert place.wait(waiting).state == "done", "a new worker takes the next job"
    gone = pids - {worker.pid for worker in place.supervisor.workers()}
    assert len(gone) == 1
    assert not Path(f"/proc/{gone.pop()}").exists()
    assert not place.store.job_folder(running.id).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the memory of another process")
def test_a_worker_that_takes_too_much_memory_is_stopped(tmp_path: Path) -> None:
    place = Place(tmp_path / "home", memory=100 << 20)
    job = place.add("grow")
    place.supervisor.start()
    ended = place.wait(job)
    place.supervisor.stop()
    assert ended.state == "refused"
    assert "more than the 0.1 GB" in ended.reason


def test_a_new_server_goes_on(tmp_path: Path) -> None:
    place = Place(tmp_path / "home")
    cut_off, finished, cancelled = (place.add("finish", who) for who in ("ann", "bob", "cy"))
    for _ in range(3):
        place.table.claim(["run"])
    stub_job_worker.write(_made(place.store.job_folder(finished.id)))
    (_made(place.store.job_folder(cut_off.id)) / "half").touch()
    place.table.cancel("cy", cancelled.id)
    place.table.close()  # the server is killed here

    again = Place(tmp_path / "home")
    again.supervisor.start()
    before = (again.store.job_folder(finished.id) / "result").stat().st_mtime_ns
    assert again.wait(finished).state == "done"
    assert again.wait(cut_off).state == "done"
    assert again.wait(cancelled).state == "cancelled"
    again.supervisor.stop()
    assert (again.store.job_folder(finished.id) / "result").stat().st_mtime_ns == before, "not computed again"
    assert not (again.store.job_folder(cut_off.id) / "half").exists()


def test_a_stopped_server_keeps_the_job(tmp_path: Path) -> None:
    place = Place(tmp_path / "home")
    job = place.add("sleep")
    place.supervisor.start()
    place.wait(job, "running")
    place.supervisor.stop()
    kept = place.table.find(job.id)
    assert kept is not None
    assert (kept.state, kept.attempts) == ("queued", 0), "a restart is not the fault of the job"


async def _pieces(*content: bytes) -> AsyncIterator[bytes]:
    for piece in content:
        yield piece


def test_uploads_are_bounded_and_have_neutral_names(tmp_path: Path) -> None:
    table = Table(tmp_path / "jobs.sqlite")
    store = Store(tmp_path, table, Limits(upload_bytes=100, disk_bytes=150))
    upload = table.add_upload("ann", "Doe^Jane.nii.gz")
    asyncio.run(store.receive(upload.id, "../../Doe^Jane.NII.gz", _pieces(b"x" * 30, b"y" * 30)))
    assert [path.name for path in store.upload_folder(upload.id).iterdir()] == ["image000000.nii.gz"]
    with pytest.raises(TooLarge, match="at most 1e-07 GB"):
        asyncio.run(store.receive(upload.id, "b.dcm", _pieces(b"x" * 60)))
    other = table.add_upload("bob", "b")
    asyncio.run(store.receive(other.id, "IM0001", _pieces(b"x" * 90)))
    (store.passing / "x").write_bytes(b"x" * 10)  # what Gradio keeps counts too
    with pytest.raises(TooLarge, match="used up"):
        asyncio.run(store.receive(table.add_upload("bob", "c").id, "1.2.840", _pieces(b"x")))
    with pytest.raises(InputRefused, match=r"got '\.exe'"):
        asyncio.run(store.receive(upload.id, "run.exe", _pieces(b"x")))
    assert sorted(path.name for path in store.upload_folder(other.id).iterdir()) == ["image000000.dcm"]
    with pytest.raises(ValueError, match="32 hexadecimal"):
        store.job_folder("../../etc")


def test_old_work_is_removed(tmp_path: Path) -> None:
    place = Place(tmp_path / "home")
    old, working = place.add("finish"), place.add("finish")
    _made(place.store.job_folder(old.id))
    _made(place.store.upload_folder(old.upload))
    stray = _made(place.store.job_folder("0" * 32))
    os.utime(stray, (0, 0))
    os.utime(_made(place.store.passing / "old"), (0, 0))
    place.table.claim(["run"])
    place.table.end(old.id, "done")
    assert place.store.sweep(time.time() + 71 * 3600) == 0
    assert not stray.exists()
    assert not (place.store.passing / "old").exists()
    assert place.store.sweep(time.time() + 73 * 3600) == 1
    assert not place.store.job_folder(old.id).exists()
    assert not place.store.upload_folder(old.upload).exists()
    assert [job.id for job in place.table.jobs()] == [working.id]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
