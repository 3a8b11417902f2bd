"""DIMSE over TLS: both sides show certificates, strangers and open connections get nothing."""

import shutil
import subprocess
from pathlib import Path

import pytest

from dicom_made_up import save_slice
from medseg_pipelines.pacs.address import Access, ArchiveFailed, EntityAddress
from medseg_pipelines.pacs.connect import open_archive
from medseg_pipelines.pacs.receiver import Received, receiving


def _certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for this machine, and its key."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = [
        program,
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def test_both_sides_must_be_known(tmp_path: Path) -> None:
    ours, ours_key = _certificate(tmp_path, "ours")
    other, other_key = _certificate(tmp_path, "other")
    path, got = save_slice(tmp_path / "a.dcm"), []
    server = Access(tls=True, authorities=ours, certificate=ours, key=ours_key, timeout=10)
    with receiving(server, ("127.0.0.1", 0), Received(got.append)) as port:
        address = EntityAddress("MEDSEG", "127.0.0.1", port)
        assert list(open_archive(address, server).send([path])) == [(path, None)]
        for stranger in (
            Access(timeout=10),
            Access(tls=True, authorities=ours, timeout=10),
            Access(tls=True, authorities=ours, certificate=other, key=other_key, timeout=10),
            Access(tls=True, authorities=other, certificate=ours, key=ours_key, timeout=10),
        ):
            with pytest.raises(ArchiveFailed):
                list(open_archive(address, stranger).send([path]))
    assert len(got) == 1
