"""The commands: arguments to calls, no more. Nothing here loads torch; each command's module is loaded when it runs."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from medseg import __version__
from medseg_app.bundle_cli import app as bundle_app
from medseg_app.dicom_cli import app as dicom_app
from medseg_app.exits import CANCELLED, answering, stop_on_terminate
from medseg_app.options import (
    COMPUTE,
    INPUT,
    MODEL,
    OUTPUT,
    Boxes,
    Consensus,
    CorrectGeometry,
    Debug,
    Device,
    EmbeddingsFolder,
    EnforceConsistency,
    Engine,
    Formats,
    Frames,
    Json,
    MemoryLimit,
    Model,
    Noise,
    NoPropagate,
    Out,
    Overwrite,
    Partition,
    Points,
    PromptFile,
    Quiet,
    Regions,
    SaveRegions,
    SegEncoding,
    Series,
    Support,
    TimePoint,
    Verbose,
    WeightsName,
    Window,
    parse_size,
)
from medseg_app.serve_cli import account, audit_app, serve
from medseg_app.support_cli import app as support_app
from medseg_app.weights_cli import app as weights_app

_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads cost up to ten times the time beside other load
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "0",
}

MEASURES = "Measures"

app = typer.Typer(
    name="medseg",
    help="Segment medical volumes on their own voxel grid. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bundle_app)
app.add_typer(dicom_app)
app.command()(serve)
app.command()(account)
app.add_typer(audit_app)
app.add_typer(support_app)
app.add_typer(weights_app)


def main() -> None:
    """The `medseg` command."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    stop_on_terminate()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(CANCELLED)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Restore and segment medical volumes on their own voxel grid. Research use only, not a medical device."""


@app.command()
@answering
def infer(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT",
            help="NIfTI, MGH, NRRD or MetaImage files; DICOM as folder, zip, DICOMDIR or file; PNG, JPEG, TIFF, BMP.",
            show_default=False,
        ),
    ],
    model: Model = None,
    out: Out = None,
    formats: Formats = "nifti",
    seg_encoding: SegEncoding = "binary",
    time_point: TimePoint = None,
    frames: Frames = None,
    series: Series = None,
    correct_geometry: CorrectGeometry = False,
    force_scope: Annotated[
        bool, typer.Option("--force-scope", help="Run on an image the model was not made for.", rich_help_panel=MODEL)
    ] = False,
    noise: Noise = None,
    regions: Regions = None,
    save_regions: SaveRegions = False,
    partition: Partition = None,
    points: Points = None,
    boxes: Boxes = None,
    prompts: PromptFile = None,
    no_propagate: NoPropagate = False,
    consensus: Consensus = False,
    window: Window = None,
    weights: WeightsName = None,
    embeddings: EmbeddingsFolder = None,
    support: Support = None,
    enforce_consistency: EnforceConsistency = False,
    device: Device = "auto",
    engine: Engine = "auto",
    memory_limit: MemoryLimit = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, write nothing.", rich_help_panel=OUTPUT)
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> int:
    """Restore or segment volumes and pictures; each result lies on the grid of its input.

    A result is a folder: beside its input as NAME_MODEL, or -o; with several inputs -o holds one folder for each.
    """
    from medseg_app.commands import infer
    from medseg_app.commands.prompts import PromptRequest

    request = infer.Request(
        inputs=tuple(inputs),
        model=model,
        out=out,
        formats=formats,
        seg_encoding=seg_encoding,
        device=device,
        engine=engine,
        time_point=time_point,
        frames=frames,
        series=series,
        correct_geometry=correct_geometry,
        memory_limit=parse_size(memory_limit),
        force_scope=force_scope,
        noise=noise,
        regions=regions,
        save_regions=save_regions,
        partition=partition,
        prompting=PromptRequest(
            points=tuple(points or ()),
            boxes=tuple(boxes or ()),
            file=prompts,
            propagate=not no_propagate,
            consensus=consensus,
            window=window,
            weights=weights,
            embeddings=embeddings,
        ),
        support=support,
        enforce_consistency=enforce_consistency,
        overwrite=overwrite,
        dry_run=dry_run,
        json=json,
        quiet=quiet,
        verbose=verbose,
    )
    return infer.run(request)


