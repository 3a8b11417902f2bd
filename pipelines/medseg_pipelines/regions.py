"""The partitioner that a recipe names."""

from __future__ import annotations

from medseg.errors import UsageError
from medseg.partition import Intensity, Partitioner, Superpixels
from medseg_pipelines.recipe import Partition

_KINDS = {"intensity": Intensity, "superpixels": Superpixels}


def partitioner(section: Partition) -> Partitioner:
    """The partitioner with its options.

    Raises:
        UsageError: It does not know an option, or a value is out of range.
    """
    try:
        return _KINDS[section.kind](**section.options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"partition '{section.kind}': {error}") from None
