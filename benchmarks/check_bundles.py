"""Every shipped model as a MONAI bundle: exported, run by MONAI where medseg cannot be imported, compared with medseg.

    python benchmarks/check_bundles.py [MODEL ...]

Models that segment by example get a support set of three made-up cases.

One row a model: the ten points of `medseg bundle check`, then `ckpt_export` and a run of the stock configuration.
A large model takes minutes. Ends with exit code 1 where anything failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medseg.errors import UsageError
from medseg_pipelines.bundle.check import check_folder, further_commands
from medseg_pipelines.bundle.export import build
from medseg_pipelines.bundle.kinds.specimen import made_up
from medseg_pipelines.recipe import SupportRecipe, load_recipe, recipe_names
from medseg_pipelines.support import create_support_set


def main() -> int:
    """Check the models that are named, or all that ship."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=recipe_names())
    print("| model | MB | seconds | ten points | ckpt_export | stock run |\n|---|---|---|---|---|---|", flush=True)
    return max(_row(name) for name in parser.parse_args().models)


def _row(name: str) -> int:
    """Print one row; 1 where something failed."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medseg-bundles-") as place:
        bundle = Path(place) / Path(name).name
        bundle.mkdir()
        recipe = load_recipe(name)
        follows = isinstance(recipe, SupportRecipe) and recipe.checkpoint is None
        try:
            build(name, bundle, support=_examples(Path(place)) if follows else None)
        except UsageError as error:
            print(f"| {name} | | | no bundle: {error} | | |", flush=True)
            return 0
        size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 1e6
        report = check_folder(bundle, model=name, further=further_commands(bundle, Path(place)))
    faults = [f"{point.name}: {point.fault}" for point in report.points if point.fault]
    further = {command: fault or "ok" for command, fault in report.further.items()}
    print(
        f"| {name} | {size:.1f} | {time.monotonic() - started:.0f} "
        f"| {'; '.join(faults) or f'all {len(report.points)} ok'} "
        f"| {further['ckpt_export']} | {further.get('run_stock', 'has none')} |",
        flush=True,
    )
    return int(bool(faults) or any(report.further.values()))


def _examples(place: Path) -> str:
    """The name of a support set of made-up cases, which lies in a home of its own."""
    os.environ["MEDSEG_HOME"] = str(place / "home")
    images = [made_up((96 + 8 * case, 100, 12), (2.0, 2.0, 6.0), body=(0.9, 0.8, 1.0)) for case in range(3)]
    drawn = [np.where(image.voxels > 400, 2, image.voxels > 100).astype(np.uint8) for image in images]
    labels = [image.with_voxels(ids, kind="labels") for image, ids in zip(images, drawn, strict=True)]
    create_support_set("made-up", images, labels, names={1: "body", 2: "bright"}, modality="MR")
    return "made-up"


if __name__ == "__main__":
    sys.exit(main())
