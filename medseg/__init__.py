"""Volumes and networks for medical images; what stands in `__all__` is the public face.

Names are loaded when they are first used: `medseg --help` must not wait for nibabel or torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medseg.errors import MedsegError

if TYPE_CHECKING:
    from medseg.io import read, write
    from medseg.networks import build_network
    from medseg.volume import Volume

__version__ = "0.1.0"

__all__ = ["MedsegError", "Volume", "__version__", "build_network", "load_model", "read", "write"]

_HOMES = {
    "Volume": "medseg.volume",
    "build_network": "medseg.networks",
    "read": "medseg.io",
    "write": "medseg.io",
}


def load_model(name: str | None = None, **options: Any) -> Any:
    """A model that is ready to be called on a volume.

    The pipelines lie above this package: they are found through the entry point that they register, never imported.

    Args:
        name: A name from `medseg models`, or None for the default model.
        options: Passed on, for example `device`.

    Raises:
        MedsegError: No installed package offers models; whatever the loader itself raises passes through.
    """
    from importlib.metadata import entry_points  # costs more than the rest of this file, and few callers need it

    found = entry_points(group="medseg.models", name="load_model")
    if not found:
        raise MedsegError(
            "models: expected the entry point medseg.models/load_model, found none; install the package with pip"
        )
    return next(iter(found)).load()(name, **options)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medseg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
