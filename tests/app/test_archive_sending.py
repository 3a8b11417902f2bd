"""Results from the web application to an archive: only where the operator says, only when confirmed, each told."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import page_worker
from browser import Page, browser, serving
from dicom_made_up import IDENTITY, NAME, save_slice
from dicom_peer import Peer
from medseg.errors import UsageError
from medseg.io import write
from medseg_app.commands import serve
from medseg_app.jobs.store import Limits
from medseg_app.jobs.supervisor import Bounds
from medseg_app.server.archive_sending import Sends
from medseg_app.server.place import Place
from orthanc import PASSWORD, USER, Orthanc, free_port
from served import ADDRESS, served
from tiny_model import head


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    peer = Peer().start()
    yield peer
    peer.stop()


@pytest.fixture(scope="module")
def server(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Place]]:
    """A server that knows one archive that is there and one that is not."""
    archives = {"archive": peer.address, "away": f"PEER@127.0.0.1:{free_port()}"}
    with served(tmp_path_factory.mktemp("home"), archives=archives) as made:
        yield made


@pytest.fixture
def ann(server: tuple[Any, Place]) -> TestClient:
    return TestClient(server[0], base_url=ADDRESS)


def _result(place: Place, user: TestClient, *, trained: bool = True, dicom: bool = True) -> str:
    """A job of this user with a result of two DICOM objects, as a worker leaves it."""
    upload = user.post("/api/v1/uploads", json={"name": "a"}).json()["id"]
    found = next(one for one in place.table.uploads() if one.id == upload)
    job = place.table.add_job(found.owner, upload, "run", {"model": "brain-structures"}).id
    place.table.cancel(found.owner, job)  # no worker shall take it
    folder = place.store.job_folder(job) / "result"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"model": {"trained": trained}}))
    if dicom:
        (folder / "dicom").mkdir()
        for number in range(2):
            save_slice(folder / "dicom" / f"{number}.dcm", SOPInstanceUID=f"2.25.{int(job[:8], 16)}{number}")
    return job


def _sent(user: TestClient, job: str, destination: str) -> dict[str, Any]:
    """Send, and wait for what becomes of it."""
    begun = user.post(f"/api/v1/jobs/{job}/sendings", json={"destination": destination, "confirmed": True})
    assert begun.status_code == 202, begun.text
    told: dict[str, Any] = {}
    for _ in range(600):
        told = user.get(f"/api/v1/jobs/{job}/sendings").json()["sendings"][begun.json()["number"] - 1]
        if told["state"] != "sending":
            return told
        time.sleep(0.05)
    raise AssertionError(told)


def test_a_result_goes_where_the_operator_said(ann: TestClient, server: tuple[Any, Place], peer: Peer) -> None:
    place = server[1]
    job = _result(place, ann)
    address = f"/api/v1/jobs/{job}/sendings"
    offered = ann.get(address).json()
    assert offered["destinations"]["archive"] == peer.address
    assert (offered["obstacle"], offered["sendings"]) == ("", [])
    asked = ann.get(f"{address}/archive").json()
    told = {"destination": "archive", "at": peer.address, "patient": f"{NAME}, {IDENTITY}", "objects": {"CT": 2}}
    assert asked == told
    before = len(peer.arrivals)
    unconfirmed = ann.post(address, json={"destination": "archive"})
    assert (unconfirmed.status_code, len(peer.arrivals)) == (409, before)
    done = _sent(ann, job, "archive")
    assert (done["state"], done["stored"], done["reasons"]) == ("sent", 2, [])
    assert len(peer.arrivals) == before + 2
    log = (place.settings.home / "audit.jsonl").read_text()
    lines = [one for one in map(json.loads, log.splitlines()) if one.get("job") == job]
    assert [(one["event"], one["destination"], one["files"]) for one in lines] == [
        ("send", "archive", 2), ("sent", "archive", 2)
    ]  # fmt: skip
    assert lines[-1]["stored"] == 2
    assert NAME not in log
    assert IDENTITY not in log


def test_nobody_else_sends_it_or_names_an_address(ann: TestClient, server: tuple[Any, Place], peer: Peer) -> None:
    job = _result(server[1], ann)
    bob = TestClient(server[0], base_url=ADDRESS)
    address = f"/api/v1/jobs/{job}/sendings"
    wish = {"destination": "archive", "confirmed": True}
    for answer in (bob.get(address), bob.get(f"{address}/archive"), bob.post(address, json=wish)):
        assert answer.status_code == 404
    for name in (peer.address, "https://evil.example/dicom-web", "nowhere"):
        assert ann.post(address, json={**wish, "destination": name}).status_code == 404
    assert ann.post(address, json={**wish, "address": peer.address}).status_code == 422


def test_nobody_searches_where_the_operator_only_named_it(ann: TestClient) -> None:
    assert ann.get("/api/v1/me").json()["searches"] == []
    search = {"archive": "archive", "patient_id": IDENTITY}
    assert ann.post("/api/v1/archive-searches", json=search).status_code == 404
    retrieval = {"archive": "archive", "study": "1.2.3.6", "series": "1.2.3.5"}
    assert ann.post("/api/v1/archive-retrievals", json=retrieval).status_code == 404
    assert ann.get("/api/v1/uploads").json() == []


@pytest.mark.parametrize(
    ("kind", "words"), [({"trained": False}, "must come from a trained model"), ({"dicom": False}, "choose a DICOM")]
)
def test_what_must_not_be_sent_says_why(
    ann: TestClient, server: tuple[Any, Place], kind: dict[str, bool], words: str
) -> None:
    job = _result(server[1], ann, **kind)
    assert words in ann.get(f"/api/v1/jobs/{job}/sendings").json()["obstacle"]
    answer = ann.post(f"/api/v1/jobs/{job}/sendings", json={"destination": "archive", "confirmed": True})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


def test_what_is_not_stored_is_told_and_can_go_again(ann: TestClient, server: tuple[Any, Place], peer: Peer) -> None:
    job = _result(server[1], ann)
    peer.status = 0xA700
    refused = _sent(ann, job, "archive")
    peer.status = 0
    assert (refused["state"], refused["stored"]) == ("failed", 0)
    assert refused["reasons"] == ["refused with status 0xA700"], "two files, one reason"
    away = _sent(ann, job, "away")
    assert away["state"] == "failed"
    assert "expected a connection" in away["reasons"][0]
    assert _sent(ann, job, "archive")["state"] == "sent"


def test_what_a_killed_server_left_is_told(ann: TestClient, server: tuple[Any, Place], peer: Peer) -> None:
    place = server[1]
    job = _result(place, ann)
    done = _sent(ann, job, "archive")
    file = place.store.job_folder(job) / "sends.json"
    file.write_text(json.dumps([{**done, "state": "sending", "ended": None}]))
    left = Sends({}, place.store, place.audit).told(job)[0]
    assert left["state"] == "failed"
    assert "interrupted" in left["reasons"][0]


@pytest.mark.parametrize("text", ["archive", "a b=PEER@127.0.0.1:104", "archive=https://user:secret@host/dicom-web"])
def test_an_address_that_makes_no_sense_keeps_the_server_from_starting(text: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limits": Limits(), "bounds": Bounds(), "device": "cpu", "home": tmp_path}
    with pytest.raises(UsageError, match=r"address must|name 'a b' must"):
        serve.run(host="127.0.0.1", port=7860, auth=None, allow_hosts=(), archives=(text,), **settings)


@pytest.mark.pacs
def test_a_real_archive_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orthanc = Orthanc().start()
    monkeypatch.setenv("MEDSEG_DICOM_WEB_USER", USER)
    monkeypatch.setenv("MEDSEG_DICOM_WEB_PASSWORD", PASSWORD)
    try:
        archives = {"web": orthanc.web, "entity": orthanc.entity}
        with served(tmp_path / "home", archives=archives, search=True) as (guard, place):
            user = TestClient(guard, base_url=ADDRESS)
            jobs = [_result(place, user) for _ in archives]
            for job, name in zip(jobs, archives, strict=True):
                done = _sent(user, job, name)
                assert (done["state"], done["reasons"]) == ("sent", []), name
            for name in archives:
                found = place.search.find(name, {"PatientID": IDENTITY, "StudyDate": "20240110"}, "", show_patient=True)
                assert [(one.images, one.patient) for one in found[0]] == [(4, f"{NAME}, {IDENTITY}")], name
                upload = place.search.begin(name, found[0][0].study, found[0][0].series, "").upload
                while (now := place.search.told(upload, "")) and now.ended is None:
                    time.sleep(0.05)
                assert now
                assert (now.done, now.reason) == (4, ""), name
        assert len(orthanc.instances("CT")) == 4
    finally:
        orthanc.close()


@pytest.mark.browser
@pytest.mark.timeout(1200)
def test_the_page_asks_twice(peer: Peer, tmp_path: Path) -> None:
    write(head(), tmp_path / "head.nii.gz")
    home, worker = tmp_path / "serve", (sys.executable, page_worker.__file__)
    with browser() as started, serving(home, worker, archives={"archive": peer.address}, search=True) as address:
        page = Page(started.new_context(), address, patience=600)
        page.bring(tmp_path / "head.nii.gz")
        page.run("brain-structures")
        page.at("review")
        assert "choose a DICOM format" in page.tab.inner_text(".archive")
        result = home / "jobs" / page.tab.evaluate("window.medseg.run") / "result"
        (result / "dicom").mkdir()
        save_slice(result / "dicom" / "seg.dcm", SOPInstanceUID="2.25.77", Modality="SEG")
        page.go("report")
        for answer, arrived in (("Do not send", False), ("Send", True)):
            page.tab.click(".archive button")
            asked = page.tab.inner_text("dialog[open]")
            assert all(part in asked for part in (NAME, IDENTITY, peer.address, "1 SEG"))
            page.tab.click(f"dialog button:text-is('{answer}')")
            if arrived:
                page.tab.wait_for_selector(".archive [data-state=sent]")
            assert ("2.25.77" in peer.held) == arrived
        page.go("open")
        page.tab.fill(".search input >> nth=0", IDENTITY)
        page.tab.click(".search [type=submit]")
        page.tab.wait_for_selector(".search tbody tr")
        assert NAME not in page.tab.inner_text("#medseg-app")
        page.tab.click("text=Show the patients")
        page.tab.wait_for_selector(f".search td:text-is('{NAME}, {IDENTITY}')")
        page.tab.click(".search tbody button")
        page.at("check")
        assert len(list((home / "uploads" / page.tab.evaluate("window.medseg.upload")).iterdir())) == len(peer.held)
        assert page.problems == []
