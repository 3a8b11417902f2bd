"""Dense layers: x W^T + b and an activation in one pass; on a CPU through oneDNN.

PyTorch hands float32 products on a CPU to MKL, which leaves half of the units of other makers' processors idle, and
runs the activation over a result that has left the cache. oneDNN compiles its loops for the processor at hand and ends
them with the activation. N rows, C channels read, D written.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medseg_kernels.dispatch import is_recorded, scripted_as

Activation = Literal["none", "gelu", "relu"]
# What torch.compile itself emits for linear layers. Not part of PyTorch's documented interface, hence the question.
_POINTWISE = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def uses_onednn(*tensors: Tensor | None) -> bool:
    """Say whether products of these tensors go to oneDNN: float32 on a CPU, and nobody wants gradients or a graph."""
    if _POINTWISE is None or is_recorded() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    given = [x for x in tensors if x is not None]
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return False
    return all(x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() for x in given)


def dense_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """What the op must equal: PyTorch's linear layer, then its activation; any device, any dtype."""
    out = F.linear(x, weight, bias)
    if activation == "gelu":
        return F.gelu(out)
    return F.relu(out) if activation == "relu" else out


@scripted_as(dense_reference)
def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation = "none") -> Tensor:
    """Map channels linearly, then bend them.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,).
        activation: `none`, the exact `gelu`, or `relu`.

    Returns:
        (..., D).
    """
    if _POINTWISE is None or not uses_onednn(x, weight, bias):
        return dense_reference(x, weight, bias, activation)
    kind = "none" if activation == "gelu" else ""  # which GELU: the exact one
    return _POINTWISE(x.contiguous(), weight.contiguous(), bias, activation, [], kind)