@app.command()
@answering
def models(
    name: Annotated[str | None, typer.Argument(help="Print the card of this model.", show_default=False)] = None,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """List the models, or print the card of one: task, images, labels, licence, size, hash."""
    from medseg_app.commands import models

    return models.run(name, json=json)


@app.command()
@answering
def info(
    volume: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="The file; DICOM as folder, zip, DICOMDIR or file.", show_default=False),
    ],
    series: Series = None,
    correct_geometry: CorrectGeometry = False,
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Say what a file is: grid, spacing, orientation, and the problems found in it (then with exit code 3).

    Of DICOM, every series is listed with its number for --series.
    """
    from medseg_app.commands import info

    return info.run(volume, series=series, correct_geometry=correct_geometry, json=json)


@app.command()
@answering
def evaluate(
    prediction: Annotated[
        Path,
        typer.Argument(
            metavar="PRED",
            help="A volume, a result folder, a folder of these, or a CSV table (prediction, reference[, case]).",
            show_default=False,
        ),
    ],
    reference: Annotated[
        Path | None, typer.Argument(metavar="[REF]", help="The reference, likewise; none for a table.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(
            "--map",
            help='freesurfer, or a JSON file: reference id (or "first-last") to our name, id, a list of them, '
            "or null to leave it out.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(help="labels, image, or auto: what the voxels look like.", rich_help_panel=INPUT)
    ] = "auto",
    resample: Annotated[
        bool, typer.Option("--resample", help="Bring the reference to the grid of PRED.", rich_help_panel=INPUT)
    ] = False,
    allow_unpaired: Annotated[
        bool, typer.Option("--allow-unpaired", help="Leave out cases of one folder only.", rich_help_panel=INPUT)
    ] = False,
    time_point: TimePoint = None,
    tolerance: Annotated[
        float, typer.Option(help="mm that a surface may be off in the NSD.", rich_help_panel=MEASURES)
    ] = 1.0,
    data_range: Annotated[
        float | None,
        typer.Option(help="Of PSNR, SSIM, NRMSE; default: max - min of REF.", rich_help_panel=MEASURES),
    ] = None,
    resamples: Annotated[
        int, typer.Option(help="Bootstrap draws for the intervals.", min=100, max=100_000, rich_help_panel=MEASURES)
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0, rich_help_panel=MEASURES)] = 0,
    out: Out = None,
    overwrite: Overwrite = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, one row per case.", rich_help_panel=OUTPUT)] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Compare volumes with references: one pair, two folders paired by file name, or a table.

    Labels: Dice, NSD, HD95, ASD, volume error per structure. Images: PSNR, SSIM, NRMSE. Means over several cases come
    with bootstrap intervals; -o writes the figures and a picture.
    """
    from medseg_app.commands import evaluate

    request = evaluate.Request(
        prediction=prediction,
        reference=reference,
        mapping=mapping,
        kind=kind,
        time_point=time_point,
        resample=resample,
        allow_unpaired=allow_unpaired,
        tolerance=tolerance,
        data_range=data_range,
        resamples=resamples,
        seed=seed,
        out=out,
        overwrite=overwrite,
        form="json" if json else "csv" if csv else "table",
        quiet=quiet,
    )
    return evaluate.run(request)


@app.command()
@answering
def replay(
    manifest: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="The manifest.json of a result.", show_default=False)
    ],
    image: Annotated[
        Path | None, typer.Option("--input", help="The input, if it has moved.", rich_help_panel=INPUT)
    ] = None,
    model: Model = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Repeat a run from its manifest and compare bit for bit; exit code 1 where the result differs."""
    from medseg_app.commands import replay

    return replay.run(manifest, image=image, model=model, json=json, quiet=quiet)


@app.command()
@answering
def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG", help="A model name, a folder with a recipe, or her-seg, wau, fsg-net.", show_default=False
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder of the training data.", rich_help_panel=INPUT)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.", rich_help_panel=OUTPUT)],
    patients: Annotated[
        Path | None,
        typer.Option(help="CSV (file, patient): whose images are whose.", rich_help_panel=INPUT),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Earlier run of her-seg or her-seg-pretrain to start from.", rich_help_panel=MODEL),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="For her-seg-pretrain: a SAM of `medseg weights list`.", rich_help_panel=MODEL),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last step in -o.", rich_help_panel=MODEL)
    ] = False,
    device: Device = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that draw images.", min=0, rich_help_panel=COMPUTE)] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after this long; --resume goes on.", rich_help_panel=COMPUTE)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train a model from its recipe, or a network on a folder of images and masks of your own.

    For her-seg, wau and fsg-net the folder holds images and masks (or imagesTr and labelsTr), or NAME.png beside
    NAME_mask.png; volumes likewise. Classes, spacing, grey values and patches are found from it, a fifth of the
    patients is held back to stop early, and -o becomes a model with its card. db-sam (from sam-vit-b of
    `medseg weights`) and db-sam-small (from nothing) learn on such folders to follow boxes.
    """
    from medseg_app.commands import train

    return train.run(
        config,
        data=data,
        out=out,
        patients=patients,
        start=start,
        teacher=teacher,
        resume=resume,
        device=device,
        workers=workers,
        minutes=minutes,
        json=json,
        quiet=quiet,
    )


@app.command()
@answering
def doctor(json: Json = False, debug: Debug = False) -> int:
    """Check this machine: packages, devices, engines, memory, weights; exit code 1 where something is missing."""
    from medseg_app.commands import doctor

    return doctor.run(json=json)
