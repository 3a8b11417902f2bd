"""A worker ends when it must: with its answer, at its limit, when told to, or with the listener that dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dicom_made_up import save_slice
from listen_with_stub import STUB
from medseg_pipelines.pacs import bound
from medseg_pipelines.pacs.rules import Rule
from medseg_pipelines.pacs.worker import Answer, Stopped, segment


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with one slice."""
    folder = tmp_path / "images"
    folder.mkdir()
    save_slice(folder / "a.dcm", SeriesInstanceUID="1.2.826.5", SOPInstanceUID="1.2.826.5.1")
    return folder


def _segment(images: Path, model: str, *, limit: float = 60, stop: bool = False) -> Answer:
    event = threading.Event()
    if stop:
        event.set()
    rule = Rule(name="r", modality=("CT",), model=model)
    return segment(STUB, rule, images, images.parent / "result", limit=limit, stop=event)


def test_answers(images: Path) -> None:
    assert _segment(images, "trained") == Answer(code=0, reason="")
    assert (images.parent / "result" / "seg.dcm").is_file()
    refused = _segment(images, "refuses")
    assert (refused.refused, refused.reason) == (True, "the image is not what the model was made for")
    broken = _segment(images, "breaks")
    assert (broken.refused, broken.reason) == (False, "the worker ended with code 1")


def test_a_limit_and_a_stop_end_it(images: Path) -> None:
    assert "longer" in _segment(images, "sleeps", limit=0.3).reason
    with pytest.raises(Stopped):
        _segment(images, "sleeps", stop=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of the death of its parent")
def test_it_dies_with_its_parent() -> None:
    program = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, '-I', {bound.__file__!r}, str(os.getpid()), 'sleep', '600']\n"
        "print(subprocess.Popen(command).pid, flush=True)\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    _until(lambda: b"sleep" in _command(child))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _until(lambda: b"sleep" not in _command(child))


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)
