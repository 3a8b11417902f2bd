"""Every shipped model as a MONAI bundle: exported, run by MONAI where medseg cannot be imported, compared with medseg.

    python benchmarks/check_bundles.py [MODEL ...]

One row a model: the ten points of `medseg bundle check`, then `ckpt_export` and a run of the stock configuration.
A large model takes minutes. Ends with exit code 1 where anything failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from medseg.errors import UsageError
from medseg_pipelines.bundle.check import check_folder, further_commands
from medseg_pipelines.bundle.export import build
from medseg_pipelines.recipe import recipe_names


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
        try:
            build(name, bundle)
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


if __name__ == "__main__":
    sys.exit(main())
