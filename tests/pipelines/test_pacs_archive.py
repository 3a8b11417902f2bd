"""Search, retrieve and send against a small archive; what comes appears whole or not at all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest

from dicom_made_up import NAME, save_slice
from dicom_peer import Peer
from medseg.errors import UsageError
from medseg_pipelines.dicom_out.origin import Origin
from medseg_pipelines.pacs.address import ArchiveFailed, WebAddress, parse_address
from medseg_pipelines.pacs.archive import Archive, dicom_files, held, read_head, retrieve, safe_name, search
from medseg_pipelines.pacs.connect import open_archive
from medseg_pipelines.pacs.sending import require_trained
from orthanc import free_port


@pytest.fixture
def peer() -> Iterator[Peer]:
    """An archive on the network."""
    peer = Peer().start()
    yield peer
    peer.stop()


@pytest.fixture
def archive(peer: Peer, tmp_path: Path) -> Archive:
    """Our side of it, with two series sent."""
    for series in range(2):
        for number in range(3):
            _save(tmp_path, series, number)
    archive = open_archive(parse_address(peer.address))
    assert [fault for _, fault in archive.send(dicom_files([tmp_path / "in"]))] == [None] * 6
    return archive


def _save(folder: Path, series: int, number: int) -> Path:
    (folder / "in").mkdir(exist_ok=True)
    uids = {"SOPInstanceUID": f"1.2.{series}.{number}", "SeriesInstanceUID": f"1.2.{series}"}
    return save_slice(folder / "in" / f"{series}-{number}.dcm", **uids, SeriesDescription=f"series {series}")


def test_search_goes_down_the_levels(archive: Archive) -> None:
    assert [match.StudyInstanceUID for match in search(archive, "study", {})] == ["1.2.3.6"]
    assert {match.SeriesInstanceUID for match in search(archive, "series", {})} == {"1.2.0", "1.2.1"}
    assert len(search(archive, "series", {}, limit=1)) == 1
    assert held(archive, "1.2.3.6", "1.2.0") == {"1.2.0.0", "1.2.0.1", "1.2.0.2"}
    assert held(archive, "1.2.3.6", "1.2.9") == set()


@pytest.mark.parametrize(("series", "count"), [(None, 6), ("1.2.1", 3)])
def test_what_was_sent_comes_back(archive: Archive, tmp_path: Path, series: str | None, count: int) -> None:
    steps: list[tuple[int, int]] = []
    assert retrieve(archive, "1.2.3.6", series, tmp_path / "out", progress=lambda *each: steps.append(each)) == count
    assert steps[-1] == (count, count)
    back = pydicom.dcmread(tmp_path / "out" / "1.2.1" / "1.2.1.2.dcm")
    assert back == pydicom.dcmread(tmp_path / "in" / "1-2.dcm")
    with pytest.raises(UsageError, match="already there"):
        retrieve(archive, "1.2.3.6", None, tmp_path / "out")


def test_less_than_promised_is_nothing(archive: Archive, peer: Peer, tmp_path: Path) -> None:
    peer.hidden = {"1.2.1.2"}
    with pytest.raises(ArchiveFailed, match="1 did not come"):
        retrieve(archive, "1.2.3.6", None, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    with pytest.raises(ArchiveFailed, match="no instances"):
        retrieve(archive, "1.2.3.99", None, tmp_path / "out")


def test_every_file_has_its_outcome(archive: Archive, peer: Peer, tmp_path: Path) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"\0" * 128 + b"DICM" + b"\x08\0\x60\0CS\xff\xff" + NAME.encode())
    peer.status = 0xA700
    outcomes = dict(archive.send([broken, _save(tmp_path, 5, 0)]))
    assert "0xA700" in (outcomes[tmp_path / "in" / "5-0.dcm"] or "")
    assert "object must" in (outcomes[broken] or "")
    assert NAME not in str(outcomes)


def test_an_archive_that_is_away(tmp_path: Path) -> None:
    for address in (f"NONE@127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}/dicom-web"):
        archive = open_archive(parse_address(address))
        with pytest.raises(ArchiveFailed, match="expected a connection"):
            archive.find("study", {})
        with pytest.raises(ArchiveFailed, match="expected a connection"):
            list(archive.send([_save(tmp_path, 0, 0)]))


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (401, "", "let in"),
        (404, "", "404"),
        (503, "", "503"),
        (200, "<html>", "in DICOMweb"),
        (200, '[{"00100020": 5}]', "in DICOMweb"),
    ],
)
def test_answers_that_are_none(status: int, body: str, word: str) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the handler passes
            pass

    with _serving(Answer) as url, pytest.raises(ArchiveFailed, match=word):
        open_archive(WebAddress(url)).find("study", {"PatientName": NAME})


@contextmanager
def _serving(answer: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()


def test_wildcards_go_out_as_they_are() -> None:
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that the handler passes
            pass

    with _serving(Answer) as url:
        assert open_archive(WebAddress(url)).find("study", {"StudyDescription": "T1*", "StudyDate": "2024-"}) == []
    assert "StudyDescription=T1*" in asked[0]


def test_heads_and_names(tmp_path: Path) -> None:
    path = save_slice(tmp_path / "a.dcm", Modality="MR", SeriesDescription=" T1 ")
    head = read_head(path)
    assert (head.instance, head.series, head.modality, head.description) == ("1.2.3.4", "1.2.3.5", "MR", "T1")
    with pytest.raises(ArchiveFailed, match="UIDs"):
        read_head(save_slice(tmp_path / "b.dcm", SeriesInstanceUID=""))
    assert safe_name("1.2.3") == "1.2.3"
    assert all(len(safe_name(uid)) == 32 for uid in ("../../etc", "..", "", "1" * 65))


def test_files_to_send(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    paths = [save_slice(tmp_path / "sub" / "a.dcm"), save_slice(tmp_path / "b")]
    (tmp_path / "text.txt").write_text("text")
    save_slice(tmp_path / "DICOMDIR")
    assert set(dicom_files([tmp_path])) == set(paths)
    for wrong in (tmp_path / "text.txt", tmp_path / "none"):
        with pytest.raises(UsageError):
            dicom_files([wrong])


def test_results_of_untrained_models_stay(tmp_path: Path) -> None:
    path = save_slice(tmp_path / "seg.dcm")
    untrained = Origin(model="m", weights="0", trained=False)
    require_trained([path])
    with pytest.raises(UsageError, match="trained"):
        require_trained([path, save_slice(tmp_path / "b.dcm", SeriesDescription=untrained.description("Segmentation"))])
    (tmp_path / "manifest.json").write_text('{"model": {"trained": true}}')
    require_trained([path])
    for text in ('{"model": {"trained": false}}', "{", "{}"):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UsageError, match="trained"):
            require_trained([path])
