"""Gradio's own routes under attack: files of the server, files of another user; and the next user is served."""

import io
import logging
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from medseg_app.server.accounts import hash_password
from medseg_app.server.quiet import WithoutText
from served import ADDRESS, served

PASSWORD = "a long enough one"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    accounts = dict.fromkeys(("ann", "bob"), hash_password(PASSWORD))
    with served(tmp_path_factory.mktemp("home"), accounts=accounts) as (guard, _):
        yield guard


def _user(server: Any, name: str) -> TestClient:
    user = TestClient(server, base_url=ADDRESS)
    assert user.post("/login", data={"name": name, "password": PASSWORD}, follow_redirects=False).status_code == 303
    return user


def _told(user: TestClient, route: str, content: dict[str, Any]) -> str:
    """What a call of Gradio ends with."""
    event = user.post(f"/gradio_api/call/{route}", json=content).json()["event_id"]
    return user.get(f"/gradio_api/call/{route}/{event}").text


def test_no_route_reads_files_of_the_server(server: Any, capfd: pytest.CaptureFixture[str]) -> None:
    ann = _user(server, "ann")
    file = {"path": __file__, "orig_name": "Meier^Petra.nii", "meta": {"_type": "gradio.FileData"}}
    call = {"data": [file, "mr-denoise", False]}
    told = [
        _told(ann, "segment", call),
        _told(ann, "v2/segment", {"image": file, "model": "mr-denoise", "confirmed": False}),
    ]
    ann.post("/gradio_api/queue/join", json={**call, "fn_index": 0, "session_hash": "hash"})
    told.append(ann.get("/gradio_api/queue/data", params={"session_hash": "hash"}).text)
    assert all("not uploaded by a user" in one for one in told), told
    assert ann.get("/api/v1/uploads").json() == []
    for route in ("run", "api"):
        assert ann.post(f"/gradio_api/{route}/segment", json=call).status_code == 404
    printed = "".join(capfd.readouterr())
    assert printed.count("a call through gradio failed (InvalidPathError)") == 3
    assert not [word for word in (Path(__file__).name, "Meier", "Traceback") if word in printed]


def test_the_log_tells_where_a_failure_was_and_not_what_it_said() -> None:
    named = Path("/nowhere/Meier^Petra.nii")
    try:
        named.read_bytes()
    except OSError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "Exception in %s\n", ("app",), sys.exc_info())
    assert WithoutText().filter(record)
    told = logging.Formatter().format(record)
    assert told.startswith("Exception in app: FileNotFoundError\n")
    assert "test_hostile.py" in told
    assert "Meier" not in told


def test_no_user_fetches_the_files_of_another(server: Any) -> None:
    ann, bob = _user(server, "ann"), _user(server, "bob")
    path = ann.post("/gradio_api/upload", files={"files": ("../../head.nii.gz", b"x")}).json()[0]
    home = server._app.state.place.settings.home
    assert Path(path).is_relative_to(home / "gradio")
    told = _told(ann, "segment", {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "mr-denoise", False]})
    address = told.split('"url": "')[1].split('"')[0].removeprefix(ADDRESS)
    assert zipfile.ZipFile(io.BytesIO(ann.get(address).content)).namelist() == ["manifest.json"]
    file = address.partition("file=")[2]
    around = f"{Path(file).parent}/../{Path(file).parent.name}/{Path(file).name}"
    for other in (file, path, around, str(home / "jobs.sqlite"), "/etc/hostname"):
        assert bob.get(f"/gradio_api/file={other}").status_code in (403, 404), other
    assert bob.get("/readyz").text == "ok\n"
    assert bob.get("/api/v1/uploads").json() == []
