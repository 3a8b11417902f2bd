"""DIMSE: C-FIND, C-GET or C-MOVE, C-STORE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,  # pyright: ignore[reportAttributeAccessIssue]
    StudyRootQueryRetrieveInformationModelGet,  # pyright: ignore[reportAttributeAccessIssue]
    StudyRootQueryRetrieveInformationModelMove,  # pyright: ignore[reportAttributeAccessIssue]
)

from medseg.io.deidentify import quiet
from medseg_pipelines.pacs.address import Access, ArchiveFailed, EntityAddress
from medseg_pipelines.pacs.archive import KEYS, Head, Level, Outcome, read_head
from medseg_pipelines.pacs.receiver import Received, receiving

_LEVELS = {"study": "STUDY", "series": "SERIES", "instance": "IMAGE"}
_MOST_CONTEXTS = 127  # of the 128 of an association, one is for the question
_COMMON = tuple(  # what an archive holds most, asked for where it does not say which classes a series has
    f"1.2.840.10008.5.1.4.1.1.{end}"
    for end in ("2", "2.1", "4", "4.1", "128", "130", "20", "1", "1.1", "6.1", "7", "12.1", "66.4", "481.3", "88.33")
)


class EntityArchive:
    """An application entity.

    Args:
        address: Where.
        access: Who we are.
        receive_on: Port on which the archive can reach us for C-MOVE; None retrieves by C-GET.
    """

    def __init__(self, address: EntityAddress, access: Access, *, receive_on: int | None = None) -> None:
        self.address = address
        self._access = access
        self._receive_on = receive_on

    def find(self, level: Level, filters: dict[str, str], limit: int | None = None) -> list[Dataset]:
        """See `Archive.find`."""
        question = Dataset()
        question.QueryRetrieveLevel = _LEVELS[level]
        for name in KEYS[level]:
            setattr(question, name, "")
        for name, value in filters.items():
            setattr(question, name, value)
        model, found = StudyRootQueryRetrieveInformationModelFind, []
        with quiet(), self._associated([build_context(model)]) as association:
            for status, match in association.send_c_find(question, model):
                self._require(status, "query")
                if match is not None:
                    found.append(match)
                if limit is not None and len(found) >= limit:
                    break  # the association ends here, and with it the query
        return found

    def fetch(self, study: str, series: str, classes: frozenset[str], store: Callable[[bytes], None]) -> None:
        """See `Archive.fetch`."""
        question = Dataset()
        question.QueryRetrieveLevel = "SERIES"
        question.StudyInstanceUID, question.SeriesInstanceUID = study, series
        if self._receive_on is None:
            self._get(question, classes, store)
        else:
            self._move(question, store)

    def send(self, paths: Iterable[Path]) -> Iterator[Outcome]:
        """See `Archive.send`."""
        heads: dict[Path, Head] = {}
        for path in paths:
            try:
                heads[path] = read_head(path)
            except ArchiveFailed as fault:
                yield path, str(fault)
        kinds = sorted({(head.sop_class, head.syntax) for head in heads.values()})
        for start in range(0, len(kinds), _MOST_CONTEXTS):
            these = kinds[start : start + _MOST_CONTEXTS]
            contexts = [build_context(sop_class, syntax) for sop_class, syntax in these]
            with quiet(), self._associated(contexts) as association:
                for path, head in heads.items():
                    if (head.sop_class, head.syntax) in these:
                        yield path, self._store(association, path, head)

    def _store(self, association: Association, path: Path, head: Head) -> str | None:
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in association.accepted_contexts}
        if (head.sop_class, head.syntax) not in accepted:
            return f"the archive takes no {UID(head.sop_class).name} in {UID(head.syntax).name}"
        status = association.send_c_store(path)
        if "Status" not in status:
            raise self._lost()
        return (
            None if status.Status == 0 or status.Status >> 12 == 0xB else f"refused with status 0x{status.Status:04X}"
        )

    def _get(self, question: Dataset, classes: frozenset[str], store: Callable[[bytes], None]) -> None:
        wanted = sorted(classes) or list(_COMMON)
        syntaxes: list[str | UID] = list(AllTransferSyntaxes)
        if len(wanted) * len(syntaxes) > _MOST_CONTEXTS:  # one context per class leaves the choice to the archive
            storage = [build_context(uid, syntaxes) for uid in wanted[:_MOST_CONTEXTS]]
        else:  # one per class and syntax, so that every file can come as it is stored
            storage = [build_context(uid, syntax) for uid in wanted for syntax in syntaxes]
        roles = [build_role(UID(uid), scp_role=True) for uid in wanted[:_MOST_CONTEXTS]]
        handler = Received(store)
        model = StudyRootQueryRetrieveInformationModelGet
        with (
            quiet(),
            self._associated([build_context(model), *storage], roles, [(evt.EVT_C_STORE, handler)]) as association,
        ):
            for status, _ in association.send_c_get(question, model):
                handler.raise_fault()
                self._require(status, "retrieval")

    def _move(self, question: Dataset, store: Callable[[bytes], None]) -> None:
        model, handler = StudyRootQueryRetrieveInformationModelMove, Received(store)
        with (
            quiet(),
            receiving(self._access, ("", self._receive_on or 0), handler),
            self._associated([build_context(model)]) as association,
        ):
            for status, _ in association.send_c_move(question, self._access.title, model):
                handler.raise_fault()
                self._require(status, "retrieval")

    @contextmanager
    def _associated(
        self, contexts: list[PresentationContext], roles: list[Any] | None = None, handlers: list[Any] | None = None
    ) -> Iterator[Association]:
        entity = AE(ae_title=self._access.title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._access.timeout
        entity.connection_timeout = self._access.timeout
        context = self._access.tls_context()
        association = entity.associate(
            self.address.host,
            self.address.port,
            contexts=contexts,
            ae_title=self.address.title,
            ext_neg=roles or [],
            tls_args=(context, self.address.host) if context else None,
            evt_handlers=handlers or [],
        )
        if not association.is_established:
            raise ArchiveFailed(f"{self.address}: {_why_not(association)}")
        try:
            yield association
        finally:
            association.release() if association.is_established else association.abort()

    def _require(self, status: Dataset, what: str) -> None:
        """Go on with success, pending and warnings only."""
        if "Status" not in status:
            raise self._lost()
        code = int(status.Status)
        if code == 0xA801:
            raise ArchiveFailed(
                f"{self.address}: expected it to know us as {self._access.title}, got status 0xA801; "
                "have us entered there"
            )
        if code not in (0x0000, 0xFF00, 0xFF01):
            raise ArchiveFailed(f"{self.address}: expected the {what} to succeed, got status 0x{code:04X}; try again")

    def _lost(self) -> ArchiveFailed:
        return ArchiveFailed(f"{self.address}: expected an answer, got none; the connection was lost, try again")


def _why_not(association: Association) -> str:
    if association.is_rejected:
        return "expected an association, got a refusal; the titles must be known there (MEDSEG_DICOM_AET is ours)"
    if association.acceptor.primitive is not None:
        return "expected its services, got none of those needed; it does not offer them to us"
    return "expected a connection, got none; is it running, are host, port and TLS right?"
