"""The commands below `medseg support`: arguments to calls, no more."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_app.exits import answering
from medseg_app.options import INPUT, MODEL, OUTPUT, Debug, Json, Overwrite

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the support set.", show_default=False)]

app = typer.Typer(
    name="support",
    help="Support sets: 3 to 10 outlined cases that show a model what to segment (`medseg infer --support NAME`).",
    no_args_is_help=True,
)


@app.command()
@answering
def create(
    name: Name,
    image: Annotated[
        list[Path], typer.Option("--image", help="Once per case: a volume or a picture.", rich_help_panel=INPUT)
    ],
    label: Annotated[
        list[Path],
        typer.Option("--label", help="Once per case, in the same order, on the same grid.", rich_help_panel=INPUT),
    ],
    names: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help='Which ids count, and what they mean: "17=hippocampus,18=amygdala".',
            rich_help_panel=MODEL,
        ),
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="As DICOM names it, where files do not tell.", rich_help_panel=MODEL)
    ] = None,
    plane: Annotated[
        str | None,
        typer.Option(
            help="axial, coronal or sagittal; default: across the coarsest axis of the first case.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Keep outlined cases as a support set, under a name, on this machine."""
    from medseg_app.commands import support

    return support.create(
        name, image, label, names=names, modality=modality, plane=plane, overwrite=overwrite, json=json
    )


@app.command(name="list")
@answering
def listing(json: Json = False, debug: Debug = False) -> int:
    """List the support sets of this machine."""
    from medseg_app.commands import support

    return support.listing(json=json)


@app.command()
@answering
def show(
    name: Name,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="PNG of the contact sheet; default: NAME.png here.", rich_help_panel=OUTPUT),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Say what a support set holds, and draw its contact sheet."""
    from medseg_app.commands import support

    return support.show(name, out, overwrite=overwrite, json=json)


@app.command()
@answering
def remove(name: Name, json: Json = False, debug: Debug = False) -> int:
    """Delete a support set, slices and outlines."""
    from medseg_app.commands import support

    return support.remove(name, json=json)
