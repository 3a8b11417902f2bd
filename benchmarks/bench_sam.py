"""SAM ViT-B at 1024 x 1024 on a CPU: this package against segment-anything.

Both read the same random checkpoint, each in a process of its own; nothing counts before embeddings and masks agree.
Processor time is what is compared, and the memory that the process takes beyond what it held before: the package writes
every 4096 x 4096 attention map whole.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from medseg.networks.sam import Sam
from medseg.partition.torchvision_ops import load_torchvision

GOALS = {"encoder": 1.25, "decoder": 2.0}  # times faster
MEMORY = 0.5  # at most this share of the package's extra memory while encoding
AGREE = 1e-3  # largest difference, relative to the largest entry
Step = Callable[[torch.Tensor], torch.Tensor]
BOXES = torch.tensor([[100.0, 120.0, 700.0, 640.0]])


def package_sam(checkpoint: Path) -> Any:
    """The package's network with the weights of the checkpoint."""
    load_torchvision()  # its own operators do not load beside a torch without CUDA
    from segment_anything import sam_model_registry

    return sam_model_registry["vit_b"](checkpoint=str(checkpoint)).eval()


def package_mask(sam: Any, embedding: torch.Tensor) -> torch.Tensor:
    """One mask of the package for the box."""
    sparse, dense = sam.prompt_encoder(points=None, boxes=BOXES, masks=None)
    places = sam.prompt_encoder.get_dense_pe()
    return sam.mask_decoder(embedding, places, sparse, dense, multimask_output=False)[0]


def contender(
    name: str, checkpoint: Path
) -> tuple[Callable[[torch.Tensor], torch.Tensor], Callable[..., torch.Tensor]]:
    """Encoder and decoder of one side."""
    if name == "package":
        sam = package_sam(checkpoint)
        return sam.image_encoder, lambda embedding: package_mask(sam, embedding)
    ours = Sam("vit_b").eval()
    ours.load_state_dict(torch.load(checkpoint, weights_only=True))
    return ours.encode, lambda embedding: ours.decode(embedding, boxes=BOXES).logits


def resident(entry: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM); Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


@torch.inference_mode()
def measure(name: str, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds of processor time per image and per prompt, and bytes that encoding took beyond what was there."""
    encode, decode = contender(name, folder / "vit_b.pth")
    pixels = torch.load(folder / "pixels.pt", weights_only=True)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # loading took more than it left: the peak starts anew
    spent = []
    for _ in range(rounds):
        started = time.process_time()
        embedding = encode(pixels)
        spent.append(time.process_time() - started)
    taken = resident("VmHWM") - before
    mask, masks = decode(embedding), []
    for _ in range(10 * rounds):
        started = time.process_time()
        mask = decode(embedding)
        masks.append(time.process_time() - started)
    torch.save({"embedding": embedding, "mask": mask}, folder / f"{name}.pt")
    return {"encoder": median(spent), "decoder": median(masks), "memory": float(taken)}


def compare(folder: Path, rounds: int, threads: int) -> bool:
    """Run both sides, print what came of it; whether every goal is met."""
    torch.manual_seed(0)
    torch.save(Sam("vit_b").state_dict(), folder / "vit_b.pth")
    torch.save(torch.randn(1, 3, 1024, 1024), folder / "pixels.pt")
    found: dict[str, dict[str, float]] = {}
    for side in ("package", "ours"):
        command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--rounds", str(rounds)]
        # Threads that spin while they wait burn time that nobody asked for; `medseg` sets the same.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        found[side] = json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)
    sides = [torch.load(folder / f"{side}.pt", weights_only=True) for side in ("package", "ours")]
    for part in ("embedding", "mask"):
        theirs, own = (side[part] for side in sides)
        error = float((theirs - own).abs().max() / theirs.abs().max())
        print(f"{part}: largest difference {error:.1e} of the largest entry")
        if error > AGREE:
            print(f"{part}: the results differ, no time counts")
            return False
    met = True
    for part, goal in GOALS.items():
        theirs, own = found["package"][part], found["ours"][part]
        met &= theirs / own >= goal
        print(
            f"{part}: package {theirs:.3f} s, ours {own:.3f} s of processor time, {theirs / own:.2f} x (goal {goal} x)"
        )
    theirs, own = found["package"]["memory"], found["ours"]["memory"]
    print(f"encoder: package {theirs / 1e6:.0f} MB, ours {own / 1e6:.0f} MB more, {own / theirs:.2f} (goal {MEMORY})")
    return met and own <= MEMORY * theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=("package", "ours"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.folder, options.rounds)))
        return
    print(f"torch {torch.__version__}, segment-anything {version('segment-anything')}, {options.threads} threads")
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(0 if compare(Path(folder), options.rounds, options.threads) else 1)


if __name__ == "__main__":
    main()
