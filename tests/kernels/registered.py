"""What every registered op must pass."""

from __future__ import annotations

from typing import Any

import torch


def check_backward_op(op: Any, arguments: tuple[Any, ...]) -> None:
    """Schema and shapes of an op that is the backward of another; it has no gradient of its own.

    Args:
        op: An overload, `torch.ops.medseg.name.default`.
        arguments: Tensors that take no part in automatic differentiation, and whatever else it wants.
    """
    torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
