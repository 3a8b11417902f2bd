"""A real archive for tests: Debian's Orthanc with its DICOMweb plugin, on free ports of this machine."""

import json
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import pytest
import requests

USER, PASSWORD = "tester", "for tests only"
TITLE = "ORTHANC"
_START_SECONDS = 60


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return int(each.getsockname()[1])


def find_orthanc() -> tuple[Path, Path]:
    """Program and DICOMweb plugin; skips the test where they are not installed, fails it in `make test-all`."""
    program = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    plugin = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    if program is None or not plugin.exists():
        reason = "Orthanc is not installed (Debian: apt-get install orthanc orthanc-dicomweb; `make test-all` does)"
        if os.environ.get("MEDSEG_TEST_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(program), plugin


class Orthanc:
    """An archive that can be stopped and started again; what it stores stays until `close`.

    Args:
        peer_port: Where an application entity named MEDSEG would listen, for C-MOVE.
    """

    def __init__(self, *, peer_port: int = 0) -> None:
        self._program, plugin = find_orthanc()
        self._folder = Path(tempfile.mkdtemp(prefix="orthanc-"))
        self.http_port, self.dicom_port = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "StorageDirectory": str(self._folder / "store"),
            "IndexDirectory": str(self._folder / "store"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": TITLE,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomAlwaysAllowStore": True,
            "DicomModalities": {"medseg": ["MEDSEG", "127.0.0.1", peer_port or free_port()]},
            "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (self._folder / "orthanc.json").write_text(json.dumps(settings))
        (self._folder / "store").mkdir()
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            owner = pwd.getpwnam(self._user).pw_uid
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, owner, -1)

    @property
    def web(self) -> str:
        """The DICOMweb address."""
        return f"http://127.0.0.1:{self.http_port}/dicom-web"

    @property
    def entity(self) -> str:
        """The DIMSE address."""
        return f"{TITLE}@127.0.0.1:{self.dicom_port}"

    def start(self) -> Self:
        """Start it and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, self._folder / "orthanc.json"], stdout=log, stderr=log, user=self._user, cwd="/"
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.rest("system").ok:
                    return self
            except requests.exceptions.ConnectionError:
                time.sleep(0.1)
        raise RuntimeError(f"Orthanc did not start: {(self._folder / 'log').read_text()[-1000:]}")

    def stop(self) -> None:
        """Take it off the network; what it stores stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        """Stop it and remove what it stored."""
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def rest(self, path: str) -> requests.Response:
        """What its own interface, which is not DICOM, says."""
        session = requests.Session()
        session.trust_env = False
        return session.get(f"http://127.0.0.1:{self.http_port}/{path}", auth=(USER, PASSWORD), timeout=10)

    def instances(self, modality: str | None = None) -> list[str]:
        """SOP Instance UIDs of all it holds, or of one modality; each as often as it is held."""
        found = self.rest("instances?expand").json()
        held = [(i["MainDicomTags"]["SOPInstanceUID"], i["ParentSeries"]) for i in found]
        if modality is None:
            return sorted(uid for uid, _ in held)
        series = {s["ID"] for s in self.rest("series?expand").json() if s["MainDicomTags"].get("Modality") == modality}
        return sorted(uid for uid, parent in held if parent in series)
