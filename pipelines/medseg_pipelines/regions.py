"""The partitioner that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medseg.errors import UsageError
from medseg.partition import Intensity, Partitioner, Superpixels

_KINDS: dict[str, type[Partitioner]] = {"intensity": Intensity, "superpixels": Superpixels}


def partitioner(kind: str, options: Mapping[str, Any]) -> Partitioner:
    """The partitioner with its options.

    Args:
        kind: As in the `partition` section of a recipe.
        options: Of its class, plain data.

    Raises:
        UsageError: There is no such partitioner, it does not know an option, or a value is out of range.
    """
    if kind not in _KINDS:
        raise UsageError(f"partition must be one of {', '.join(_KINDS)}, got '{kind}'")
    try:
        return _KINDS[kind](**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"partition '{kind}': {error}") from None
