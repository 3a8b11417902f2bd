"""Build the image of docker/Dockerfile and try it, without an engine: as root on Linux, with buildah and debootstrap.

`make image` runs it. The base is the one that the Dockerfile names, or, where no registry answers, a Debian of the same
release made by debootstrap. What is tried inside stands in inside.py; it runs as the user that the image names, on a
read-only root, without a network, with no more right than compose.yaml gives. All that was made is removed at the end;
`--save FILE` keeps the image for `docker load`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NEEDED = ("buildah", "debootstrap", "unshare", "ip", "setpriv")
DISK = 12 << 30  # bytes; the image takes a sixth of it, its layers are written more than once
PULL = 60  # seconds
TAG = "medseg"

# What an engine prepares for a container: the directories that it may write to, and none beside them.
_ENTER = """
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
mount -t tmpfs -o mode=1777,size=2g tmp "$ROOT/tmp"
mount -t tmpfs -o mode=755,size=1m run "$ROOT/run"
mount -t tmpfs -o mode=755,size=64m dev "$ROOT/dev"
mkdir -m 1777 "$ROOT/dev/shm"
for node in null zero random urandom; do touch "$ROOT/dev/$node"; mount --bind "/dev/$node" "$ROOT/dev/$node"; done
mount --bind "$DATA" "$ROOT/data"
cp "$INSIDE" "$ROOT/run/inside.py"
mount -o remount,bind,ro "$ROOT"
ip link set lo up
exec env -i "$@"
"""


def main() -> int:
    """Build, try, clean up; 0 where all of it went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", type=Path, help="keep the image in this file, for `docker load`")
    save = parser.parse_args().save
    _check_machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was made is removed then too
    with tempfile.TemporaryDirectory(prefix="medseg-image-", dir="/var/tmp", ignore_cleanup_errors=True) as name:
        builder = Builder(Path(name))
        try:
            base = builder.base()
            builder.build(base)
            if save is not None:
                builder.save(save)
            builder.test()
        finally:
            builder.remove()
    print("image: built and tried, all went well")
    return 0


