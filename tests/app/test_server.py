"""The web application over HTTP: isolation, limits, login, headers, the hole of mounted Gradio apps, the audit log."""

import base64
import io
import json
import re
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from medseg.errors import InputRefused, UsageError
from medseg_app.commands import serve
from medseg_app.commands.audit import add_account
from medseg_app.jobs.store import Limits
from medseg_app.jobs.supervisor import Bounds
from medseg_app.server.accounts import Accounts, Throttled, hash_password, read_accounts
from medseg_app.server.audit import AuditLog, verify
from served import ADDRESS, served, until_ended
from tiny_prompting import build_tiny_prompting
from tiny_support import support_model

PASSWORD = "a long enough one"
TIGHT: dict[str, Any] = {"limits": Limits(upload_bytes=1000), "open_jobs": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served(tmp_path_factory.mktemp("home"), **TIGHT) as (guard, _):
        yield guard


@pytest.fixture
def ann(server: Any) -> TestClient:
    return TestClient(server, base_url=ADDRESS)


@pytest.fixture
def bob(server: Any) -> TestClient:
    return TestClient(server, base_url=ADDRESS)


def _upload(user: TestClient, content: bytes = b"x", name: str = "head.nii.gz") -> str:
    upload = user.post("/api/v1/uploads", json={"name": name}).json()["id"]
    answer = user.put(f"/api/v1/uploads/{upload}/files", content=content, headers={"X-File-Name": name})
    assert answer.status_code == 204, answer.text
    return upload


def _support_in(folder: Path) -> Path:
    folder.rmdir()
    return support_model(folder)


def _ended(user: TestClient, job: str) -> dict[str, Any]:
    return until_ended(user, f"jobs/{job}")


def test_a_job_from_upload_to_deletion(ann: TestClient) -> None:
    upload = _upload(ann, name="Doe%5EJane.nii.gz")
    job = ann.post("/api/v1/jobs", json={"upload": upload, "model": "mr-denoise"}).json()
    assert (job["state"], job["place"]) in (("queued", 1), ("running", None))
    assert _ended(ann, job["id"])["state"] == "done"
    assert ann.get(f"/api/v1/jobs/{job['id']}/result").json()["files"] == ["manifest.json"]
    archive = zipfile.ZipFile(io.BytesIO(ann.get(f"/api/v1/jobs/{job['id']}/archive").content))
    assert archive.namelist() == ["manifest.json"]
    assert [one["id"] for one in ann.get("/api/v1/uploads").json()] == [upload]
    assert ann.delete(f"/api/v1/uploads/{upload}").status_code == 204
    assert ann.get("/api/v1/uploads").json() == []
    assert ann.get(f"/api/v1/jobs/{job['id']}").status_code == 404


def test_sessions_never_see_each_other(ann: TestClient, bob: TestClient) -> None:
    upload = _upload(ann)
    job = ann.post("/api/v1/jobs", json={"upload": upload, "model": "mr-denoise"}).json()["id"]
    _ended(ann, job)
    assert bob.get("/api/v1/uploads").json() == []
    for method, path in [
        ("GET", f"jobs/{job}"),
        ("GET", f"jobs/{job}/result"),
        ("GET", f"jobs/{job}/archive"),
        ("GET", f"jobs/{job}/report"),
        ("GET", f"jobs/{job}/files/manifest.json"),
        ("POST", f"jobs/{job}/cancel"),
        ("POST", f"jobs/{job}/corrections"),
        ("GET", f"uploads/{upload}/jobs"),
        ("DELETE", f"uploads/{upload}"),
    ]:
        answer = bob.request(method, f"/api/v1/{path}")
        assert answer.status_code == 404, path
    assert bob.post(f"/api/v1/uploads/{upload}/check", json={}).status_code == 404
    assert bob.post("/api/v1/jobs", json={"upload": upload, "model": "mr-denoise"}).status_code == 404
    assert bob.post(f"/api/v1/jobs/{job}/review", json={"rejected": [1]}).status_code == 404
    assert ann.get(f"/api/v1/jobs/{job}/files/manifest.json").status_code == 200


def test_support_sets_are_private_from_their_cases_to_their_use(
    ann: TestClient, bob: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Any
) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    support_model(tmp_path / "models" / "tiny-support")
    wish = {"name": "mine", "cases": [{"upload": _upload(ann), "labels": _upload(ann)} for _ in range(3)]}
    theirs = {**wish, "cases": [{"upload": _upload(bob), "labels": wish["cases"][0]["labels"]}] * 3}
    assert bob.post("/api/v1/support-sets", json=theirs).status_code == 404, "one label map is of another visitor"
    made = ann.post("/api/v1/support-sets", json=wish).json()
    assert _ended(ann, made["id"])["state"] == "done"
    assert [(one["name"], one["state"]) for one in ann.get("/api/v1/support-sets").json()] == [("mine", "done")]
    assert bob.get("/api/v1/support-sets").json() == []
    for path in (f"jobs/{made['id']}", f"jobs/{made['id']}/files/manifest.json", f"uploads/{made['upload']}/jobs"):
        assert (ann.get(f"/api/v1/{path}").status_code, bob.get(f"/api/v1/{path}").status_code) == (200, 404)
    run = {"upload": _upload(bob), "model": "tiny-support", "support": made["id"]}
    assert bob.post("/api/v1/jobs", json=run).status_code == 404
    assert bob.delete(f"/api/v1/support-sets/{made['id']}").status_code == 404
    used = ann.post("/api/v1/jobs", json={**run, "upload": _upload(ann)})
    assert used.status_code == 201, used.text
    assert ann.delete(f"/api/v1/support-sets/{used.json()['id']}").status_code == 404, "a run is no set"
    place = server._app.state.place
    assert place.removed_after(made["upload"]) >= _ended(ann, used.json()["id"])["ended"], "it was used since"
    assert ann.delete(f"/api/v1/support-sets/{made['id']}").status_code == 204
    assert ann.get("/api/v1/support-sets").json() == []
    assert not place.store.job_folder(made["id"]).exists()
    events = [json.loads(line) for line in (place.settings.home / "audit.jsonl").read_text().splitlines()]
    assert {"support", "delete"} <= {event["event"] for event in events}


def test_prompts_and_examples_are_checked_before_anything_runs(
    ann: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEG_HOME", str(tmp_path))
    for name, build in (("tiny-sam", build_tiny_prompting), ("tiny-support", _support_in)):
        (tmp_path / "models" / name).mkdir(parents=True)
        build(tmp_path / "models" / name)
    upload = _upload(ann)
    point = {"kind": "point", "at": [1, 2, 3]}

    def asked(model: str, **more: Any) -> tuple[int, str]:
        answer = ann.post("/api/v1/jobs", json={"upload": upload, "model": model, **more})
        return answer.status_code, answer.json().get("error", "")

    assert asked("tiny-sam", prompts={"prompts": [point]})[0] == 201
    for status, words, model, more in [
        (400, "needs prompts", "tiny-sam", {}),
        (400, "takes no prompts", "mr-denoise", {"prompts": {"prompts": [point]}}),
        (400, "needs support", "tiny-support", {}),
        (400, "takes no support", "tiny-sam", {"prompts": {"prompts": [point]}, "support": upload}),
        (404, "job is not there", "tiny-support", {"support": upload}),
        (422, "prompts.prompts", "tiny-sam", {"prompts": {"prompts": []}}),
        (422, "at", "tiny-sam", {"prompts": {"prompts": [{"kind": "point", "at": [1, 2]}]}}),
        (422, "mask", "tiny-sam", {"prompts": {"prompts": [{"kind": "mask", "file": "/etc/passwd"}]}}),
        (422, "label", "tiny-sam", {"prompts": {"prompts": [{**point, "label": 0}]}}),
    ]:
        found = asked(model, **more)
        assert (found[0], words in found[1]) == (status, True), found
    job = ann.get(f"/api/v1/uploads/{upload}/jobs").json()[0]
    _ended(ann, job["id"])
    case = {"job": job["id"]}
    for status, cases in ((422, [case]), (422, [{**case, "upload": upload}] * 3), (409, [case] * 3)):
        assert ann.post("/api/v1/support-sets", json={"name": "x", "cases": cases}).status_code == status
    assert ann.post("/api/v1/support-sets", json={"name": "a b", "cases": [case] * 3}).status_code == 422
    assert ann.get("/api/v1/support-sets").json() == [], "what was refused leaves nothing"


@pytest.mark.parametrize(
    "name", ["../manifest.json", "%2e%2e/%2e%2e/jobs.sqlite", "/etc/passwd", "..%2f..%2faudit.jsonl"]
)
def test_only_files_of_the_result_are_given(ann: TestClient, name: str) -> None:
    job = ann.post("/api/v1/jobs", json={"upload": _upload(ann), "model": "mr-denoise"}).json()["id"]
    _ended(ann, job)
    assert ann.get(f"/api/v1/jobs/{job}/files/{name}").status_code == 404


def test_limits_and_wrong_requests_are_one_sentence(ann: TestClient) -> None:
    upload = ann.post("/api/v1/uploads", json={"name": "a.nii"}).json()["id"]
    address = f"/api/v1/uploads/{upload}/files"
    cases = [
        (ann.put(address, content=b"x" * 2000, headers={"X-File-Name": "a.nii"}), 413, "at most"),
        (ann.put(address, content=b"x", headers={"X-File-Name": "a.exe"}), 400, "must end in one of"),
        (ann.post(f"/api/v1/uploads/{upload}/check", json={}), 409, "empty"),
        (ann.post(f"/api/v1/uploads/{upload}/check", json={"path": "/etc"}), 422, "path: extra inputs"),
        (ann.post("/api/v1/jobs", json={"upload": upload, "model": "../x"}), 404, "not known"),
        (ann.get("/api/v1/uploads/1/jobs"), 404, "not there"),
    ]
    for answer, status, words in cases:
        assert (answer.status_code, list(answer.json())) == (status, ["error"])
        assert words in answer.json()["error"]
    full = _upload(ann, b"sleep")
    wish = {"upload": full, "model": "mr-denoise"}
    answers = [ann.post("/api/v1/jobs", json=wish) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429], "three open jobs at most"
    assert ann.put(f"/api/v1/uploads/{full}/files", content=b"x", headers={"X-File-Name": "b.dcm"}).status_code == 409
    ann.post(f"/api/v1/jobs/{answers[0].json()['id']}/cancel")
    assert _ended(ann, answers[0].json()["id"])["state"] == "cancelled"
    assert ann.delete(f"/api/v1/uploads/{full}").status_code == 204, "this stops what is running on it"


def test_every_answer_is_guarded(ann: TestClient) -> None:
    page = ann.get("/")
    policy = page.headers["content-security-policy"]
    nonce = re.findall(r"'nonce-([^']+)'", policy)[0]
    assert "unsafe-eval" not in policy
    assert "script-src 'self' 'nonce-" in policy
    assert page.text.count("<script") == page.text.count(f'<script nonce="{nonce}"') > 2
    cookie = page.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    for path in ("/", "/api/v1/me", "/healthz", "/api/v1/nothing", "/medseg-assets/main.js"):
        headers = ann.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin", "with none, browsers send our forms from an origin null"
    assert ann.get("/", headers={"Host": "evil.example"}).status_code == 421, "a name of their own for our loopback"
    assert ann.post("/api/v1/uploads", json={"name": "a"}, headers={"Origin": "http://evil.example"}).status_code == 403
    for path in ("/monitoring", "/gradio_api/deep_link", "/gradio_api/proxy=http://x", "/docs", "/x"):
        assert ann.get(path).status_code == 404, path


def test_mounted_gradio_reads_no_server_files(ann: TestClient) -> None:
    """Without `has_launched`, a visitor could name any file as an upload and get its content back."""
    secret = Path(__file__)
    data = [{"path": str(secret), "meta": {"_type": "gradio.FileData"}}, "mr-denoise", False]
    call = ann.post("/gradio_api/call/segment", json={"data": data})
    assert call.status_code == 200
    told = ann.get(f"/gradio_api/call/segment/{call.json()['event_id']}").text
    assert "event: error" in told
    assert all(upload["name"] != secret.name for upload in ann.get("/api/v1/uploads").json())
    assert ann.get(f"/gradio_api/file={secret}").status_code in (403, 404)


def test_programs_segment_through_gradio(ann: TestClient, server: Any) -> None:
    path = ann.post("/gradio_api/upload", files={"files": ("head.nii.gz", b"x")}).json()[0]
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "mr-denoise", False]
    event = ann.post("/gradio_api/call/segment", json={"data": data}).json()["event_id"]
    told = ann.get(f"/gradio_api/call/segment/{event}").text
    last = told.strip().split("event: ")[-1]
    assert last.startswith("complete"), told
    progress, archive = json.loads(last.split("data: ", 1)[1])
    assert progress["state"] == "done"
    content = ann.get(archive["url"].removeprefix(ADDRESS)).content
    assert zipfile.ZipFile(io.BytesIO(content)).namelist() == ["manifest.json"]
    assert [upload["name"] for upload in ann.get("/api/v1/uploads").json()] == ["head.nii.gz"], "it is in the history"
    assert not list(server._app.state.place.settings.home.rglob("*head*")), "no file bears the name that it came with"


def test_health_metrics_and_description(ann: TestClient) -> None:
    assert ann.get("/healthz").text == ann.get("/readyz").text == "ok\n"
    text = ann.get("/metrics").text
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) .+|\w+(\{[^}]*\})? [0-9.e+]+", line), line
    assert 'medseg_jobs{state="queued"}' in text
    paths = ann.get("/api/v1/openapi.json").json()["paths"]
    assert {"/api/v1/uploads", "/api/v1/jobs", "/api/v1/jobs/{job}/result"} <= set(paths)
    assert all("summary" in way or "description" in way for path in paths.values() for way in path.values())


