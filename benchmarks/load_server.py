"""Eight users with three jobs each, while worker and server are killed: is every result right, private, and there?

`python benchmarks/load_server.py` starts a server of its own with a tiny model, lets every user bring an image of his
own, kills a worker and then the server with SIGKILL in the middle of the work, starts it again, and compares every
result with what the model gives in this process. It prints what it found, and ends with 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from medseg import io
from medseg_pipelines.case import hash_volume
from medseg_pipelines.load import load_model
from tiny_model import build_tiny_model, head

USERS, JOBS = 8, 3
LONGEST = 1500.0  # seconds


class Server:
    """A server process that can be killed and started again on the same folder."""

    def __init__(self, home: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._environment = {**os.environ, "MEDSEG_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self._arguments = [sys.executable, "-m", "medseg_app", "serve", "--port", str(self.port), "--memory", "3GB"]
        self._log = log.open("wb")

    def start(self) -> None:
        """Start, and wait until it takes work."""
        self.process = subprocess.Popen(self._arguments, env=self._environment, stdout=self._log, stderr=self._log)
        for _ in range(2400):
            try:
                if httpx.get(f"{self.address}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit("the server did not start")

    def kill(self) -> None:
        """SIGKILL, as the kernel would do it."""
        self.process.kill()
        self.process.wait()

    def workers(self) -> list[int]:
        """Its worker processes."""
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(entry.read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, ValueError):
                continue
            if parent == self.process.pid:
                found.append(int(entry.parent.name))
        return found

    def memory(self) -> int:
        """Bytes of the server and its workers now."""
        total = 0
        for pid in (self.process.pid, *self.workers()):
            try:
                total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            except OSError:
                continue
        return total


class User:
    """A visitor with an image of his own."""

    def __init__(self, number: int, address: str, folder: Path) -> None:
        self.image = folder / f"user{number}.nii.gz"
        volume = head()
        noise = np.random.default_rng(number).normal(scale=20, size=volume.shape)
        io.write(volume.with_voxels((volume.voxels + noise).astype(np.int16)), self.image)
        self._client = httpx.Client(base_url=f"{address}/api/v1", timeout=60)
        self.jobs: list[str] = []

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A request, repeated while there is no server."""
        for _ in range(3000):
            try:
                return self._client.request(method, path, **more)
            except httpx.TransportError:
                time.sleep(0.2)
        raise SystemExit("the server does not answer")

    def begin(self) -> None:
        """Bring the image and ask for all jobs."""
        for _ in range(JOBS):
            upload = self.ask("POST", "/uploads", json={"name": self.image.name}).json()["id"]
            headers = {"X-File-Name": self.image.name}
            self.ask("PUT", f"/uploads/{upload}/files", content=self.image.read_bytes(), headers=headers)
            job = self.ask("POST", "/jobs", json={"upload": upload, "model": "tiny"}).json()
            self.jobs.append(job["id"])

    def state(self, job: str) -> dict[str, Any]:
        """How a job stands."""
        return self.ask("GET", f"/jobs/{job}").json()


def main() -> int:
    """Run the load and print what came of it."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "home" / "models" / "tiny").mkdir(parents=True)
        model = build_tiny_model(folder / "home" / "models" / "tiny")
        server = Server(folder / "home", folder / "log")
        users = [User(number, server.address, folder) for number in range(USERS)]
        run = load_model(model)
        expected = [hash_volume(run(user.image).volume) for user in users]
        server.start()
        found = _load(server, users)
        problems = _compare(users, expected)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    print(json.dumps({**found, "wrong": problems}, indent=2))
    return 1 if problems else 0


def _load(server: Server, users: list[User]) -> dict[str, Any]:
    """Let all users work at once, with a killing of a worker and one of the server in between."""
    started = time.monotonic()
    threads = [threading.Thread(target=user.begin) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    peak, kills = 0, {"worker": USERS * JOBS // 4, "server": USERS * JOBS // 2}
    while (done := _done(users)) < USERS * JOBS and time.monotonic() - started < LONGEST:
        peak = max(peak, server.memory())
        if done >= kills.get("worker", 1000):
            del kills["worker"]
            for pid in server.workers():
                os.kill(pid, signal.SIGKILL)
        if done >= kills.get("server", 1000):
            del kills["server"]
            server.kill()
            server.start()
        time.sleep(0.5)
    seconds = time.monotonic() - started
    return {
        "users": USERS, "jobs": USERS * JOBS, "done": _done(users), "killed": "workers once, server once",
        "seconds": round(seconds, 1), "peak_memory_mb": round(peak / 1e6),
    }  # fmt: skip


def _done(users: list[User]) -> int:
    return sum(user.state(job)["state"] == "done" for user in users for job in user.jobs)


def _compare(users: list[User], expected: list[str]) -> list[str]:
    """What is wrong: a lost job, a result of another image, a job that a stranger sees."""
    problems = []
    for number, (user, digest) in enumerate(zip(users, expected, strict=True)):
        for job in user.jobs:
            if user.state(job)["state"] != "done":
                problems.append(f"user {number}: a job ended as {user.state(job)}")
                continue
            told = user.ask("GET", f"/jobs/{job}/result").json()["manifest"]
            if told["output"]["voxels_sha256"] != digest:
                problems.append(f"user {number}: a result differs from what the model gives here")
            strangers = [one for one in users if one is not user and one.ask("GET", f"/jobs/{job}").status_code != 404]
            if strangers:
                problems.append(f"user {number}: {len(strangers)} others see a job")
        if len(user.ask("GET", "/uploads").json()) != JOBS:
            problems.append(f"user {number}: expected {JOBS} uploads in the history")
    return problems


if __name__ == "__main__":
    sys.exit(main())
