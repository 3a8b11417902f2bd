"""The commands below `medseg dicom`: arguments to calls, no more."""

from pathlib import Path
from typing import Annotated

import typer

from medseg_app.exits import answering
from medseg_app.options import INPUT, MODEL, OUTPUT, Debug, Json, Quiet

SEARCH = "Search"

Address = Annotated[
    str,
    typer.Argument(metavar="ARCHIVE", help="https://host/dicom-web, or TITLE@host:port.", show_default=False),
]

app = typer.Typer(name="dicom", help="DICOM archives and de-identification.", no_args_is_help=True)


@app.command()
@answering
def find(
    archive: Address,
    level: Annotated[str, typer.Option(help="study, series or instance.", rich_help_panel=SEARCH)] = "study",
    study: Annotated[str | None, typer.Option(metavar="UID", help="Of this study.", rich_help_panel=SEARCH)] = None,
    series: Annotated[str | None, typer.Option(metavar="UID", help="Of this series.", rich_help_panel=SEARCH)] = None,
    modality: Annotated[str | None, typer.Option(help="Like CT.", rich_help_panel=SEARCH)] = None,
    description: Annotated[
        str | None, typer.Option(help="Of the study or series, * stands for anything.", rich_help_panel=SEARCH)
    ] = None,
    date: Annotated[str | None, typer.Option(help="20240131, or 20240101-20240131.", rich_help_panel=SEARCH)] = None,
    patient_id: Annotated[str | None, typer.Option(help="Of the patient.", rich_help_panel=SEARCH)] = None,
    patient_name: Annotated[str | None, typer.Option(help="Like Meier^*.", rich_help_panel=SEARCH)] = None,
    accession: Annotated[str | None, typer.Option(help="Accession number.", rich_help_panel=SEARCH)] = None,
    limit: Annotated[int, typer.Option(help="Of the answers.", min=1, rich_help_panel=SEARCH)] = 100,
    show_patient: Annotated[
        bool, typer.Option("--show-patient", help="Print who it is, too.", rich_help_panel=OUTPUT)
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Search an archive.

    Passwords and certificates come from the environment: MEDSEG_DICOM_USER and _PASSWORD or _TOKEN for DICOMweb; _AET
    (our title), _TLS=1, _CERT, _KEY for DIMSE; _CA for both.
    """
    from medseg_app.commands import dicom_archive

    filters = {
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "ModalitiesInStudy" if level == "study" else "Modality": modality,
        "StudyDescription" if level == "study" else "SeriesDescription": description,
        "StudyDate": date,
        "PatientID": patient_id,
        "PatientName": patient_name,
        "AccessionNumber": accession,
    }
    given = {name: value for name, value in filters.items() if value}
    return dicom_archive.find(archive, level=level, filters=given, limit=limit, show_patient=show_patient, json=json)


@app.command()
@answering
def get(
    archive: Address,
    study: Annotated[str, typer.Option(metavar="UID", help="This study.", rich_help_panel=SEARCH, show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.", rich_help_panel=OUTPUT, show_default=False)],
    series: Annotated[str | None, typer.Option(metavar="UID", help="Only this series.", rich_help_panel=SEARCH)] = None,
    move: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            help="Use C-MOVE: the archive sends to our title at this port of ours.",
            min=1,
            max=65535,
            rich_help_panel=INPUT,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Retrieve a study, or one series of it; the folder appears whole or not at all."""
    from medseg_app.commands import dicom_archive

    return dicom_archive.get(archive, study=study, series=series, out=out, move=move, json=json, quiet=quiet)


@app.command()
@answering
def send(
    archive: Address,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="DICOM files, or folders of them.", show_default=False)
    ],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Send files to an archive; results of untrained models are refused. Exit code 4 where only some were stored."""
    from medseg_app.commands import dicom_archive

    return dicom_archive.send(archive, inputs=tuple(inputs), json=json, quiet=quiet)


State = Annotated[
    Path | None,
    typer.Option(help="Folder of the queue and its files; default: with our other data.", rich_help_panel=OUTPUT),
]


@app.command()
@answering
def listen(
    rules: Annotated[Path, typer.Argument(metavar="RULES", help="A YAML file, see the README.", show_default=False)],
    state: State = None,
    debug: Debug = False,
) -> int:
    """Receive series by C-STORE, segment those that a rule fits, send the results; until Ctrl-C or SIGTERM.

    Nothing is lost when an archive is away or this program is killed: what is left to do waits in --state.
    """
    from medseg_app.commands import dicom_listen

    return dicom_listen.listen(rules, state or _default_state())


@app.command()
@answering
def queue(
    state: State = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try failed jobs again.", rich_help_panel=MODEL)] = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List the jobs of `medseg dicom listen`, and where they are."""
    from medseg_app.commands import dicom_listen

    return dicom_listen.queue(state or _default_state(), retry=retry, json=json)


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


def _default_state() -> Path:
    from medseg_pipelines.recipe import imported_models

    return imported_models().parent / "listener"