def test_login_and_throttling(tmp_path: Path) -> None:
    add_account(tmp_path / "accounts", "ann", PASSWORD)
    add_account(tmp_path / "accounts", "bob", PASSWORD + "!")
    accounts = read_accounts(tmp_path / "accounts")
    assert PASSWORD not in json.dumps(accounts)
    with served(tmp_path / "home", accounts=accounts, **TIGHT) as (guard, place):
        user = TestClient(guard, base_url=ADDRESS, follow_redirects=False)
        assert user.get("/").headers["location"] == "/login"
        for method, path in [
            ("GET", "/api/v1/me"), ("GET", "/api/v1/openapi.json"), ("GET", "/config"), ("GET", "/metrics"),
            ("GET", "/medseg-screens"), ("POST", "/gradio_api/upload"), ("POST", "/gradio_api/call/segment"),
            ("GET", "/gradio_api/file=x"), ("POST", "/gradio_api/queue/join"), ("GET", "/medseg-assets/main.js"),
        ]:  # fmt: skip
            assert user.request(method, path).status_code == 401, path
        assert user.get("/healthz").status_code == 200
        basic = {"Authorization": "Basic " + base64.b64encode(f"bob:{PASSWORD}!".encode()).decode()}
        assert user.get("/api/v1/me", headers=basic).json()["user"] == "bob"
        assert user.post("/login", data={"name": "ann", "password": "no"}).status_code == 401
        assert user.post("/login", data={"name": "ann", "password": PASSWORD}).status_code == 303
        assert user.get("/api/v1/me").json()["user"] == "ann"
        user.post("/logout")
        assert user.get("/api/v1/me").status_code == 401
        for _ in range(3):
            user.post("/login", data={"name": "ann", "password": "no"})
        answer = user.post("/login", data={"name": "ann", "password": PASSWORD})
        assert answer.status_code == 429
        assert "too many wrong passwords" in answer.text
    events = [json.loads(line)["event"] for line in (tmp_path / "home" / "audit.jsonl").read_text().splitlines()]
    assert events == ["start", "login refused", "login", *["login refused"] * 3, "stop"]
    assert place.accounts is not None


