"""Arguments and options that several commands share, and the units they are written in."""

import re
from pathlib import Path
from typing import Annotated

import typer

from medseg.errors import UsageError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}

OUTPUT, MODEL, COMPUTE, INPUT = "Output", "Model", "Compute", "Input"

Json = Annotated[bool, typer.Option("--json", "-j", help="Print one JSON object.", rich_help_panel=OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no remarks.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more on stderr.", rich_help_panel=OUTPUT)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier result.", rich_help_panel=OUTPUT)]
Device = Annotated[str, typer.Option("--device", "-d", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=COMPUTE)]
Engine = Annotated[
    str, typer.Option(help="auto, or one that `medseg doctor` lists.", rich_help_panel=COMPUTE, show_default=True)
]
TimePoint = Annotated[int | None, typer.Option(help="Which volume of a 4D file, from 0.", min=0, rich_help_panel=INPUT)]
Frames = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Frames of a picture file with several, a video: all, or from 0 like 7 or 10-19.",
        rich_help_panel=INPUT,
    ),
]
Series = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Which DICOM series, as `medseg info` numbers them, or a UID.", rich_help_panel=INPUT
    ),
]
CorrectGeometry = Annotated[
    bool,
    typer.Option(
        "--correct-geometry",
        help="Straighten a gantry tilt, fill gaps and guess missing positions of DICOM slices.",
        rich_help_panel=INPUT,
    ),
]
Formats = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="LIST",
        help="With DICOM input also seg, rtstruct, sr, sc (picture), or dicom (restored series), like seg,sr.",
        rich_help_panel=OUTPUT,
    ),
]
SegEncoding = Annotated[str, typer.Option(help="Of seg: binary, or labelmap (smaller, newer).", rich_help_panel=OUTPUT)]
MemoryLimit = Annotated[
    str | None, typer.Option(help="What a run may take, like 6GB.", rich_help_panel=COMPUTE, metavar="SIZE")
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="A name from `medseg models`, or a model folder.", rich_help_panel=MODEL),
]
Noise = Annotated[
    float | None,
    typer.Option(
        metavar="LEVEL", help="Noise level in the image's own unit; estimated if not given.", rich_help_panel=MODEL
    ),
]
Regions = Annotated[
    Path | None,
    typer.Option(help="Region map on the grid of the image, in place of a found one.", rich_help_panel=INPUT),
]
SaveRegions = Annotated[
    bool, typer.Option("--save-regions", help="Write the region map as a volume too.", rich_help_panel=OUTPUT)
]
EnforceConsistency = Annotated[
    bool,
    typer.Option(
        "--enforce-consistency",
        help="Change finer voxels until they reproduce the input, noise and all.",
        rich_help_panel=MODEL,
    ),
]
PROMPTS = "Prompts"
Points = Annotated[
    list[str] | None,
    typer.Option(
        metavar="X,Y,Z[,-]",
        help="mm in RAS inside, or with ,- outside the structure; voxel:I,J,K; X,Y on a picture. May be repeated.",
        rich_help_panel=PROMPTS,
    ),
]
Boxes = Annotated[
    list[str] | None,
    typer.Option(
        "--box",
        metavar="X,Y,Z,X,Y,Z",
        help="Two corners, likewise; flat on one slice, or with depth as a bound. Each one is a structure.",
        rich_help_panel=PROMPTS,
    ),
]
PromptFile = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE.json", help="Prompts in a file.", rich_help_panel=PROMPTS)
]
NoPropagate = Annotated[
    bool, typer.Option("--no-propagate", help="Stay on the prompted slices.", rich_help_panel=PROMPTS)
]
Consensus = Annotated[
    bool,
    typer.Option("--consensus", help="Ask along all three axes, keep what two say.", rich_help_panel=PROMPTS),
]
Window = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="Grey values that become black and white.", rich_help_panel=PROMPTS),
]
WeightsName = Annotated[
    str | None,
    typer.Option("--weights", metavar="NAME", help="Other ones of `medseg weights list`.", rich_help_panel=PROMPTS),
]
EmbeddingsFolder = Annotated[
    Path | None,
    typer.Option(
        "--embeddings",
        metavar="FOLDER",
        help="Keep encoded slices there for later runs; as private as the images.",
        rich_help_panel=PROMPTS,
    ),
]
Partition = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="How to find regions: intensity, superpixels, sam or sam:WEIGHTS.",
        rich_help_panel=MODEL,
    ),
]
Support = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Outlined cases to follow, of `medseg support list`; with -m support-set or sam2-sgp.",
        rich_help_panel=INPUT,
    ),
]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Result folder.", rich_help_panel=OUTPUT)]


def parse_size(text: str | None) -> int | None:
    """ "6GB", "512 MiB" or "1e9" as bytes.

    Raises:
        UsageError: It is no size.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", text.upper().replace("E", "e"))
    try:
        size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    except (KeyError, ValueError):
        size = 0
    if size <= 0:
        raise UsageError(f"size must be a number with a unit like 6GB or 512MiB, got '{text}'")
    return size
