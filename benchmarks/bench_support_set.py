"""Memory of volumes outlined by example with the model that ships, from file to file through the command line.

    OMP_NUM_THREADS=1 python benchmarks/bench_support_set.py --slices 60 300

Three made cases of four slices, then made volumes of 512 x 512 and as many slices as `--slices` says, each in a process
of its own. The last line tells what every further voxel costs: that of the volumes alone, if nothing grows along.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from medseg.io import write
from medseg.volume import Volume

SIDE, CASES, SPACING = 512, 3, (0.45, 0.45, 0.6)


def made(seed: int, depth: int) -> tuple[Volume, Volume]:
    """A noisy disc with a brighter one inside, int16, and the label map of that."""
    voxels = np.random.default_rng(seed).integers(0, 60, (SIDE, SIDE, depth), dtype=np.int16)
    x, y = np.ogrid[:SIDE, :SIDE]
    inside = (x - 200 - 5 * seed) ** 2 + (y - 256) ** 2 < 60**2
    voxels[(x - 256) ** 2 + (y - 256) ** 2 < 200**2] += 200
    voxels[inside] += 300
    labels = np.zeros(voxels.shape, np.uint8)
    labels[inside] = 1
    affine = np.diag([*SPACING, 1.0])
    return Volume(voxels, affine), Volume(labels, affine, kind="labels")


def measured(*words: str) -> tuple[int, float]:
    """Peak memory in bytes and processor time in seconds of a `medseg` that ends well."""
    process = subprocess.Popen([sys.executable, "-m", "medseg_app", *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"medseg {words[0]} ended with {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`, in bytes
    return used.ru_maxrss * unit, used.ru_utime + used.ru_stime


def main() -> None:
    """Print one row per volume, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[60, 300], help="Of each volume.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medseg-support-") as place:
        folder = Path(place)
        os.environ["MEDSEG_HOME"] = str(folder / "home")
        shown: list[str] = []
        for seed in range(CASES):
            for word, volume in zip(("image", "label"), made(seed, 4), strict=True):
                write(volume, folder / f"{word}{seed}.nii.gz")
                shown += [f"--{word}", str(folder / f"{word}{seed}.nii.gz")]
        measured("support", "create", "discs", *shown, "--modality", "MR", "--plane", "axial")
        print("| slices | volume | peak memory | processor time |\n|---|---|---|---|")
        peaks = []
        for depth in arguments.slices:
            path = folder / f"{depth}.nii"
            write(made(9, depth)[0], path)
            wanted = ("-m", "support-set", "--support", "discs", "--force-scope", "-d", "cpu", "-q")
            peak, seconds = measured("infer", str(path), *wanted, "-o", str(folder / f"out{depth}"))
            peaks.append(peak)
            print(
                f"| {depth} | {path.stat().st_size / 1e6:.0f} MB | {peak / 1e9:.2f} GB | {seconds:.0f} s |", flush=True
            )
    if len(peaks) > 1:
        voxels = SIDE**2 * (arguments.slices[-1] - arguments.slices[0])
        print(f"\n{(peaks[-1] - peaks[0]) / voxels:.1f} bytes for each further voxel")


if __name__ == "__main__":
    main()
