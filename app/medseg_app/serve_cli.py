"""The commands around the web application: arguments to calls, no more."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from medseg.errors import UsageError
from medseg_app.exits import answering
from medseg_app.options import COMPUTE, Debug, Device, Json, parse_size

ACCESS, STORAGE = "Access", "Storage"

audit_app = typer.Typer(name="audit", help="The audit log of a server.", no_args_is_help=True)


@answering
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=ACCESS)] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535, rich_help_panel=ACCESS)] = 7860,
    auth: Annotated[
        Path | None,
        typer.Option(
            help="Who may log in; made with `medseg account`. Needed beyond loopback.", rich_help_panel=ACCESS
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which a browser may call it, as behind a proxy.", rich_help_panel=ACCESS),
    ] = None,
    archive: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=ADDRESS", help="An archive that results may be sent to.", rich_help_panel=ACCESS),
    ] = None,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Let every user search these archives, and open any patient's images.",
            rich_help_panel=ACCESS,
        ),
    ] = False,
    home: Annotated[Path | None, typer.Option(help="Folder of uploads and results.", rich_help_panel=STORAGE)] = None,
    keep_hours: Annotated[
        float, typer.Option(help="After which work is removed.", min=0.1, rich_help_panel=STORAGE)
    ] = 72,
    disk: Annotated[
        str, typer.Option(metavar="SIZE", help="Uploads and results together.", rich_help_panel=STORAGE)
    ] = "50GB",
    upload: Annotated[str, typer.Option(metavar="SIZE", help="One upload.", rich_help_panel=STORAGE)] = "4GB",
    runs: Annotated[int, typer.Option(help="Models that run at once.", min=1, rich_help_panel=COMPUTE)] = 1,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory of one run.", rich_help_panel=COMPUTE)] = "16GB",
    minutes: Annotated[float, typer.Option(help="Time of one run.", min=0.1, rich_help_panel=COMPUTE)] = 120,
    device: Device = "auto",
    debug: Debug = False,
) -> int:
    """Open the web page: look at a volume, restore or segment it, take the result home.

    It listens on this machine only; on a network it asks for names and passwords.
    """
    if find_spec("gradio") is None:
        raise UsageError("the web page needs packages that are not installed; use: pip install 'medseg[app]'")
    from medseg_app.jobs.store import Limits
    from medseg_app.jobs.supervisor import Bounds

    limits = Limits(upload_bytes=parse_size(upload) or 0, disk_bytes=parse_size(disk) or 0, keep_hours=keep_hours)
    bounds = Bounds(runs=runs, memory=parse_size(memory) or 0, minutes=minutes)
    from medseg_app.commands import serve  # Gradio takes seconds to load: a wrong size is told before

    return serve.run(
        host=host,
        port=port,
        auth=auth,
        allow_hosts=tuple(allow_host or ()),
        archives=tuple(archive or ()),
        search=search,
        home=home,
        limits=limits,
        bounds=bounds,
        device=device,
    )


@answering
def account(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file of accounts.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who may log in.", show_default=False)],
    debug: Debug = False,
) -> int:
    """Let somebody log in to `medseg serve --auth FILE`; the password is asked for, and kept as a hash."""
    from medseg_app.commands import audit

    return audit.add_account(file, name, typer.prompt("Password", hide_input=True, confirmation_prompt=True))


@audit_app.command()
@answering
def verify(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="The audit.jsonl of a server.", show_default=False)],
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Check that no line of the log was changed, removed or added; exit code 3 where one was."""
    from medseg_app.commands import audit

    return audit.check(log, json=json)
