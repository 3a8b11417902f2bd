"""DICOMweb: QIDO-RS, WADO-RS, STOW-RS."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from requests.adapters import HTTPAdapter

from medseg.io.deidentify import quiet
from medseg_pipelines.pacs.address import Access, ArchiveFailed, WebAddress
from medseg_pipelines.pacs.archive import KEYS, Level, Outcome

_OWN_UID = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID"}
_ABOVE = {"study": (), "series": ("StudyInstanceUID",), "instance": ("StudyInstanceUID", "SeriesInstanceUID")}
_PARAMETERS = {"StudyInstanceUID": "study_instance_uid", "SeriesInstanceUID": "series_instance_uid"}
_PORTION = 64 << 20  # bytes per request: one request per file would be slow, all at once would fill the memory

logging.getLogger("dicomweb_client").addHandler(logging.NullHandler())  # its messages quote addresses and UIDs


class _PlainWildcards(HTTPAdapter):
    """Sends * as it is, which a query may hold; some archives do not undo its escape and then find nothing."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        request.url = (request.url or "").replace("%2A", "*")
        return super().send(request, *args, **kwargs)


class WebArchive:
    """A DICOMweb service.

    Args:
        address: Where.
        access: Who we are.
    """

    def __init__(self, address: WebAddress, access: Access) -> None:
        self.address = address
        session = requests.Session()
        for scheme in ("https://", "http://"):
            session.mount(scheme, _PlainWildcards())
        session.trust_env = False  # no passwords from .netrc, no proxy of the environment between us and the archive
        session.verify = str(access.authorities) if access.authorities else True
        if access.certificate:
            session.cert = (str(access.certificate), str(access.key)) if access.key else str(access.certificate)
        if access.token:
            session.headers["Authorization"] = f"Bearer {access.token}"
        elif access.user:
            session.auth = (access.user, access.password or "")
        self._client = DICOMwebClient(address.url, session=session, timeout=access.timeout)
        self._client.set_http_retry_params(retry=False)  # trying again is the caller's business, who can wait longer

    def find(self, level: Level, filters: dict[str, str], limit: int | None = None) -> list[Dataset]:
        """See `Archive.find`."""
        search = {
            "study": self._client.search_for_studies,
            "series": self._client.search_for_series,
            "instance": self._client.search_for_instances,
        }[level]
        above = {name: filters[name] for name in _ABOVE[level] if name in filters}
        path = {_PARAMETERS[name]: value for name, value in above.items()}
        rest = {name: value for name, value in filters.items() if name not in above}
        matches: dict[str, Dataset] = {}
        while limit is None or len(matches) < limit:  # a service may give less at a time than it is asked for
            with self._plain_errors(), quiet():
                page = search(**path, search_filters=rest, fields=KEYS[level], limit=limit, offset=len(matches) or None)
                found = [Dataset.from_json(match) for match in page]
            new = {str(match.get(_OWN_UID[level], "")): match for match in found}
            if not new.keys() - matches.keys():  # the end, or a service that knows no pages and repeats itself
                break
            matches |= new
        for match in matches.values():  # a service need not repeat what stood in the path
            for name in above.keys() - match.dir():
                setattr(match, name, above[name])
        return list(matches.values())[:limit]

    def fetch(self, study: str, series: str, classes: frozenset[str], store: Callable[[bytes], None]) -> None:
        """See `Archive.fetch`; files come in the transfer syntax in which they are stored."""
        with self._plain_errors(), quiet():
            for dataset in self._client.iter_series(study, series, media_types=(("application/dicom", "*"),)):
                file = BytesIO()
                dataset.save_as(file, enforce_file_format=True)
                store(file.getvalue())

    def send(self, paths: Iterable[Path]) -> Iterator[Outcome]:
        """See `Archive.send`."""
        portion: list[Path] = []
        size = 0
        for path in paths:
            if portion and size + path.stat().st_size > _PORTION:
                yield from self._send(portion)
                portion, size = [], 0
            portion.append(path)
            size += path.stat().st_size
        if portion:
            yield from self._send(portion)

    def _send(self, paths: list[Path]) -> Iterator[Outcome]:
        with quiet():
            datasets = [pydicom.dcmread(path) for path in paths]
            with self._plain_errors():
                answer = self._client.store_instances(datasets)
        stored = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence", [])}
        reasons = {
            str(
                item.get("ReferencedSOPInstanceUID")
            ): f"refused with reason 0x{int(item.get('FailureReason') or 0):04X}"
            for item in answer.get("FailedSOPSequence", [])
        }
        for path, dataset in zip(paths, datasets, strict=True):
            uid = str(dataset.SOPInstanceUID)
            yield path, None if uid in stored else reasons.get(uid, "not confirmed by the archive")

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Errors of the connection as one line, without the address of a study."""
        try:
            yield
        except requests.exceptions.SSLError:
            raise ArchiveFailed(
                f"{self.address}: expected a certificate that can be trusted, got another; name its authority "
                "in MEDSEG_DICOM_CA"
            ) from None
        except requests.exceptions.Timeout:
            raise ArchiveFailed(f"{self.address}: expected an answer, got none in time; try again later") from None
        except requests.exceptions.HTTPError as error:
            raise ArchiveFailed(f"{self.address}: {_meaning(error)}") from None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError):  # an answer that is not DICOMweb at all
            raise ArchiveFailed(
                f"{self.address}: expected an answer in DICOMweb, got another; check the address"
            ) from None
        except requests.exceptions.RequestException:
            raise ArchiveFailed(
                f"{self.address}: expected a connection, got none; is it running, is the address right?"
            ) from None


def _meaning(error: requests.exceptions.HTTPError) -> str:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return f"expected to be let in, got status {status}; set MEDSEG_DICOM_USER and _PASSWORD, or _TOKEN"
    if status == 404:
        return "expected a DICOMweb service or study, got status 404; check the address and the UIDs"
    return f"expected success, got status {status}; try again later, or ask who runs it"
