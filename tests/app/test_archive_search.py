"""Archives searched from the web application: only where allowed, for whole values, bounded, and in no log."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dicom_made_up import IDENTITY, NAME, made_up_slice
from dicom_peer import Peer
from medseg.errors import UsageError
from medseg_app.commands import serve
from medseg_app.jobs.store import Limits
from medseg_app.jobs.supervisor import Bounds
from medseg_app.server.place import Place
from orthanc import free_port
from served import ADDRESS, served, until_ended

ACCESSION, STUDY, SERIES, LARGE, DAY = "ACC-8812", "1.2.3.6", "1.2.3.5", "1.2.3.50", "2024-01-10"


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    """An archive that passes over every criterion but UIDs: two patients, one of them with a series too large."""
    peer = Peer().start()
    slices: list[dict[str, object]] = [
        {"SOPInstanceUID": f"1.2.{number}", "AccessionNumber": ACCESSION} for number in range(3)
    ]
    slices.append({"SOPInstanceUID": "1.3", "SeriesInstanceUID": LARGE, "PixelData": bytes(200_000)})
    other = {"SOPInstanceUID": "1.4", "StudyInstanceUID": "1.9", "SeriesInstanceUID": "1.9.1", "PatientID": "other"}
    for attributes in (*slices, other):
        held = made_up_slice(SeriesDescription="T1", **attributes)
        peer.held[held.SOPInstanceUID] = held
    yield peer
    peer.stop()


@pytest.fixture(scope="module")
def server(peer: Peer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Place]]:
    archives = {"archive": peer.address, "away": f"PEER@127.0.0.1:{free_port()}"}
    limits = Limits(upload_bytes=100_000)
    with served(tmp_path_factory.mktemp("home"), archives=archives, search=True, limits=limits) as made:
        yield made


@pytest.fixture
def ann(server: tuple[Any, Place]) -> TestClient:
    return TestClient(server[0], base_url=ADDRESS)


def _search(user: TestClient, **wish: object) -> Any:
    return user.post("/api/v1/archive-searches", json={"archive": "archive", **wish})


def _brought(user: TestClient, series: str, archive: str = "archive") -> dict[str, Any]:
    wish = {"archive": archive, "study": STUDY, "series": series}
    begun = user.post("/api/v1/archive-retrievals", json=wish)
    assert begun.status_code == 202, begun.text
    return until_ended(user, f"archive-retrievals/{begun.json()['upload']}")


def test_a_series_is_found_and_becomes_an_upload(
    ann: TestClient, server: tuple[Any, Place], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="medseg")
    guard, place = server
    assert ann.get("/api/v1/me").json()["searches"] == ["archive", "away"]
    found = _search(ann, patient_id=f" {IDENTITY} ", date=DAY).json()
    assert [one["series"] for one in found["matches"]] == [SERIES, LARGE], "not that of the other patient"
    told = {"study": STUDY, "series": SERIES, "date": "20240110", "modality": "CT", "description": "T1", "patient": ""}
    assert {key: found["matches"][0][key] for key in told} == told
    assert not found["more"]
    shown = _search(ann, patient_id=IDENTITY, show_patient=True).json()["matches"]
    assert shown[0]["patient"] == f"{NAME}, {IDENTITY}"
    assert _search(ann, patient_id=IDENTITY, date="2024-01-11").json()["matches"] == [], "every criterion must fit"

    done = _brought(ann, SERIES)
    assert (done["state"], done["done"], done["total"]) == ("done", 3, 3)
    upload = next(one for one in ann.get("/api/v1/uploads").json() if one["id"] == done["upload"])
    assert (upload["files"], upload["name"]) == (3, "archive")
    kept = sorted(path.name for path in place.store.upload_folder(done["upload"]).iterdir())
    assert kept == [f"image{number:06d}.dcm" for number in range(3)]
    assert ann.post(f"/api/v1/uploads/{done['upload']}/check", json={}).status_code == 201
    bob = TestClient(guard, base_url=ADDRESS)
    assert bob.get("/api/v1/uploads").json() == []
    assert bob.get(f"/api/v1/archive-retrievals/{done['upload']}").status_code == 404

    log = (place.settings.home / "audit.jsonl").read_text()
    events = [(one["event"], one["archive"]) for one in map(json.loads, log.splitlines()) if "archive" in one]
    assert events == [*[("search", "archive")] * 3, ("retrieve", "archive"), ("retrieved", "archive")]
    for secret in (NAME, IDENTITY, ACCESSION, STUDY, "20240110", DAY):
        assert secret not in log + caplog.text


@pytest.mark.parametrize(
    ("wish", "status", "words"),
    [
        ({}, 400, "got none"),
        ({"patient_id": "  "}, 400, "got none"),
        ({"patient_id": "*"}, 400, "whole values"),
        ({"patient_id": IDENTITY, "accession": "??"}, 400, "whole values"),
        ({"patient_id": "a\\b"}, 400, "whole values"),
        ({"date": "20240101-"}, 422, "date"),
        ({"patient_id": "1", "archive": "nowhere"}, 404, "not known here"),
        ({"patient_id": "1", "archive": "PEER@127.0.0.1:104"}, 404, "not known here"),
        ({"patient_id": "1", "archive": "away"}, 502, "expected a connection"),
    ],
)
def test_a_search_that_cannot_be_gets_a_sentence(
    ann: TestClient, wish: dict[str, str], status: int, words: str
) -> None:
    answer = _search(ann, **wish)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("series", "archive", "words"),
    [(LARGE, "archive", "at most"), (SERIES, "away", "expected a connection"), ("1.2.99", "archive", "no instances")],
)
def test_what_does_not_come_leaves_nothing(
    ann: TestClient, server: tuple[Any, Place], series: str, archive: str, words: str
) -> None:
    failed = _brought(ann, series, archive)
    assert failed["state"] == "failed"
    assert words in failed["reason"]
    assert ann.get("/api/v1/uploads").json() == []
    assert not server[1].store.upload_folder(failed["upload"]).exists()


def test_there_must_be_an_archive_to_search(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"limits": Limits(), "bounds": Bounds(), "device": "cpu", "home": tmp_path}
    with pytest.raises(UsageError, match="--search needs an archive"):
        serve.run(host="127.0.0.1", port=7860, auth=None, allow_hosts=(), search=True, **settings)
