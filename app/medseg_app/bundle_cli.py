"""The commands below `medseg bundle`: arguments to calls, no more."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_app.exits import answering
from medseg_app.options import INPUT, MODEL, OUTPUT, Debug, Json, Model, Overwrite

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder or the zip.", show_default=False)]

app = typer.Typer(name="bundle", help="MONAI bundles: write, check, import.", no_args_is_help=True)


@app.command()
@answering
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `medseg models`, or a model folder.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="A new folder, or a new .zip.", rich_help_panel=OUTPUT, show_default=False),
    ],
    support: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For support-set: outlined cases that the bundle follows for good, of `medseg support list`.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Write a model as a MONAI bundle that carries its own code, and check it; one that fails is not kept."""
    from medseg_app.commands import bundle

    return bundle.export(model, out, support=support, overwrite=overwrite, json=json)


@app.command()
@answering
def check(bundle: Bundle, model: Model = None, json: Json = False, debug: Debug = False) -> int:
    """Check a bundle of ours in ten points, one of them the result of `medseg infer`; exit code 1 where one fails."""
    from medseg_app.commands import bundle as commands

    return commands.check(bundle, model=model, json=json)


@app.command(name="import")
@answering
def load(
    bundle: Bundle,
    name: Annotated[
        str | None, typer.Option(help="Of the model; default: the bundle's own.", rich_help_panel=MODEL)
    ] = None,
    trust_code: Annotated[
        str | None,
        typer.Option(
            metavar="SHA256",
            help="Run the code of its network, which you have read; never that of its transforms.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Make a MONAI bundle a model here, without running its code; what is not understood is refused and listed."""
    from medseg_app.commands import bundle as commands

    return commands.load(bundle, name=name, trust_code=trust_code, json=json)
