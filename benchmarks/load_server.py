"""Eight users with three jobs each, while worker and server are killed: is every result right, private, and there?

`python benchmarks/load_server.py` starts a server of its own, lets every user bring an image of his own, kills all
workers and then the server with SIGKILL in the middle of the work, starts it again, and compares every result with what
the model gives in this process. The model is a tiny one; `--data FOLDER` takes real heads from a data pack and the
models that ship, two runs at once. It prints what it found, and ends with 1 where anything was wrong.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from medseg import io
from medseg.volume import Volume
from medseg_pipelines.case import hash_file, hash_volume
from medseg_pipelines.load import load_model
from tiny_model import build_tiny_model, head

USERS, JOBS = 8, 3
LONGEST = 2400.0  # seconds
TINY = ("tiny", "tiny", "tiny")
REAL = ("mr-denoise", "brain-structures", "mr-denoise")
HEADS = ("t1_ps11_norm.mgz", "t1gd_skullstripped.nii.gz", "flair.nii.gz", "t2_m2208.nii.gz")
CUT = (72, 72, 12)  # voxels of a real image


class Server:
    """A server process that can be killed and started again on the same folder."""

    def __init__(self, home: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.jobs = home / "serve" / "jobs"
        self._environment = {**os.environ, "MEDSEG_HOME": str(home), "OMP_NUM_THREADS": "1"}
        options = ("--port", str(self.port), "--memory", "3GB", "--runs", "2")
        self._arguments = [sys.executable, "-m", "medseg_app", "serve", *options]
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


def resident(pid: int) -> int:
    """Bytes that a process holds now."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class User:
    """A visitor with an image of his own.

    Args:
        address: Of the server.
        image: The file that he brings, once for each job.
        models: One for each job.
    """

    def __init__(self, address: str, image: Path, models: tuple[str, ...]) -> None:
        self.image, self.models = image, models
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
        for model in self.models:
            upload = self.ask("POST", "/uploads", json={"name": self.image.name}).json()["id"]
            headers = {"X-File-Name": self.image.name}
            self.ask("PUT", f"/uploads/{upload}/files", content=self.image.read_bytes(), headers=headers)
            wish = {"upload": upload, "model": model, "confirmed": True}
            self.jobs.append(self.ask("POST", "/jobs", json=wish).json()["id"])

    def state(self, job: str) -> dict[str, Any]:
        """How a job stands."""
        return self.ask("GET", f"/jobs/{job}").json()

    def finished(self) -> list[str]:
        """His jobs that are done."""
        return [job for job in self.jobs if self.state(job)["state"] == "done"]


@dataclass
class Watch:
    """What is seen while the users work.

    Attributes:
        server: Most bytes that the server held.
        workers: Most bytes that all workers together held.
        problems: What must not be.
    """

    server: int = 0
    workers: int = 0
    problems: list[str] = field(default_factory=list)

    def look(self, server: Server) -> None:
        """Note what the processes hold now."""
        self.server = max(self.server, resident(server.process.pid))
        self.workers = max(self.workers, sum(map(resident, server.workers())))


