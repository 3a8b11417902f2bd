"""`medseg weights`: arguments to calls."""

from typing import Annotated

import typer

from medseg_app.exits import answering
from medseg_app.options import INPUT, Debug, Json, Overwrite, Quiet

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `medseg weights list` shows it.", show_default=False)]

app = typer.Typer(name="weights", help="Weights that you bring, in one folder.", no_args_is_help=True)


@app.command()
@answering
def add(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A public checkpoint, or a name of your own for your file.", show_default=False
        ),
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|URL]",
            help="safetensors, or .pt/.pth read as data alone; none: a public one is downloaded.",
            show_default=False,
        ),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(metavar="HEX", help="What the file must hash to.", rich_help_panel=INPUT)
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Take weights from a file or an address into the folder, checked and stored as safetensors."""
    from medseg_app.commands import weights

    return weights.add(name, source, sha256=sha256, overwrite=overwrite, json=json, quiet=quiet)


@app.command(name="list")
@answering
def show(json: Json = False, debug: Debug = False) -> int:
    """What is in the folder, and which public checkpoints are not."""
    from medseg_app.commands import weights

    return weights.show(json=json)


@app.command()
@answering
def verify(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Default: all of them.", show_default=False)
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Whether the files are still what was added; exit code 5 where one is not."""
    from medseg_app.commands import weights

    return weights.verify(name, json=json)


@app.command()
@answering
def remove(name: Name, json: Json = False, debug: Debug = False) -> int:
    """Delete weights from the folder."""
    from medseg_app.commands import weights

    return weights.remove(name, json=json)
