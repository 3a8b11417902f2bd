"""The web application inside the process of a test, with small models, and its visitors."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

import stub_job_worker
from medseg_app.server import site
from medseg_app.server.guard import LOOPBACK
from medseg_app.server.place import Place, Settings

ADDRESS = "http://127.0.0.1:7860"
STUB = (sys.executable, "-I", stub_job_worker.__file__)


@contextmanager
def served(home: Path, **more: Any) -> Iterator[tuple[Any, Place]]:
    """The application and what it stands on, running; `more` are fields of `Settings`."""
    guard, place = site.build_site(Settings(home=home, hosts=LOOPBACK, worker=STUB, **more))
    with TestClient(guard, base_url=ADDRESS):
        yield guard, place


def until_ended(user: TestClient, path: str) -> dict[str, Any]:
    """What a job or a retrieval says once it has ended."""
    told: dict[str, Any] = {}
    for _ in range(400):
        told = user.get(f"/api/v1/{path}").json()
        if told["ended"] is not None:
            return told
        time.sleep(0.05)
    raise AssertionError(told)
