"""DB-SAM, SAM's encoder with a convolution branch beside it (2410.04172).

B batch, Q queries, S pixels of all levels together, L levels, P points per level, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor, nn

from medseg_kernels import deform_sample


class DeformableAttention(nn.Module):
    """Every query reads a few learned points of every level (Deformable DETR, 2010.04159, eq. 3).

    Args:
        dim: Channels of queries, values and output.
        num_heads: h; must divide `dim`.
        num_levels: L.
        num_points: P.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int = 4) -> None:
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._initialise()

    def forward(
        self, query: Tensor, references: Tensor, values: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Queries (B, Q, C), their places (B, Q, L, 2) and flattened maps (B, S, C) to (B, Q, C)."""
        locations, weights = self.points(query, references, spatial_shapes)
        value = self.value_proj(values).unflatten(2, (self.shape[0], -1))
        return self.output_proj(deform_sample(value, spatial_shapes, locations, weights))

    def points(
        self, query: Tensor, references: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Where the queries look, (B, Q, h, L, P, 2) as (x, y) in units of the map, and how much, (B, Q, h, L, P)."""
        offsets = self.sampling_offsets(query).unflatten(2, (*self.shape, 2))  # in pixels of the level
        size = torch.tensor([shape[::-1] for shape in spatial_shapes], dtype=query.dtype, device=query.device)
        weights = self.attention_weights(query).unflatten(2, (self.shape[0], -1)).softmax(-1)
        locations = references[:, :, None, :, None] + offsets / size[:, None]
        return locations, weights.unflatten(3, self.shape[1:])

    def _initialise(self) -> None:
        """Start with each head looking into a direction of its own, point p at p pixels along it."""
        heads, levels, points = self.shape
        angle = torch.arange(heads) * (2 * pi / heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, points + 1.0)
        offsets = direction[:, None, None] * steps[:, None]  # (h, 1, P, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(heads, levels, points, 2).flatten())
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