def main() -> int:
    """Run the load and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="a data pack with heads under volumes/, for the models that ship")
    data = parser.parse_args().data
    torch.set_num_threads(1)  # as the server below has it: sums in another order differ in the last bit
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = _models(folder / "home", real=data is not None)
        server = Server(folder / "home", folder / "log")
        named = TINY if data is None else REAL
        images = [_image(number, folder, data) for number in range(USERS)]
        users = [User(server.address, image, named) for image in images]
        expected = {(user, model): hash_volume(run(user.image, force_scope=True).volume)
                    for model, run in models.items() for user in users}  # fmt: skip
        del models
        server.start()
        watch = Watch()
        started = time.monotonic()
        _load(server, users, watch)
        seconds = time.monotonic() - started
        told = _compare(users, expected, watch)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
    print(json.dumps({**told, "seconds": round(seconds, 1), "wrong": watch.problems}, indent=2))
    return 1 if watch.problems else 0


def _models(home: Path, *, real: bool) -> dict[str, Any]:
    """The models that the users want, loaded in this process; the tiny one is put where the server finds it."""
    (home / "models").mkdir(parents=True)
    if real:
        return {name: load_model(name) for name in dict.fromkeys(REAL)}
    (home / "models" / "tiny").mkdir()
    return {"tiny": load_model(build_tiny_model(home / "models" / "tiny"))}


def _image(number: int, folder: Path, data: Path | None) -> Path:
    """An image that no other user has: a ball with noise of its own, or a block from the middle of a real head."""
    path = folder / f"user{number}.nii.gz"
    if data is None:
        volume = head()
        noise = np.random.default_rng(number).normal(scale=20, size=volume.shape)
        io.write(volume.with_voxels((volume.voxels + noise).astype(np.int16)), path)
        return path
    whole = io.read(data / "volumes" / HEADS[number % len(HEADS)])
    moved = -4 if number < len(HEADS) else 4  # voxels: two users share a head, but not the block
    first = [(size - cut) // 2 + moved for size, cut in zip(whole.shape, CUT, strict=True)]
    block = tuple(slice(start, start + cut) for start, cut in zip(first, CUT, strict=True))
    affine = whole.affine.copy()
    affine[:3, 3] = (whole.affine @ np.array([*first, 1.0]))[:3]
    io.write(Volume(np.ascontiguousarray(whole.voxels[block]).astype(np.float32), affine), path)
    return path


def _load(server: Server, users: list[User], watch: Watch) -> None:
    """Let all users work at once; kill every worker when a quarter is done, the server when half is."""
    until = time.monotonic() + LONGEST
    threads = [threading.Thread(target=user.begin) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kills = {_kill_workers: USERS * JOBS // 4, _kill_server: USERS * JOBS // 2}
    while (done := sum(len(user.finished()) for user in users)) < USERS * JOBS and time.monotonic() < until:
        watch.look(server)
        for kill in [kill for kill, at in kills.items() if done >= at]:
            del kills[kill]
            kill(server, users, watch)
        time.sleep(0.5)
    if kills:
        watch.problems.append("too little was done for every killing to take place")


def _kill_workers(server: Server, users: list[User], watch: Watch) -> None:
    for pid in server.workers():
        os.kill(pid, signal.SIGKILL)


def _kill_server(server: Server, users: list[User], watch: Watch) -> None:
    """Kill it, look at what it leaves, start it again: what was finished still is."""
    finished = {job for user in users for job in user.finished()}
    server.kill()
    for result in server.jobs.glob("*/result"):
        manifest = result / "manifest.json"
        named = json.loads(manifest.read_text())["files"] if manifest.is_file() else {"manifest.json": ""}
        if any(not (result / name).is_file() or hash_file(result / name)[0] != sha for name, sha in named.items()):
            watch.problems.append("a half result was left")
    server.start()
    lost = finished - {job for user in users for job in user.finished()}
    if lost:
        watch.problems.append(f"{len(lost)} finished results were lost")


def _compare(users: list[User], expected: dict[tuple[User, str], str], watch: Watch) -> dict[str, Any]:
    """Figures; what is wrong goes to the watch: a lost job, a result of another image, a job that a stranger sees."""
    done = right = private = 0
    waits = []
    for number, user in enumerate(users):
        for job, model in zip(user.jobs, user.models, strict=True):
            now = user.state(job)
            done += now["state"] == "done"
            if now["state"] != "done":
                watch.problems.append(f"user {number}: a job ended as {now['state']}: {now['reason']}")
                continue
            waits.append(now["ended"] - now["created"])
            told = user.ask("GET", f"/jobs/{job}/result").json()["manifest"]
            right += told["output"]["voxels_sha256"] == expected[user, model]
            private += all(_hidden(one, job) for one in users if one is not user)
        if len(user.ask("GET", "/uploads").json()) != JOBS:
            watch.problems.append(f"user {number}: expected {JOBS} uploads in the history")
    for what, count in (("right", right), ("private", private)):
        if count != USERS * JOBS:
            watch.problems.append(f"{USERS * JOBS - count} results are not {what}")
    return {
        "users": USERS, "jobs": USERS * JOBS, "done": done, "right": right, "private": private,
        "killed": "workers once, server once", "longest_wait_s": round(max(waits, default=0.0), 1),
        "peak_server_mb": round(watch.server / 1e6), "peak_workers_mb": round(watch.workers / 1e6),
    }  # fmt: skip


def _hidden(stranger: User, job: str) -> bool:
    """Whether somebody else finds nothing of a job."""
    paths = ("", "/result", "/archive", "/files/manifest.json")
    return all(stranger.ask("GET", f"/jobs/{job}{path}").status_code == 404 for path in paths)


if __name__ == "__main__":
    sys.exit(main())
