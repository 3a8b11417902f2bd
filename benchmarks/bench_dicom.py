"""Time and memory of reading a DICOM series, against a bare pydicom loop over the same files in the same run.

The loop decodes each file and keeps the pixels: no order, no geometry, no checks. Each side runs in a process of its
own, so that its peak memory is its own. Values are compared before any figure is printed.

    python benchmarks/bench_dicom.py [--slices 1000] [--size 512] [--folder SERIES]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def make_series(folder: Path, slices: int, size: int) -> None:
    """Write a CT-like series with the header elements of a common scanner export."""
    rng = np.random.default_rng(0)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.Modality, data.ImageType, data.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], index + 1
        data.ImagePositionPatient = [-250.0, -250.0, 0.6 * index]
        data.ImageOrientationPatient, data.PixelSpacing, data.SliceThickness = [1, 0, 0, 0, 1, 0], [0.9, 0.9], 0.6
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.Rows = data.Columns = size
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        for group in range(60):  # private elements, as every scanner adds them
            data.add_new((0x0029, 0x1000 + group), "LO", f"value {group} of slice {index}")
        data.PixelData = rng.integers(0, 4096, (size, size), np.uint16).tobytes()
        data.save_as(folder / f"{rng.integers(1 << 60):x}", enforce_file_format=True)


def bare_loop(folder: Path) -> list[tuple[float, np.ndarray]]:
    """Height and pixels of every file, as they come."""
    found = []
    for path in sorted(folder.iterdir()):
        data = pydicom.dcmread(path)
        found.append((float(data.ImagePositionPatient[2]), data.pixel_array))
    return found


def measure(side: str, folder: Path) -> dict[str, float]:
    """Seconds, CPU seconds and peak bytes of one side, and a sum over its values by place."""
    from medseg.io import read  # loading either library is no part of the comparison

    read_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    found = bare_loop(folder) if side == "bare" else read(folder)
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - read_before) * 1024
    if isinstance(found, list):
        planes = [pixels.astype(np.int32) - 1024 for _, pixels in sorted(found, key=lambda pair: pair[0])]
    else:
        planes = list(np.moveaxis(found.voxels, 2, 0).transpose(0, 2, 1).astype(np.int32))
    weights = np.arange(1, len(planes) + 1)
    check = float(
        sum(
            w * int((plane * (1 + np.arange(plane.shape[1]) % 7)).sum())
            for w, plane in zip(weights, planes, strict=True)
        )
    )
    return {"seconds": seconds, "cpu": used, "peak": peak, "check": check, "bytes": sum(p.size for p in planes) * 2}


def compare(folder: Path, rounds: int) -> None:
    """Print the ratio of both sides."""
    results: dict[str, list[dict[str, float]]] = {"bare": [], "medseg": []}
    for _ in range(rounds):
        for side, found in results.items():
            command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    if len({result["check"] for found in results.values() for result in found}) != 1:
        raise SystemExit("the two sides read different values: no figures")
    best = {side: min(found, key=lambda result: result["cpu"]) for side, found in results.items()}
    for side, result in best.items():
        over = result["peak"] / result["bytes"]
        print(f"{side:<7} {result['seconds']:7.2f} s  {result['cpu']:7.2f} s CPU  peak {over:.2f} x the voxels")
    wall, cpu = (best["medseg"][unit] / best["bare"][unit] for unit in ("seconds", "cpu"))
    print(f"ratio   {wall:7.2f}    {cpu:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", choices=["bare", "medseg"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.folder)))
    elif options.folder:
        compare(options.folder, options.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            make_series(Path(folder), options.slices, options.size)
            compare(Path(folder), options.rounds)


if __name__ == "__main__":
    main()
