"""The networks of this project behind one door; each lives in a file of its own, told as its paper tells it."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from torch import nn

_NETWORKS = {
    "db-sam": ("medseg.networks.db_sam", "DbSam"),
    "disgan": ("medseg.networks.disgan", "Generator"),
    "fsg-net": ("medseg.networks.fsg_net", "FSGNet"),
    "her-seg": ("medseg.networks.her_seg", "HERSeg"),
    "sam": ("medseg.networks.sam", "Sam"),
    "sam2": ("medseg.networks.sam2", "Sam2"),
    "sam2-sgp": ("medseg.networks.sam2_sgp", "Sam2Sgp"),
    "rat": ("medseg.networks.rat", "RAT"),
    "wau": ("medseg.networks.wau", "WAUNet"),
}


def build_network(name: str, **options: object) -> nn.Module:
    """A network by its name, with random weights.

    Args:
        name: One of `network_names()`.
        options: Keyword arguments of the network's class.

    Raises:
        ValueError: No network has that name.
        TypeError: The network does not know an option.
    """
    if name not in _NETWORKS:
        near = get_close_matches(name, _NETWORKS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"network must be one of {', '.join(sorted(_NETWORKS))}, got {name!r}{hint}")
    module, cls = _NETWORKS[name]
    return getattr(import_module(module), cls)(**options)


def network_names() -> list[str]:
    """Names that `build_network` knows."""
    return sorted(_NETWORKS)
