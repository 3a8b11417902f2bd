"""Make torchvision importable beside a torch that was built without CUDA.

Registries offer torchvision with compiled operators that link against CUDA. Where these cannot be loaded, torchvision
refuses to be imported at all, although all that is needed of them here is non-maximum suppression.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

_registered: list[torch.library.Library] = []  # operators vanish with the object that defined them


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression: places of the boxes that no better box overlaps too much.

    Args:
        boxes: Corners (x0, y0, x1, y1), (N, 4), floating point.
        scores: (N,); of equal scores the earlier box is better.
        iou_threshold: Largest overlap, intersection over union, of two boxes that stay.

    Returns:
        Best first, int64.
    """
    order = scores.argsort(descending=True, stable=True)
    low, high = boxes[order].split(2, dim=1)
    area = (high - low).prod(1)
    alive, kept = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device), []
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        kept.append(index)
        rest = slice(index + 1, None)
        common = (torch.minimum(high[rest], high[index]) - torch.maximum(low[rest], low[index])).clamp(min=0).prod(1)
        alive[rest] &= common / (area[rest] + area[index] - common) <= iou_threshold
    return order[kept]


@cache
def load_torchvision() -> str:
    """Import torchvision, with its own operators or with `suppress` in their place.

    Returns:
        "native" or "replaced".

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    if "torchvision" in sys.modules:
        return "native"  # somebody else could import it, so it works
    # Trying the import first would leave half of the package behind when it fails.
    try:
        for path in Path(spec.origin).parent.glob("_C*.*"):
            torch.ops.load_library(path)
    except OSError:
        _replace_operators()
        return "replaced"
    import_module("torchvision")
    return "native"


def _replace_operators() -> None:
    """Declare what torchvision looks for at import, and define the one operator that is used."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", suppress, "CompositeExplicitAutograd")
    _registered.append(library)
    # Only this module asks in vain: the others have Python versions of what is missing, chosen by the same question.
    from torchvision.ops import boxes

    boxes._assert_has_ops = lambda: None
