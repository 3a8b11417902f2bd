"""What `make image` tries in the image: its rights, `medseg doctor`, one inference, the server and its health check.

Runs in the container as its user, with the Python of the image. Its argument is JSON: `serve`, the command that the
image starts, and `health`, the one that tells whether it is well. Exits with 1 at the first thing that is not so.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ADDRESS = "http://127.0.0.1:7860"
START = 180  # seconds
VOLUME, RESULT = Path("/tmp/volume.nii.gz"), Path("/tmp/result")


def main() -> None:
    """Everything, in order."""
    asked = json.loads(sys.argv[1])
    _rights()
    _say("doctor", _run("medseg", "doctor"))
    _inference()
    _server(asked["serve"], asked["health"])


def _rights() -> None:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    _must(os.getuid() != 0 and os.getgid() != 0, "the user is not root")
    _must(int(status["CapBnd"], 16) == 0 and status["NoNewPrivs"] == "1", "no rights, and none to be had")
    _must(bool(os.statvfs("/").f_flag & os.ST_RDONLY), "the root file system is read-only")
    cards = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
    _must(cards == ["lo"], "no network but the loopback")
    import medseg

    _must(Path(medseg.__file__).is_relative_to("/opt/medseg"), "medseg is installed, there is no checkout")


def _inference() -> None:
    """A made-up head in voxels of 3 by 3 by 4 mm, turned a little, through the model that ships."""
    import nibabel
    import numpy as np

    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (56, 64, 45)), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    noise = np.random.default_rng(0).normal(size=radius.shape)
    voxels = np.where(radius < 0.8, 600 + 100 * np.cos(6 * radius) + 20 * noise, 5 * np.abs(noise)).astype(np.int16)
    turned = np.array([[0.98, -0.199, 0], [0.199, 0.98, 0], [0, 0, 1]]) @ np.diag([3.0, 3.0, 4.0])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned, (-70, -95, -85)
    nibabel.Nifti1Image(voxels, affine).to_filename(VOLUME)
    _say("inference", _run("medseg", "infer", str(VOLUME), "-m", "brain-structures", "-o", str(RESULT)))
    labels = nibabel.Nifti1Image.from_filename(RESULT / "labels.nii.gz")
    _must(labels.shape == voxels.shape, "the label map has the shape of the volume")
    _must(np.allclose(labels.affine, affine, atol=1e-4), "the label map lies where the volume lies")
    counts = np.unique(np.asarray(labels.dataobj), return_counts=True)
    _say("inference", f"labels and voxels: {dict(zip(counts[0].tolist(), counts[1].tolist(), strict=True))}")
    _must(len(counts[0]) > 1, "something is labelled")


def _server(serve: list[str], health: list[str]) -> None:
    accounts = Path("/run/secrets/medseg-accounts")
    _must(str(accounts) in serve, "the server asks for a login by itself")
    made = Path("/data/accounts")
    _run("medseg", "account", str(made), "doctor", given="a long password\n" * 2)
    # The engine would lay the secret into /run; here the same command gets the file from the volume.
    command = [str(made) if part == str(accounts) else part for part in serve]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as server:
        try:
            _wait(server, health)
            _say("server", f"well by its health check: {' '.join(health)[:60]}...")
            for path in ("/", "/api/v1/models", "/gradio_api/info", "/config", "/metrics"):
                _must(_status(path) in (303, 401), f"{path} wants a login")
        finally:
            server.terminate()
    _must(server.returncode in (0, -15), f"the server ends when asked to, with {server.returncode}")


def _wait(server: subprocess.Popen[bytes], health: list[str]) -> None:
    until = time.monotonic() + START
    while subprocess.run(health, capture_output=True, check=False).returncode:
        _must(server.poll() is None and time.monotonic() < until, "the server starts", silent=True)
        time.sleep(0.5)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Shows a redirection instead of following it."""

    def redirect_request(self, *_: object) -> None:
        """None: there is nothing to follow."""


def _status(path: str) -> int:
    try:
        return urllib.request.build_opener(_Stay).open(ADDRESS + path, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def _run(*command: str, given: str = "") -> str:
    """What a command prints; ends the trial where it fails."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    _must(done.returncode == 0, f"`{' '.join(command)}` ends with 0\n{done.stdout}{done.stderr}", silent=True)
    return done.stdout + done.stderr


def _must(so: bool, what: str, *, silent: bool = False) -> None:
    if not so:
        _say("WRONG", what)
        sys.exit(1)
    if not silent:
        _say("ok", what)


def _say(what: str, text: str) -> None:
    for line in text.strip().splitlines():
        print(f"  {what}: {line}", flush=True)


if __name__ == "__main__":
    main()
