"""The partitioner that a recipe or a user names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medseg.errors import UsageError
from medseg.partition import AutomaticMasks, Intensity, Partitioner, Superpixels
from medseg_pipelines.weights.cache import verify_weights

_KINDS: dict[str, type[Partitioner]] = {
    "intensity": Intensity,
    "superpixels": Superpixels,
    "automatic-masks": AutomaticMasks,
}
_WEIGHTS = "sam-vit-b"


def partitioner(kind: str, options: Mapping[str, Any]) -> Partitioner:
    """The partitioner with its options.

    Args:
        kind: As in the `partition` section of a recipe.
        options: Of its class, plain data; automatic masks take their `weights` by name.

    Raises:
        UsageError: There is no such partitioner, it does not know an option, or a value is out of range.
        ModelMissing: The weights of automatic masks are not there.
    """
    if kind not in _KINDS:
        raise UsageError(f"partition must be one of {', '.join(_KINDS)}, got '{kind}'")
    chosen = dict(options)
    if kind == "automatic-masks" and "checkpoint" not in chosen:
        chosen["checkpoint"] = verify_weights(str(chosen.pop("weights", _WEIGHTS))).path
    try:
        return _KINDS[kind](**chosen)
    except (TypeError, ValueError) as error:
        raise UsageError(f"partition '{kind}': {error}") from None


def named_partitioner(text: str) -> Partitioner:
    """The partitioner behind what a user writes: intensity, superpixels, sam or sam:WEIGHTS.

    Raises:
        UsageError: It is none of these.
        ModelMissing: The weights are not there; the message says what to fetch.
    """
    kind, _, weights = text.partition(":")
    if kind == "sam":
        return partitioner("automatic-masks", {"weights": weights} if weights else {})
    if kind not in ("intensity", "superpixels") or weights:
        raise UsageError(f"partition must be intensity, superpixels, sam or sam:WEIGHTS, got '{text}'")
    return partitioner(kind, {})


def name_of(how: Partitioner) -> str:
    """What a recipe calls a partitioner."""
    return next(name for name, kind in _KINDS.items() if isinstance(how, kind))
