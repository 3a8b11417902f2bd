"""An archive of a few lines, in memory, for tests that must be quick: C-STORE, C-FIND, C-GET."""

from collections.abc import Iterator
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,  # pyright: ignore[reportAttributeAccessIssue]
    StudyRootQueryRetrieveInformationModelGet,  # pyright: ignore[reportAttributeAccessIssue]
)

from orthanc import free_port

_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_LEVELS = ("STUDY", "SERIES", "IMAGE")


class Peer:
    """An archive that counts what it is sent.

    Attributes:
        held: What it holds, by SOP Instance UID.
        arrivals: SOP Instance UIDs in the order of their arrival, each as often as it came.
        status: What it answers to C-STORE.
        hidden: SOP Instance UIDs that it lists but does not give.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.held: dict[str, Dataset] = {}
        self.arrivals: list[str] = []
        self.status = 0x0000
        self.hidden: set[str] = set()
        self._server: Any = None

    @property
    def address(self) -> str:
        """Where it is."""
        return f"PEER@127.0.0.1:{self.port}"

    def start(self) -> "Peer":
        """Put it on the network."""
        entity = AE(ae_title="PEER")
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(
                str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True
            )
        for model in (StudyRootQueryRetrieveInformationModelFind, StudyRootQueryRetrieveInformationModelGet):
            entity.add_supported_context(model)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get)]
        self._server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        return self

    def stop(self) -> None:
        """Take it off the network; what it holds stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def _store(self, event: evt.Event) -> int:
        if self.status == 0:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.arrivals.append(dataset.SOPInstanceUID)
            self.held[dataset.SOPInstanceUID] = dataset
        return self.status

    def _matches(self, question: Dataset) -> list[Dataset]:
        return [
            held
            for held in self.held.values()
            if all(str(question.get(name) or held[name].value) == held[name].value for name in _UIDS)
        ]

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        question = event.identifier
        names = _UIDS[: 1 + _LEVELS.index(question.QueryRetrieveLevel)]
        seen = set()
        for held in self._matches(question):
            key = tuple(held[name].value for name in names)
            if key not in seen:
                seen.add(key)
                answer = Dataset()
                for element in question:
                    setattr(answer, element.keyword, held.get(element.keyword, ""))
                answer.QueryRetrieveLevel = question.QueryRetrieveLevel
                yield 0xFF00, answer

    def _get(self, event: evt.Event) -> Iterator[Any]:
        found = [held for held in self._matches(event.identifier) if held.SOPInstanceUID not in self.hidden]
        yield len(found)
        for held in found:
            yield 0xFF00, held
