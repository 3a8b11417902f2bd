"""The storage service: what others send us by C-STORE."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
from pynetdicom.sop_class import Verification  # pyright: ignore[reportAttributeAccessIssue]

from medseg.errors import UsageError
from medseg_pipelines.pacs.address import Access, ArchiveFailed

SUCCESS, OUT_OF_RESOURCES, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000

log = logging.getLogger("medseg.pacs")


class NoRoom(Exception):
    """There is no room for more; the sender keeps the object and tries again later."""


class Received:
    """Answers C-STORE: success only after `store` has put the file where no crash can lose it.

    Args:
        store: Gets each file whole; raises `NoRoom`, or `ArchiveFailed` for what is no DICOM.
    """

    def __init__(self, store: Callable[[bytes], None]) -> None:
        self._store = store
        self._fault: Exception | None = None

    def __call__(self, event: evt.Event) -> int:
        try:
            self._store(event.encoded_dataset())
        except NoRoom:
            log.error("an object was turned away: the disk quota is used up")
            return OUT_OF_RESOURCES
        except ArchiveFailed as fault:
            log.error("an object was turned away: %s", fault)
            return NOT_UNDERSTOOD
        except Exception as fault:  # an error must become a status, or the sender would wait
            self._fault = fault
            log.error("an object was turned away: %s", type(fault).__name__)  # its text may quote a path or a value
            return OUT_OF_RESOURCES
        return SUCCESS

    def raise_fault(self) -> None:
        """Raise what went wrong here in another thread."""
        if self._fault is not None:
            raise self._fault


@contextmanager
def receiving(
    access: Access, address: tuple[str, int], handler: Received, *, callers: tuple[str, ...] = (), most: int = 10
) -> Iterator[int]:
    """Run the storage service in threads of its own; gives the port.

    Args:
        access: Our title and, for TLS, certificate and authorities.
        address: Host ("" for every interface) and port (0 for any).
        handler: What answers.
        callers: Titles that may call; empty for anybody.
        most: Associations at a time; each holds one object in memory.

    Raises:
        UsageError: The port cannot be had.
    """
    entity = AE(ae_title=access.title)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)
    entity.require_calling_aet = list(callers)
    entity.require_called_aet = bool(callers)
    entity.maximum_associations = most
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = access.timeout
    try:
        server = entity.start_server(
            address,
            block=False,
            ssl_context=access.tls_context(server=True),
            evt_handlers=[(evt.EVT_C_STORE, handler)],
        )
    except OSError:
        raise UsageError(f"port {address[1]} must be free to listen on, it is not; choose another") from None
    if server is None:
        raise UsageError(f"port {address[1]} must be free to listen on, it is not; choose another")
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