def test_a_network_address_wants_a_login(tmp_path: Path) -> None:
    bounds = {"limits": Limits(), "bounds": Bounds(), "device": "cpu"}
    with pytest.raises(UsageError, match=r"host '0\.0\.0\.0' is open to the network: give --auth"):
        serve.run(host="0.0.0.0", port=7860, auth=None, allow_hosts=(), home=tmp_path, **bounds)


def test_waiting_grows_with_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    accounts = Accounts({"ann": hash_password(PASSWORD)})
    waits = []
    for _ in range(6):
        while True:
            try:
                assert not accounts.fits("ann", "no", "here")
                break
            except Throttled:
                now[0] += 1
        waits.append(now[0] - 1000)
    assert waits == [0, 0, 0, 2, 6, 14]
    now[0] += 1000
    assert accounts.fits("ann", PASSWORD, "here")
    assert accounts.fits("ann", PASSWORD, "elsewhere")


def test_accounts_must_be_private_and_passwords_long(tmp_path: Path) -> None:
    path = tmp_path / "accounts"
    with pytest.raises(UsageError, match="at least 10"):
        add_account(path, "ann", "short")
    add_account(path, "ann", PASSWORD)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_accounts(path)


def test_the_audit_log_shows_every_change(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for _ in range(2):  # a second server goes on with it
        log = AuditLog(path)
        log.record("run", "ann", job="1", model="mr-denoise")
        log.record("download", "ann", job="1")
    number, last = verify(path)
    assert number == 4
    lines = path.read_text().splitlines()
    for broken in (
        [lines[0], lines[1].replace("ann", "bob"), *lines[2:]],
        [lines[0], *lines[2:]],
        [lines[1], lines[0], *lines[2:]],
        [*lines[:3], lines[3][:-4]],
    ):
        path.write_text("\n".join(broken) + "\n")
        with pytest.raises(InputRefused, match=r"line \d"):
            verify(path)
    path.write_text("\n".join(lines[:3]) + "\n")
    assert verify(path)[1] != last, "what was cut off at the end shows in the last hash"


def test_logs_hold_no_names(ann: TestClient, server: Any) -> None:
    _upload(ann, name="Meier%5EPetra.nii.gz")
    home = server._app.state.place.settings.home
    for path in home.rglob("*"):
        assert "Meier" not in path.name
    assert "Meier" not in (home / "audit.jsonl").read_text()


def test_nothing_outside_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(host: Any, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        raise OSError("no names here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with served(tmp_path / "home", **TIGHT) as (guard, _):
        user = TestClient(guard, base_url=ADDRESS)
        assert user.get("/").status_code == 200
        job = user.post("/api/v1/jobs", json={"upload": _upload(user), "model": "mr-denoise"}).json()["id"]
        assert _ended(user, job)["state"] == "done"
    assert asked == []
