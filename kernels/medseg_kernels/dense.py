"""Dense layers: x W^T + b and an activation, or a sum, in one pass; on a CPU through oneDNN.

PyTorch hands float32 products on a CPU to MKL, which leaves half of the units of other makers' processors idle, and
runs the activation over a result that has left the cache. oneDNN compiles its loops for the processor at hand and ends
them with the activation. N rows, C channels read, D written.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula

from medseg_kernels.dispatch import is_recorded, scripted_as, wants_gradients

Activation = Literal["none", "gelu", "relu", "silu"]
# What torch.compile itself emits for linear layers. Not part of PyTorch's documented interface, hence the question.
_POINTWISE = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_ONEDNN_NAMES = {"silu": "swish"}  # where it calls an activation otherwise

if _POINTWISE is not None and _POINTWISE not in flop_registry:  # bundles bring copies of this module

    @register_flop_formula(_POINTWISE)
    def _operations(x: Any, *_: object, out_shape: Any, **__: object) -> int:
        """Two per multiply-add, from the shapes: PyTorch's counter does not know the operator."""
        return 2 * prod(x) * out_shape[-1]


def uses_onednn(*tensors: Tensor | None) -> bool:
    """Say whether products of these tensors go to oneDNN: float32 on a CPU, and nobody wants gradients or a graph."""
    if _POINTWISE is None or is_recorded() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if wants_gradients(*tensors):
        return False
    return all(x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() for x in tensors if x is not None)


def activate(x: Tensor, activation: str) -> Tensor:
    """Bend every entry: `none`, the exact `gelu`, `relu` or `silu`."""
    if activation == "gelu":
        return F.gelu(x)
    if activation == "silu":
        return F.silu(x)
    return F.relu(x) if activation == "relu" else x


def dense_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """What the op must equal: PyTorch's linear layer, then its activation; any device, any dtype."""
    return activate(F.linear(x, weight, bias), activation)


@scripted_as(dense_reference)
def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """Map channels linearly, then bend them.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).
        activation: `none`, the exact `gelu`, `relu` or `silu`.

    Returns:
        (..., D).
    """
    if _POINTWISE is None or not uses_onednn(x, weight, bias):
        return dense_reference(x, weight, bias, activation)
    kind = "none" if activation == "gelu" else ""  # which GELU: the exact one
    name = _ONEDNN_NAMES.get(activation, activation)
    return _POINTWISE(x.contiguous(), weight.contiguous(), bias, name, [], kind)


def dense_add_reference(x: Tensor, weight: Tensor, bias: Tensor | None, to: Tensor) -> Tensor:
    """What `dense_add` must equal: the layer, then the sum."""
    return to + F.linear(x, weight, bias)


@scripted_as(dense_add_reference)
def dense_add(x: Tensor, weight: Tensor, bias: Tensor | None, to: Tensor) -> Tensor:
    """Map channels linearly and add the result to something, as a residual branch does.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).
        to: (..., D), left as it is.

    Returns:
        (..., D).
    """
    if _POINTWISE is None or not uses_onednn(x, weight, bias, to):
        return dense_add_reference(x, weight, bias, to)
    return _POINTWISE.binary(x.contiguous(), to.contiguous(), weight.contiguous(), bias, "add")
