"""Addresses, and what the environment adds to them."""

from pathlib import Path

import pytest

from medseg.errors import UsageError
from medseg_pipelines.pacs.address import VARIABLES, EntityAddress, WebAddress, access_for, parse_address

WEB = WebAddress("https://pacs.example/dicom-web")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(f"MEDSEG_DICOM_{name}", raising=False)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://pacs.example/dicom-web/", WEB),
        ("HTTP://localhost:8042/dicom-web", WebAddress("HTTP://localhost:8042/dicom-web")),
        ("PACS@host:104", EntityAddress("PACS", "host", 104)),
        ("MY PACS@10.0.0.1:11112", EntityAddress("MY PACS", "10.0.0.1", 11112)),
        ("PACS@[::1]:104", EntityAddress("PACS", "::1", 104)),
    ],
)
def test_both_forms(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pacs",
        "host:104",
        "PACS@host",
        "PACS@host:0",
        "PACS@host:70000",
        "A TITLE THAT IS LONG@host:104",
        "https://",
        "ftp://host",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="TITLE@host:port"):
        parse_address(text)


def test_a_password_in_an_address_is_refused() -> None:
    with pytest.raises(UsageError, match="must not hold a password") as refusal:
        parse_address("https://me:secret@host/dicom-web")
    assert "secret" not in str(refusal.value)


def test_secrets_of_a_destination_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_DICOM_USER", "general")
    monkeypatch.setenv("MEDSEG_DICOM_PASSWORD", "hidden-one")
    monkeypatch.setenv("MEDSEG_DICOM_AET", "OURS")
    monkeypatch.setenv("MEDSEG_DICOM_MY_PACS_TOKEN", "hidden-two")
    plain, named = access_for(WEB), access_for(WEB, "my-pacs")
    assert (plain.user, plain.password, plain.title) == ("general", "hidden-one", "OURS")
    assert (named.user, named.password, named.token, named.title) == (None, None, "hidden-two", "OURS")
    assert "hidden" not in f"{plain} {named}"


def test_a_password_in_the_clear_needs_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEG_DICOM_TOKEN", "hidden")
    assert access_for(WebAddress("http://127.0.0.1:8042/x")).token == "hidden"
    with pytest.raises(UsageError, match="https"):
        access_for(WebAddress("http://pacs.example/x"))
    monkeypatch.setenv("MEDSEG_DICOM_PLAIN", "1")
    assert access_for(WebAddress("http://pacs.example/x")).token == "hidden"


@pytest.mark.parametrize(
    ("name", "value"),
    [("TLS", "yes"), ("TIMEOUT", "soon"), ("TIMEOUT", "0"), ("CA", "/nowhere/ca.pem"), ("AET", "A TITLE THAT IS LONG")],
)
def test_values_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MEDSEG_DICOM_{name}", value)
    with pytest.raises(UsageError, match=f"MEDSEG_DICOM_{name}"):
        access_for(WEB)


def test_tls_needs_usable_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert access_for(WEB).tls_context() is None
    monkeypatch.setenv("MEDSEG_DICOM_TLS", "1")
    assert access_for(WEB).tls_context() is not None
    with pytest.raises(UsageError, match="certificate"):
        access_for(WEB).tls_context(server=True)
    (tmp_path / "cert.pem").write_text("no certificate")
    monkeypatch.setenv("MEDSEG_DICOM_CERT", str(tmp_path / "cert.pem"))
    with pytest.raises(UsageError, match="PEM"):
        access_for(WEB).tls_context()
