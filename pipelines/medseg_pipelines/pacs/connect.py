"""The one door to an archive."""

from medseg_pipelines.pacs.address import Access, Address, EntityAddress, WebAddress, access_for
from medseg_pipelines.pacs.archive import Archive
from medseg_pipelines.pacs.dimse import EntityArchive
from medseg_pipelines.pacs.web import WebArchive


def open_archive(address: Address, access: Access | None = None, *, receive_on: int | None = None) -> Archive:
    """The archive at an address; nothing is sent yet.

    Args:
        address: Where.
        access: Who we are; by default what the environment says.
        receive_on: Port on which a DIMSE archive can reach us for C-MOVE; None retrieves by C-GET.

    Raises:
        UsageError: What the environment says makes no sense.
    """
    access = access or access_for(address)
    match address:
        case WebAddress():
            return WebArchive(address, access)
        case EntityAddress():
            return EntityArchive(address, access, receive_on=receive_on)
