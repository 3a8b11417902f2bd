"""Region map of one slice by SAM ViT-B: this package against the automatic mask generator of segment-anything.

Both read the same checkpoint and follow the same rules; each runs in a process of its own. Published weights are not
needed: random ones are stretched so that a quarter of all masks pass the default rules, as patches of different size.
Loading is not timed; from the grey image to the region map is. The speed counts only if the masks agree.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medseg.networks.sam import Sam
from medseg.partition import AutomaticMasks, automatic_masks
from medseg.partition.torchvision_ops import load_torchvision
from medseg.regions import region_map

SIZE = (256, 256)
GOAL = 2.0  # times faster, in processor time
AGREE = 0.99  # least overlap of any two masks that should be one
OVERLAP = AutomaticMasks().overlap


def picture() -> np.ndarray:
    """Slow waves with some noise, uint8."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]] / 30
    noise = np.random.default_rng(1).normal(size=SIZE)
    return np.clip(128 + 60 * np.sin(rows) * np.cos(1.3 * columns) + 5 * noise, 0, 255).astype(np.uint8)


@torch.no_grad()
def write_checkpoint(path: Path) -> None:
    """A random ViT-B whose masks are patches that depend on the point, a quarter of them above the default rules."""
    torch.manual_seed(0)
    sam = Sam("vit_b").eval()
    decoder: Any = sam.mask_decoder
    places = sam.image_encoder.get_parameter("pos_embed")
    smooth = F.interpolate(torch.randn(1, places.shape[3], 6, 6), places.shape[1:3], mode="bicubic")
    places += 3 * smooth.permute(0, 2, 3, 1)
    first, last = decoder.output_upscaling[0], decoder.output_upscaling[3]
    for layer in (first, last):
        layer.weight[:] = 2 * layer.weight.mean((2, 3), keepdim=True)  # no speckles
    last.weight[:, 0], last.bias[0] = 0, 4  # the same everywhere, so that its weight lifts a whole mask
    heads = [head.layers[-1] for head in decoder.output_hypernetworks_mlps][1:]
    for head in heads:
        head.weight[0], head.bias[0] = 0, 0
    pixels = torch.from_numpy(picture()).float().expand(1, 3, -1, -1)
    embedding = sam.encode(sam.preprocess(F.interpolate(pixels, (1024, 1024), mode="bilinear")))
    points = torch.rand(32, 1, 2) * 1024
    logits, overlaps = sam.decode(embedding, points=(points, torch.ones(32, 1)), multimask=True)
    estimate = decoder.iou_prediction_head.layers[-1]
    for index, head in enumerate(heads):
        scale = 100 / logits[:, index].std()
        head.weight *= scale
        head.bias *= scale
        head.bias[0] = -_quantile(logits[:, index], 0.8) * scale / 4
        estimate.bias[1 + index] += OVERLAP - _quantile(overlaps[:, index], 0.75)
    torch.save(sam.state_dict(), path)


def _quantile(x: Tensor, share: float) -> Tensor:
    return torch.as_tensor(np.quantile(x.numpy(), share), dtype=torch.float32)


def run_ours(checkpoint: Path, points: int) -> tuple[Tensor, float]:
    """Masks, and processor seconds from image to region map."""
    network = automatic_masks.load_network(checkpoint)
    load_torchvision()
    started = time.process_time()
    found = automatic_masks.propose(network, picture(), AutomaticMasks(points=points))
    region_map(found.masks)
    return found.masks, time.process_time() - started


def run_package(checkpoint: Path, points: int) -> tuple[Tensor, float]:
    """The same through the package's own network and generator."""
    load_torchvision()
    import segment_anything

    network = segment_anything.sam_model_registry["vit_b"](str(checkpoint))
    generator = segment_anything.SamAutomaticMaskGenerator(network, points_per_side=points)
    started = time.process_time()
    found = generator.generate(np.repeat(picture()[:, :, None], 3, axis=2))
    masks = torch.from_numpy(np.stack([mask["segmentation"] for mask in found]))
    region_map(masks)
    return masks, time.process_time() - started


RUNS = {"ours": run_ours, "package": run_package}


def measured(name: str, checkpoint: Path, points: int, threads: int, folder: Path) -> tuple[np.ndarray, float, float]:
    """Masks, processor seconds and peak bytes of one contender in a process of its own."""
    out = folder / f"{name}.npz"
    command = [sys.executable, __file__, "--run", name, str(checkpoint), str(out), "--points", str(points)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(command, env=environment, check=True)
    with np.load(out) as file:
        return file["masks"], float(file["seconds"]), float(file["peak"])


def check(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Least overlap of masks of the same rank; exits where the masks are not the same ones."""
    if len(ours) != len(theirs) or not len(ours):
        sys.exit(f"wrong, so not timed: {len(ours)} masks against {len(theirs)} of the package")
    least = min(float((a & b).sum() / (a | b).sum()) for a, b in zip(ours, theirs, strict=True))
    if least <= AGREE:
        sys.exit(f"wrong, so not timed: masks must overlap by more than {AGREE}, got {least:.4f}")
    return least


def main() -> None:
    """Write weights, run both, check the masks, print."""
    parser = argparse.ArgumentParser(description="region map by SAM ViT-B, against segment-anything")
    parser.add_argument("--points", type=int, default=32, help="per side of the grid; the package's default is 32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", nargs=3, metavar=("NAME", "CHECKPOINT", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, checkpoint, out = arguments.run
        masks, seconds = RUNS[name](Path(checkpoint), arguments.points)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
        np.savez(out, masks=masks.numpy(), seconds=seconds, peak=peak)
        return

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "segment-anything"))
    print(f"{time.strftime('%Y-%m-%d')}, {packages}, {arguments.threads} threads, {arguments.points}^2 points")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / "sam.pth")
        found = {name: measured(name, folder / "sam.pth", arguments.points, arguments.threads, folder) for name in RUNS}
    least = check(found["ours"][0], found["package"][0])
    print(f"{len(found['ours'][0])} masks in both, least overlap {least:.4f}\n")
    print("| | processor time | peak memory |\n|---|---|---|")
    for name, (_, seconds, peak) in found.items():
        print(f"| {name} | {seconds:.1f} s | {peak / 1e9:.2f} GB |")
    ratio = found["package"][1] / found["ours"][1]
    print(f"| package / ours | {ratio:.2f}x | {found['package'][2] / found['ours'][2]:.2f}x |")
    if ratio < GOAL:
        sys.exit(f"must be {GOAL}x as fast, got {ratio:.2f}x")


if __name__ == "__main__":
    main()
