"""Regions from masks that Segment Anything proposes for a grid of points (2304.02643, "automatic mask generation").

The rules, and the functions that apply them, are those of the package segment-anything; the network is ours, and what
the rules throw away is thrown away as early as possible: masks of low estimated overlap are never drawn, those that
stay are enlarged by two products, and none is run-length encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medseg.checkpoints import read_checkpoint
from medseg.errors import ModelMissing
from medseg.intensity import rescale_percentiles
from medseg.networks.sam import Sam, load_published, preset_of
from medseg.partition.description import AutomaticMasks
from medseg.partition.torchvision_ops import load_torchvision
from medseg.regions import region_map

_RANGE = (0.5, 99.5)  # percentiles of the whole volume that become 0 and 255
_POINTS_AT_ONCE = {"cpu": 4}  # few enough that a step's features stay in the cache; 64 elsewhere, as in the package
_FETCH = (
    "fetch sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth or sam_vit_h_4b8939.pth from 'Model Checkpoints' in the README "
    "of facebookresearch/segment-anything and give its path as the partitioner's checkpoint"
)


class Proposals(NamedTuple):
    """Masks of one image, best first.

    Args:
        masks: (M, H, W), boolean.
        overlaps: Estimated overlap of each with the truth, (M,).
    """

    masks: Tensor
    overlaps: Tensor


def cut(
    slices: np.ndarray,
    how: AutomaticMasks,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Ids of each slice on its own, as `medseg.regions.region_map` gives them, (X, Y, S), int32.

    Raises:
        ModelMissing: The checkpoint or the package is absent, or the checkpoint is damaged or none of SAM's.
    """
    network = load_network(how.checkpoint).to(device)
    grey = np.rint(255 * rescale_percentiles(slices, *_RANGE, top=1.0)).astype(np.uint8)
    found = np.empty(slices.shape, np.int32)
    for index in range(slices.shape[2]):
        found[:, :, index] = region_map(propose(network, grey[:, :, index], how).masks).numpy()
        if progress:
            progress(index + 1, slices.shape[2])
    return found


def load_network(checkpoint: Path | None) -> Sam:
    """The SAM of a checkpoint, in evaluation mode.

    Raises:
        ModelMissing: The file is absent, damaged or none of SAM's.
    """
    if checkpoint is None:
        raise ModelMissing(f"automatic masks need a checkpoint of Segment Anything, got none; {_FETCH}")
    if not Path(checkpoint).is_file():
        raise ModelMissing(f"checkpoint '{Path(checkpoint).name}' is missing; {_FETCH}")
    state = read_checkpoint(Path(checkpoint))
    try:
        network = Sam(preset_of(state))
    except ModelMissing as error:
        raise ModelMissing(f"checkpoint '{Path(checkpoint).name}': {error}; {_FETCH}") from None
    load_published(network, state)
    return network.eval()


@torch.inference_mode()
def propose(network: Sam, grey: np.ndarray, how: AutomaticMasks) -> Proposals:
    """Masks of one image, by the rules of the package's own generator; `how.checkpoint` is not read.

    Args:
        network: In evaluation mode.
        grey: (H, W), uint8.
        how: The rules.

    Raises:
        ModelMissing: The package segment-anything is not installed.
    """
    rules = _rules()
    device, size = network.pixel_mean.device, (grey.shape[0], grey.shape[1])
    scale = network.config.img_size / max(size)
    padded = (int(size[0] * scale + 0.5), int(size[1] * scale + 0.5))
    enlarged = np.array(Image.fromarray(grey).resize((padded[1], padded[0]), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(enlarged).to(device).float().expand(1, 3, -1, -1)
    embedding = network.encode(network.preprocess(pixels))
    points = torch.as_tensor(rules.grid(how.points) * (padded[1], padded[0]), dtype=torch.float32, device=device)
    packed, kept = [], []
    for some in points.split(_POINTS_AT_ONCE.get(device.type, 64)):
        answer = network.decode_above(embedding, some, how.overlap or -torch.inf)
        logits = network.enlarge(answer.logits, padded, size)
        stable = rules.stability(logits, 0.0, how.offset) >= how.stability
        masks = logits[stable] > 0
        kept.append((answer.iou[stable].cpu(), rules.boxes(masks).cpu().float()))
        packed.append(np.packbits(masks.cpu().numpy(), axis=2))  # hundreds of masks wait for the last point
    overlaps, boxes = (torch.cat(parts) for parts in zip(*kept, strict=True))
    best = rules.suppress(boxes, overlaps, how.duplicates)
    masks = np.unpackbits(np.concatenate(packed)[best.numpy()], axis=2, count=size[1])
    return Proposals(torch.from_numpy(masks).bool(), overlaps[best])


class _Rules(NamedTuple):
    """Functions of the package segment-anything and of torchvision."""

    grid: Callable[[int], np.ndarray]
    stability: Callable[[Tensor, float, float], Tensor]
    boxes: Callable[[Tensor], Tensor]
    suppress: Callable[[Tensor, Tensor, float], Tensor]


def _rules() -> _Rules:
    try:
        load_torchvision()
        from segment_anything.utils import amg
        from torchvision.ops import nms
    except ModuleNotFoundError as error:
        raise ModelMissing(
            f"automatic masks need the package '{error.name}', not installed here; pip install 'medseg[sam]'"
        ) from None
    return _Rules(amg.build_point_grid, amg.calculate_stability_score, amg.batched_mask_to_box, nms)
