"""The commands below `medseg dicom`: arguments to calls, no more."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_app.exits import answering
from medseg_app.options import INPUT, OUTPUT, Debug, Json, Quiet

app = typer.Typer(name="dicom", help="DICOM archives and de-identification.", no_args_is_help=True)


@app.command()
@answering
def deidentify(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A DICOM file, or a folder of them.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.", rich_help_panel=OUTPUT, show_default=False)],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Secret of the mapping, mode 600; default: MEDSEG_DEIDENTIFY_KEY, or one made on first use.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    dates: Annotated[
        str, typer.Option(help="remove, or shift: keep a patient's intervals.", rich_help_panel=OUTPUT)
    ] = "remove",
    burned_in: Annotated[
        str,
        typer.Option(help="Pixels that may show a name: refuse, skip, or keep (you looked).", rich_help_panel=INPUT),
    ] = "refuse",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Copy DICOM without what identifies the patient, by the basic profile of PS3.15.

    Equal identifiers stay equal under the same key. Pixels are never changed, so whatever is drawn into them stays.
    """
    from medseg_app.commands import dicom_deidentify

    return dicom_deidentify.run(source, out, key=key, dates=dates, burned_in=burned_in, json=json, quiet=quiet)
