"""`medseg serve`: the web application on this machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import uvicorn

from medseg.errors import UsageError
from medseg_app.jobs.store import Limits, default_home
from medseg_app.jobs.supervisor import Bounds
from medseg_app.output import tell
from medseg_app.server.accounts import read_accounts
from medseg_app.server.guard import LOOPBACK
from medseg_app.server.place import Settings
from medseg_app.server.quiet import WithoutText
from medseg_app.server.site import build_site
from medseg_pipelines.pacs.address import parse_destination


def run(
    *,
    host: str,
    port: int,
    auth: Path | None,
    allow_hosts: tuple[str, ...],
    home: Path | None,
    limits: Limits,
    bounds: Bounds,
    device: str,
    archives: tuple[str, ...] = (),
    search: bool = False,
) -> int:
    """Serve until the process is asked to stop.

    Raises:
        UsageError: It would be open to the network without login, or accounts or an archive cannot be used.
    """
    if search and not archives:
        raise UsageError("--search needs an archive to search, got none; name it with --archive NAME=ADDRESS")
    if host not in LOOPBACK and auth is None:
        raise UsageError(
            f"host '{host}' is open to the network: give --auth FILE, made with `medseg account FILE NAME`"
        )
    where = (home or default_home()).resolve()
    settings = Settings(
        home=where,
        hosts=(*LOOPBACK, *allow_hosts) if host in LOOPBACK or allow_hosts else (),
        accounts=None if auth is None else read_accounts(auth),
        limits=limits,
        bounds=bounds,
        device=device,
        archives=_destinations(archives),
        search=search,
    )
    site, _ = build_site(settings)
    empty = where / "empty"
    empty.mkdir(exist_ok=True)
    os.chdir(empty)  # Gradio hands out files below the working folder
    tell(f"medseg serves http://{'[::1]' if host == '::1' else host}:{port}/ (Ctrl-C ends it)")
    # No access log: it would hold addresses of users, and names of jobs beside them.
    config = uvicorn.Config(
        site, host=host, port=port, log_level="warning", access_log=False, server_header=False, ws="none"
    )
    logging.getLogger("uvicorn.error").addFilter(WithoutText())
    try:
        uvicorn.Server(config).run()
    except KeyboardInterrupt:  # uvicorn passes on the signal after it has stopped in order: nothing went wrong
        tell("medseg has stopped; jobs that were running begin again with the next start")
    return 0


def _destinations(archives: tuple[str, ...]) -> dict[str, str]:
    """Name to address, from NAME=ADDRESS."""
    found = {}
    for text in archives:
        name, _, address = text.partition("=")
        parse_destination(name, address)
        found[name] = address
    return found
