"""Networks of a recipe: ours, and those of MONAI that a recipe may name."""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from medseg.errors import ModelMissing, UsageError
from medseg.networks import build_network
from medseg_pipelines.bundle.archive import checksums

TRUSTED = "trusted-bundle"
TRUSTED_FOLDER = "bundle"
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


def build(name: str, options: dict[str, Any], *, folder: Path | None = None) -> nn.Module:
    """The network of a recipe, with random weights.

    Args:
        name: Of `medseg.networks.network_names()`, or "monai." and one of `MONAI_NETWORKS`, or `TRUSTED`.
        options: Keyword arguments of its class, plain data.
        folder: Of the model; needed where its network comes from a bundle whose code the user trusted.

    Raises:
        ValueError: No network of ours has that name.
        UsageError: MONAI's network is not on the list, or does not take the options.
        ModelMissing: The trusted bundle is not what it was when it was trusted.
    """
    if name == TRUSTED and folder is not None:
        return _trusted(folder / TRUSTED_FOLDER, str(options.get("sha256")))
    if not name.startswith(MONAI_PREFIX):
        return build_network(name, **options)
    cls = name.removeprefix(MONAI_PREFIX)
    if cls not in MONAI_NETWORKS:
        raise UsageError(f"network must be one of {', '.join(sorted(MONAI_NETWORKS))} of MONAI, got '{cls}'")
    # MONAI costs seconds to import, and recipes of ours do not need it
    network = getattr(import_module("monai.networks.nets"), cls)
    try:
        return network(**options)
    except Exception as error:  # each network complains in its own way
        raise UsageError(f"network {cls}: its options are not accepted ({' '.join(str(error).split())})") from None


def folder_digest(folder: Path) -> str:
    """One sha256 over the names and contents of all files of a bundle but its manifest."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(checksums(folder).items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _trusted(bundle: Path, sha256: str) -> nn.Module:
    """The network that the configuration of a trusted bundle defines; this runs the code of the bundle."""
    if folder_digest(bundle) != sha256:
        raise ModelMissing("bundle of this model is not what it was when its code was trusted; import it again")
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]  # of another bundle
    parser = import_module("monai.bundle.config_parser").ConfigParser()
    config = next(path for path in sorted((bundle / "configs").glob("inference.*")))
    parser.read_config(str(config))
    parser["bundle_root"] = str(bundle)
    sys.path.insert(0, str(bundle))
    try:
        return parser.get_parsed_content("network_def")
    finally:
        sys.path.remove(str(bundle))
