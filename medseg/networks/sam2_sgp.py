"""SAM2-SGP, segmentation guided by a support set instead of prompts (2506.19658), on SAM 2's parts (2408.00714).

B batch, N = g * g tokens of a frame, h heads, D head width.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from medseg_kernels import rope_attention


def axial_rotations(side: int, width: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine by which the channel pairs of a square frame turn: the first half by column, then by row.

    Args:
        side: g, tokens along each axis.
        width: D; a multiple of 4.
        theta: Base of the frequencies.

    Returns:
        Two tensors (g * g, D / 2), tokens row by row.
    """
    speed = theta ** -(torch.arange(0, width, 4, dtype=torch.float64) / width)
    at = torch.arange(side * side)
    angle = torch.cat(((at % side)[:, None] * speed, (at // side)[:, None] * speed), dim=1)
    return angle.cos().float(), angle.sin().float()


class RoPEAttention(nn.Module):
    """Attention of a frame to itself or to a memory bank, queries and keys turned by their places.

    Args:
        embedding_dim: Channels of queries and of the output.
        num_heads: h; must divide `embedding_dim`.
        kv_in_dim: Channels of keys and values before their projection; those of the queries if not given.
        rope_theta: Base of the frequencies.
    """

    def __init__(
        self, embedding_dim: int, num_heads: int, *, kv_in_dim: int | None = None, rope_theta: float = 10_000.0
    ) -> None:
        super().__init__()
        self.num_heads, self.theta = num_heads, rope_theta
        kv_in_dim = kv_in_dim or embedding_dim
        self.q_proj = nn.Linear(embedding_dim, embedding_dim)
        self.k_proj = nn.Linear(kv_in_dim, embedding_dim)
        self.v_proj = nn.Linear(kv_in_dim, embedding_dim)
        self.out_proj = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, unrotated: int = 0) -> Tensor:
        """Attend from one square frame to whole frames and, behind them, `unrotated` keys without a place.

        (B, N, C), (B, M, C_kv) and (B, M, C_kv) to (B, N, C).
        """
        heads = (self.num_heads, -1)
        queries, keys = self.q_proj(q).unflatten(2, heads), self.k_proj(k).unflatten(2, heads)
        cos, sin = self.rotations(q.shape[1])
        cos, sin = cos.to(q.device), sin.to(q.device)
        if v.shape[2] < queries.shape[3]:
            # Weights of a query add up to one, so the projection can wait until the narrow memory is summed.
            weight, bias = self.v_proj.weight.unflatten(0, heads), self.v_proj.bias.unflatten(0, heads)
            out = rope_attention(queries, keys, v, cos, sin, unrotated=unrotated, v_weight=weight, v_bias=bias)
        else:
            out = rope_attention(queries, keys, self.v_proj(v).unflatten(2, heads), cos, sin, unrotated=unrotated)
        return self.out_proj(out.flatten(2))

    def rotations(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine for a square frame of `tokens`, (N, D / 2) each."""
        side = isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"a frame must be square, got {tokens} tokens")
        return axial_rotations(side, self.q_proj.out_features // self.num_heads, self.theta)
