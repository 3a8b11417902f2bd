"""Low-rank adaptation of Hiera's fused projections, where SAM2-SGP puts it (LoRA, 2106.09685; 2506.19658).

Only queries and values are adapted, and only as many of their channels as the block's *input* has: at a stage change,
where the output is twice as wide, that is the first half of the queries and the last half of the values.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam2_hiera import Hiera, HieraAttention
from medseg_kernels.dense import dense


class LoraProjection(nn.Module):
    """A frozen projection to queries, keys and values, plus what low-rank maps add to its first and last channels.

    Args:
        qkv: The projection, from C channels to at least 2 C; it is frozen.
        rank: Channels between the two maps of an addition.
    """

    def __init__(self, qkv: nn.Linear, rank: int) -> None:
        super().__init__()
        dim = qkv.in_features
        self.qkv = qkv.requires_grad_(False)
        self.linear_a_q, self.linear_a_v = (nn.Linear(dim, rank, bias=False) for _ in range(2))
        self.linear_b_q, self.linear_b_v = (nn.Linear(rank, dim, bias=False) for _ in range(2))
        for down, up in ((self.linear_a_q, self.linear_b_q), (self.linear_a_v, self.linear_b_v)):
            nn.init.kaiming_uniform_(down.weight, a=sqrt(5))
            nn.init.zeros_(up.weight)

    @property
    def bias(self) -> Tensor:
        """Of the projection; what it makes of zeros."""
        return self.qkv.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., channels of the projection)."""
        if not torch.is_grad_enabled():
            return dense(x, self.merged(), self.qkv.bias)
        out = self.qkv(x)
        queries, values = self.linear_b_q(self.linear_a_q(x)), self.linear_b_v(self.linear_a_v(x))
        rest = out.shape[-1] - queries.shape[-1]
        return out + F.pad(queries, (0, rest)) + F.pad(values, (rest, 0))

    def merged(self) -> Tensor:
        """One weight that does the same; without gradients it is far cheaper than the detour."""
        queries, values = (
            self.linear_b_q.weight @ self.linear_a_q.weight,
            self.linear_b_v.weight @ self.linear_a_v.weight,
        )
        weight, dim = self.qkv.weight.clone(), len(queries)
        weight[:dim] += queries
        weight[-dim:] += values
        return weight


def add_lora(trunk: Hiera, rank: int) -> None:
    """Adapt the projections of all blocks of a trunk."""
    for module in trunk.modules():
        if isinstance(module, HieraAttention) and isinstance(module.qkv, nn.Linear):
            module.qkv = LoraProjection(module.qkv, rank)