def _check_machine() -> None:
    """Stop with one line where the machine cannot do it."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"image: {', '.join(missing)} must be installed; `make image` does so on Debian and Ubuntu")
    if os.geteuid() != 0:
        raise SystemExit("image: must run as root, for debootstrap and mounts; use sudo")
    free = shutil.disk_usage("/var/tmp").free
    if free < DISK:
        raise SystemExit(f"image: /var/tmp must have {DISK >> 30} GiB free, it has {free >> 30}; make room")


class Builder:
    """buildah on a store of its own.

    Args:
        folder: Everything is made in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {**os.environ, "TMPDIR": str(folder), "BUILDAH_ISOLATION": "chroot"}
        self._driver = "overlay"
        if self._run("info", check=False, quiet=True).returncode:
            self._driver = "vfs"  # a full copy per layer, but every kernel has it
        print(f"image: isolation chroot, storage {self._driver}", flush=True)

    def base(self) -> str:
        """The name of a base image, pulled or made."""
        dockerfile = (HERE / "Dockerfile").read_text(encoding="utf-8")
        named = re.search(r"^ARG BASE_IMAGE=(\S+)$", dockerfile, re.MULTILINE)
        assert named is not None, "docker/Dockerfile names no BASE_IMAGE"
        with _timed(f"base {named[1]}"):
            try:
                if self._run("pull", f"docker://docker.io/library/{named[1]}", check=False, limit=PULL).returncode == 0:
                    return named[1]
            except subprocess.TimeoutExpired:
                pass
            print("image: no registry answers; the base is made with debootstrap", flush=True)
            return self._debian(named[1].rpartition("-")[2])

    def _debian(self, release: str) -> str:
        root = self._folder / "debian"
        wanted = "python3,python3-venv,ca-certificates"
        command = ["debootstrap", "--variant=minbase", f"--include={wanted}", release, str(root)]
        hurried = {**os.environ, "DPKG_FORCE": "unsafe-io"}  # no wait for the disk after every file
        done = subprocess.run(command, env=hurried, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"image: debootstrap failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        container = self._run("from", "scratch", quiet=True).stdout.strip()
        self._run("add", "--quiet", container, str(root), "/", quiet=True)
        self._run("commit", "--quiet", "--rm", container, "medseg-base", quiet=True)
        shutil.rmtree(root)
        return "localhost/medseg-base"

    def build(self, base: str) -> None:
        """The image, from the Dockerfile that everybody uses.

        Args:
            base: Name of the base image.
        """
        arguments = ["--build-arg", f"BASE_IMAGE={base}"]
        for name in ("PIP_FIND_LINKS", "PIP_CERT"):
            path = os.environ.get(name, "")
            if Path(path).is_absolute() and Path(path).exists():  # of this machine, so the build has to see it
                arguments += ["--build-arg", f"{name}={path}", "--volume", f"{path}:{path}:ro"]
        with _timed("build"):
            recipe = ("--file", str(HERE / "Dockerfile"), str(HERE.parent))
            self._run("build", "--format", "docker", "--layers=false", "--quiet", *arguments, "--tag", TAG, *recipe)

    def save(self, path: Path) -> None:
        """The image as one file."""
        with _timed(f"save {path.name}"):
            path.unlink(missing_ok=True)
            self._run("push", "--quiet", TAG, f"docker-archive:{path.resolve()}:{TAG}:latest")

    def test(self) -> None:
        """Run inside.py in the image as compose.yaml would run the server.

        Raises:
            SystemExit: Something inside is not as it should be.
        """
        config = self._config()
        container = self._run("from", "--pull-never", TAG, quiet=True).stdout.strip()
        root = self._run("mount", container, quiet=True).stdout.strip()
        data = self._folder / "data"
        data.mkdir()
        user, _, group = config["User"].partition(":")
        os.chown(data, int(user), int(group))
        asked = json.dumps({"serve": config["Entrypoint"] + config["Cmd"], "health": config["Healthcheck"]["Test"][1:]})
        rights = "--clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
        identity = ["setpriv", "--reuid", user, "--regid", group, *rights.split()]
        inside = ["chroot", root, *identity, "python3", "/run/inside.py", asked]
        spaces = ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"]
        with _timed("trial inside"):
            done = subprocess.run(
                [*spaces, "sh", "-c", _ENTER, "enter", *config["Env"], *inside],
                env={**os.environ, "ROOT": root, "DATA": str(data), "INSIDE": str(HERE / "inside.py")},
                check=False,
                stdin=subprocess.DEVNULL,
            )
        if done.returncode:
            raise SystemExit("image: the trial inside failed, see above")

    def _config(self) -> dict[str, Any]:
        """What the image says about itself, with its size printed."""
        told = json.loads(self._run("inspect", "--type", "image", TAG, quiet=True).stdout)
        size = json.loads(self._run("images", "--json", TAG, quiet=True).stdout)[0]["size"]
        print(f"image: {size}, user {told['Docker']['config']['User']}", flush=True)
        return told["Docker"]["config"]

    def remove(self) -> None:
        """Containers and images; the folder itself is the caller's."""
        self._run("rm", "--all", check=False, quiet=True)
        self._run("rmi", "--all", "--force", check=False, quiet=True)
        shutil.rmtree(self._folder / "store", ignore_errors=True)

    def _run(
        self, *arguments: str, check: bool = True, quiet: bool = False, limit: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One call of buildah; with `quiet` its output is taken, without it is shown."""
        store, run = self._folder / "store", self._folder / "run"
        command = ["buildah", "--root", str(store), "--runroot", str(run), "--storage-driver", self._driver, *arguments]
        done = subprocess.run(
            command, env=self._environment, capture_output=quiet, text=True, check=False, timeout=limit
        )
        if check and done.returncode:
            raise SystemExit(f"image: `buildah {arguments[0]}` failed\n{(done.stderr or '')[-2000:]}")
        return done


@contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"image: {what}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
