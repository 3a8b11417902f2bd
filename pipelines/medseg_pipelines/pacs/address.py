"""Where an archive is and how to prove who we are: an address from the user, secrets from the environment only.

`https://host/dicom-web` is DICOMweb, `TITLE@host:port` is DIMSE. A named destination has variables of its own
(`MEDSEG_DICOM_ARCHIVE_USER` for one called archive), which go before the plain ones; its user, password and token are
never taken from the plain ones, so that no archive sees the password of another.
"""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from medseg.errors import MedsegError, UsageError

DEFAULT_TITLE = "MEDSEG"
VARIABLES = {
    "AET": "our application entity title, MEDSEG by default",
    "USER": "user name, DICOMweb",
    "PASSWORD": "its password",
    "TOKEN": "bearer token instead of both",
    "TLS": "1 for DIMSE over TLS",
    "CA": "file of the authorities to trust, instead of the system's",
    "CERT": "file of our own certificate",
    "KEY": "file of its private key",
    "TIMEOUT": "seconds without an answer, 60 by default",
    "PLAIN": "1 to allow a password over http to another machine",
}

_SECRET = ("USER", "PASSWORD", "TOKEN")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class ArchiveFailed(MedsegError):
    """The archive is away, refuses, or answers with less than it said; nothing here is at fault, a later try may do."""


@dataclass(frozen=True)
class WebAddress:
    """A DICOMweb service."""

    url: str

    def __str__(self) -> str:
        return urlsplit(self.url).netloc


@dataclass(frozen=True)
class EntityAddress:
    """An application entity."""

    title: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


Address = WebAddress | EntityAddress


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who we are to an archive; secrets are left out of what is printed of it."""

    title: str = DEFAULT_TITLE
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    authorities: Path | None = None
    certificate: Path | None = None
    key: Path | None = field(default=None, repr=False)
    timeout: float = 60.0
    plain: bool = False

    def tls_context(self, *, server: bool = False) -> ssl.SSLContext | None:
        """What a DIMSE connection is wrapped in, or None.

        Args:
            server: For connections that others open; they must show a certificate where `authorities` are named.

        Raises:
            UsageError: A file is missing or unusable.
        """
        if not self.tls:
            return None
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        try:
            context = ssl.create_default_context(purpose, cafile=self.authorities)
            if self.certificate:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError):
            raise UsageError(
                "TLS files must be readable PEM files, they are not; check the CA, CERT, KEY variables"
            ) from None
        if server and not self.certificate:
            raise UsageError("TLS of a listener needs a certificate, none is named; set MEDSEG_DICOM_CERT and _KEY")
        if server and self.authorities:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def parse_address(text: str) -> Address:
    """The archive that the user means.

    Raises:
        UsageError: It is no address, or it holds a password.
    """
    if re.match(r"https?://", text, re.IGNORECASE):
        parts = urlsplit(text)
        if parts.username or parts.password:
            raise UsageError("address must not hold a password, others could read it; use MEDSEG_DICOM_USER, _PASSWORD")
        if parts.hostname:
            return WebAddress(text.rstrip("/"))
    match = re.fullmatch(r"([^@\\]{1,16})@(.+):(\d{1,5})", text)
    if match and match[1].strip() and 0 < int(match[3]) < 65536:
        return EntityAddress(match[1].strip(), match[2].strip("[]"), int(match[3]))
    raise UsageError("address must be https://host/path or TITLE@host:port, got something else; correct it")


def parse_destination(name: str, text: str) -> Address:
    """The archive that the user calls by a name.

    Raises:
        UsageError: The name cannot be part of a variable's name, or the rest is no address.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
        raise UsageError(f"name '{name}' must be letters, digits, - and _")
    return parse_address(text)


def access_for(address: Address, name: str | None = None) -> Access:
    """What the environment says of an archive.

    Args:
        address: Which one.
        name: Of a destination, whose variables go first.

    Raises:
        UsageError: A value makes no sense, or a password would travel in the clear.
    """
    value = {variable: _variable(variable, name) for variable in VARIABLES}
    access = Access(
        title=value["AET"] or DEFAULT_TITLE,
        user=value["USER"],
        password=value["PASSWORD"],
        token=value["TOKEN"],
        tls=_switch("TLS", value["TLS"]),
        authorities=_path("CA", value["CA"]),
        certificate=_path("CERT", value["CERT"]),
        key=_path("KEY", value["KEY"]),
        timeout=_seconds(value["TIMEOUT"]),
        plain=_switch("PLAIN", value["PLAIN"]),
    )
    if len(access.title) > 16 or not access.title.strip() or "\\" in access.title:
        raise UsageError("MEDSEG_DICOM_AET must have 1 to 16 characters and no backslash; shorten it")
    if isinstance(address, WebAddress) and (access.user or access.token) and not access.plain:
        parts = urlsplit(address.url)
        if parts.scheme.lower() == "http" and parts.hostname not in _LOOPBACK:
            raise UsageError(
                f"{address}: a password over http can be read by others; use https, or MEDSEG_DICOM_PLAIN=1"
            )
    return access


def _variable(variable: str, name: str | None) -> str | None:
    if name is not None:
        own = os.environ.get(f"MEDSEG_DICOM_{re.sub('[^A-Z0-9]', '_', name.upper())}_{variable}")
        if own or variable in _SECRET:
            return own or None
    return os.environ.get(f"MEDSEG_DICOM_{variable}") or None


def _switch(variable: str, text: str | None) -> bool:
    if text not in (None, "0", "1"):
        raise UsageError(f"MEDSEG_DICOM_{variable} must be 0 or 1, got something else; correct it")
    return text == "1"


def _path(variable: str, text: str | None) -> Path | None:
    path = Path(text) if text else None
    if path is not None and not path.is_file():
        raise UsageError(f"MEDSEG_DICOM_{variable} must name a file, found none; correct it")
    return path


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 60)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise UsageError("MEDSEG_DICOM_TIMEOUT must be seconds, up to 3600; correct it")
    return seconds
