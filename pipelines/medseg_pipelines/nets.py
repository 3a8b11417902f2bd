"""Networks of a recipe: ours, and those of MONAI that a recipe may name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from medseg.errors import UsageError
from medseg.networks import build_network

MONAI_PREFIX = "monai."
MONAI_NETWORKS = frozenset(
    {
        "AttentionUnet",
        "BasicUNet",
        "DynUNet",
        "HighResNet",
        "SegResNet",
        "SegResNetDS",
        "SwinUNETR",
        "UNETR",
        "UNet",
        "VNet",
    }
)
"""Segmentation networks of `monai.networks.nets` that map one image to scores of one tensor and load nothing."""


def build(name: str, options: dict[str, Any]) -> nn.Module:
    """The network of a recipe, with random weights.

    Args:
        name: Of `medseg.networks.network_names()`, or "monai." and one of `MONAI_NETWORKS`.
        options: Keyword arguments of its class, plain data.

    Raises:
        ValueError: No network of ours has that name.
        UsageError: MONAI's network is not on the list, or does not take the options.
    """
    if not name.startswith(MONAI_PREFIX):
        return build_network(name, **options)
    cls = name.removeprefix(MONAI_PREFIX)
    if cls not in MONAI_NETWORKS:
        raise UsageError(f"network must be one of {', '.join(sorted(MONAI_NETWORKS))} of MONAI, got '{cls}'")
    # MONAI costs seconds to import, and recipes of ours do not need it
    network = getattr(import_module("monai.networks.nets"), cls)
    try:
        return network(**options)
    except (TypeError, ValueError, NotImplementedError, KeyError, AssertionError) as error:
        raise UsageError(f"network {cls}: its options are not accepted ({' '.join(str(error).split())})") from None
