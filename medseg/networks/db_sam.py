"""DB-SAM, SAM's encoder with a convolution branch beside it (2410.04172).

SAM's blocks are frozen and cut into stages. Around each, tokens pass channel attention, exchange what they see with
maps of the convolution branch through deformable attention in both directions; at the end both are fused. `db_sam` is
the paper's design, `db_sam_ms` the repository's with four convolution levels, `db_sam_plus` its only full training
configuration: joint attention over all maps, no channel attention.

B images, H W sides of the token grid, C channels, Q queries, S pixels of all levels together, L levels, P points per
level, h heads. The branch's parts are in `db_sam_branch.py`; key names are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import pi
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.db_sam_branch import FUSIONS, ChannelAttention, DropPath, SpatialPrior
from medseg.networks.sam import ImageEncoder, Prediction, Sam, SamConfig
from medseg_kernels import deform_sample


@dataclass(frozen=True, kw_only=True)
class DbSamConfig(SamConfig):
    """Sizes of a DB-SAM.

    Args:
        branches: `two` exchanges tokens and convolution maps in both directions, `four` attends over all jointly.
        levels: Which of the four convolution branches are there; level i starts from the image reduced by 2^i.
        stages: First and last block of each stage.
        channel_attention: Whether it stands `before` or `after` the exchange; with None its weights exist unused.
        fusion: Name of the fusion block in `db_sam_branch.FUSIONS`.
        fusion_inputs: Maps that the block over several levels is built for; published: one more than it gets.
        fusion_reduction: C per inner channel of the fusion's gates.
        fusion_ffn_ratio: Inner channels of its feed-forward part per channel.
        deform_heads: h of deformable attention.
        deform_points: P.
        expand_ratio: Inner channels of the exchange's feed-forward part per channel.
        prior_widths: Inner channels of the convolution branches.
        pyramid: Factor by which each of the four levels is reduced before its first convolution.
        antialias: Whether that reduction smooths first.
        norm_momentum: Of the batch norms of the convolution branches; a short training needs more than the published.
        dropout: Chance that a channel is dropped behind attention and in feed-forward parts, in training.
        drop_path: Chance that a residual branch is dropped for an image, in training.
    """

    norm_eps: float = 1e-5
    branches: Literal["two", "four"] = "two"
    levels: tuple[int, ...] = (2,)
    stages: tuple[tuple[int, int], ...] = ((0, 2), (3, 5), (6, 8), (9, 11))
    channel_attention: Literal["before", "after"] | None = "before"
    fusion: str = "DANE3"
    fusion_inputs: int = 5
    fusion_reduction: int = 12
    fusion_ffn_ratio: float = 4.0
    deform_heads: int = 12
    deform_points: int = 4
    expand_ratio: float = 4.0
    prior_widths: tuple[int, int, int] = (128, 256, 512)
    pyramid: tuple[int, int, int, int] = (2, 4, 8, 16)
    antialias: bool = True
    norm_momentum: float = 0.01
    dropout: float = 0.1
    drop_path: float = 0.3


_ALL = (1, 2, 3, 4)
DB_PRESETS = {
    "db_sam": DbSamConfig(),
    "db_sam_ms": DbSamConfig(levels=_ALL, fusion="DANE", drop_path=0.4),
    "db_sam_plus": DbSamConfig(
        branches="four", levels=_ALL, channel_attention=None, fusion="MultiConvFeatsDANE", fusion_inputs=5
    ),
}


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
        return self.output_proj(deform_sample(value, list(spatial_shapes), locations, weights))

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


class MixFeedForward(nn.Module):
    """Feed-forward part with a 3x3 convolution inside, so that neighbours on each map meet.

    The published repository does not hold this module; this form and its key names are this project's own.

    Args:
        dim: C.
        inner: Channels inside.
        dropout: Chance that a channel is dropped, in training.
    """

    def __init__(self, dim: int, inner: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.dwconv = nn.Conv2d(inner, inner, kernel_size=3, padding=1, groups=inner)
        self.fc2 = nn.Linear(inner, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Maps of sizes `grids`, flattened one behind the other, (B, S, C) to (B, S, C)."""
        inner = self.fc1(tokens).split([rows * columns for rows, columns in grids], dim=1)
        mixed = [self.dwconv(x.mT.unflatten(2, grid)).flatten(2).mT for x, grid in zip(inner, grids, strict=True)]
        return self.drop(self.fc2(self.drop(F.gelu(torch.cat(mixed, dim=1)))))


class CrossAttention(nn.Module):
    """Some maps read others at learned points, then pass a feed-forward part.

    Args:
        dim: C.
        num_heads: h.
        num_levels: L, how many maps are read.
        num_points: P.
        expand_ratio: Inner channels of the feed-forward part per channel.
        dropout: Chance that a channel is dropped, in training.
        drop_path: Chance that a residual branch is dropped for an image, in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_levels: int,
        *,
        num_points: int = 4,
        expand_ratio: float = 4.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(dim)
        self.value_norm = nn.LayerNorm(dim)
        self.attn = DeformableAttention(dim, num_heads, num_levels, num_points)
        self.ffn_pre_norm = nn.LayerNorm(dim)
        self.mlp = MixFeedForward(dim, int(expand_ratio * dim), dropout=dropout)
        self.drop = nn.Sequential(nn.Dropout(dropout), DropPath(drop_path))
        self.drop_path = DropPath(drop_path)

    def forward(self, queries: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """Maps that read, (B, H, W, C) each, and L maps that are read, alike, to the former, renewed."""
        grids, shapes = ([(x.shape[1], x.shape[2]) for x in maps] for maps in (queries, values))
        x = torch.cat([each.flatten(1, 2) for each in queries], dim=1)
        read = torch.cat([each.flatten(1, 2) for each in values], dim=1)
        places = cell_centres(grids, x)[None, :, None].expand(len(x), -1, len(shapes), -1)
        x = x + self.drop(self.attn(self.query_norm(x), places, self.value_norm(read), shapes))
        x = x + self.drop_path(self.mlp(self.ffn_pre_norm(x), grids))
        parts = x.split([rows * columns for rows, columns in grids], dim=1)
        return [part.unflatten(1, grid) for part, grid in zip(parts, grids, strict=True)]


def cell_centres(grids: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Where each cell of each map lies in units of its map, (x, y) row by row, (S, 2)."""
    places = []
    for rows, columns in grids:
        y = (torch.arange(rows, dtype=like.dtype, device=like.device) + 0.5) / rows
        x = (torch.arange(columns, dtype=like.dtype, device=like.device) + 0.5) / columns
        places.append(torch.stack((x.expand(rows, columns), y[:, None].expand(rows, columns)), dim=-1).flatten(0, 1))
    return torch.cat(places)


class Adapter(nn.Module):
    """Everything that DB-SAM adds to SAM's encoder and that learns (fig. 2).

    Args:
        config: Sizes.
    """

    def __init__(self, config: DbSamConfig) -> None:
        super().__init__()
        dim, levels, stages = config.embed_dim, len(config.levels), range(len(config.stages))
        self.branches, self.position = config.branches, config.channel_attention
        options = {"pyramid": config.pyramid, "antialias": config.antialias, "momentum": config.norm_momentum}
        self.spatial_prior_module = SpatialPrior(dim, config.levels, config.prior_widths, **options)
        self.level_embed = nn.Parameter(torch.zeros(levels, dim))
        options = {"num_points": config.deform_points, "expand_ratio": config.expand_ratio}
        options |= {"dropout": config.dropout, "drop_path": config.drop_path}

        def exchange(read: int) -> nn.ModuleList:
            return nn.ModuleList(CrossAttention(dim, config.deform_heads, read, **options) for _ in stages)

        if config.branches == "two":
            self.vit_cross_attn_blocks, self.conv_cross_attn_blocks = exchange(levels), exchange(1)
            self.vit_conv_blocks = nn.ModuleList(ChannelAttention(dim) for _ in stages)
            self.conv = nn.Conv2d(levels * dim, dim, kernel_size=1)
        else:
            self.self_attn_blocks, self.self_attn_blocks1 = exchange(levels + 1), exchange(levels + 1)
        fusion = {"reduction": config.fusion_reduction, "ffn_ratio": config.fusion_ffn_ratio}
        if config.fusion == "MultiConvFeatsDANE":
            fusion["inputs"] = config.fusion_inputs
        self.aggregation = FUSIONS[config.fusion](dim, drop_path=DropPath(config.drop_path), **fusion)
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.level_embed)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Features of the convolution branches, (B, 3, pixel rows, pixel columns) to L times (B, H, W, C)."""
        return [part + code for part, code in zip(self.spatial_prior_module(x), self.level_embed, strict=True)]

    def forward(self, stage: int, tokens: Tensor, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What follows a stage of frozen blocks: tokens (B, H, W, C) and L maps alike to both, renewed."""
        if self.branches == "four":
            for blocks in (self.self_attn_blocks, self.self_attn_blocks1):
                joint = [tokens, *maps]
                tokens, *maps = blocks[stage](joint, joint)
            return tokens, maps
        if self.position == "before":
            tokens = self._channels(stage, tokens)
        # Both directions read what came out of the stage: the second must not see the first one's result.
        seen = self.vit_cross_attn_blocks[stage]([tokens], maps)[0]
        maps = self.conv_cross_attn_blocks[stage](maps, [tokens])
        return self._channels(stage, seen) if self.position == "after" else seen, maps

    def fuse(self, tokens: Tensor, maps: list[Tensor]) -> Tensor:
        """Tokens (B, H, W, C) and L maps alike, both behind the last stage, to normalised tokens (B, H, W, C)."""
        if self.branches == "two":
            maps = [self.conv(torch.cat(maps, dim=3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)]
        return self.norm(self.aggregation(tokens, maps))

    def _channels(self, stage: int, tokens: Tensor) -> Tensor:
        return self.vit_conv_blocks[stage](tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DbSamEncoder(ImageEncoder):
    """SAM's encoder, frozen at first, with the adapter between its stages.

    Args:
        config: Sizes.

    Raises:
        ValueError: The stages do not cover all blocks in order.
    """

    def __init__(self, config: DbSamConfig) -> None:
        super().__init__(config)
        named = [index for first, last in config.stages for index in range(first, last + 1)]
        if named != list(range(config.depth)):
            raise ValueError(f"stages must cover blocks 0 to {config.depth - 1} in order, got {config.stages}")
        self.stages = config.stages
        self.adapter = Adapter(config)
        self.freeze()

    def freeze(self, frozen: bool = True) -> None:
        """Whether SAM's own blocks and what goes into them stay as they are, as published; its neck always learns."""
        for part in (self.blocks, self.patch_embed):
            part.requires_grad_(not frozen)
        self.pos_embed.requires_grad_(not frozen)

    def first_stage(self, x: Tensor) -> Tensor:
        """Tokens behind the first stage of blocks, (B, 3, rows, columns) to (B, H, W, C).

        While the blocks are frozen, nothing that learns has touched them: training may keep them per image.
        """
        return self._stage(0, self.tokens(x))

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:
        """Normalised pixels, and what `first_stage` gave for them if it is known, to (B, out, H, W)."""
        maps = self.adapter.maps(x)
        tokens = self.first_stage(x) if first is None else first
        for stage in range(len(self.stages)):
            if stage:
                tokens = self._stage(stage, tokens)
            tokens, maps = self.adapter(stage, tokens, maps)
        return self.neck(self.adapter.fuse(tokens, maps).permute(0, 3, 1, 2))

    def _stage(self, stage: int, tokens: Tensor) -> Tensor:
        first, last = self.stages[stage]
        for block in self.blocks[first : last + 1]:
            tokens = block(tokens)
        return tokens


class DbSam(Sam):
    """Promptable segmentation of medical images: one box per image, one mask for it.

    Args:
        preset: `db_sam`, `db_sam_ms` or `db_sam_plus`.
        changes: Fields of `DbSamConfig` that differ from the preset.

    Raises:
        ValueError: No preset has that name.
    """

    def __init__(self, preset: str = "db_sam", **changes: Any) -> None:
        nn.Module.__init__(self)
        if preset not in DB_PRESETS:
            raise ValueError(f"preset must be one of {', '.join(DB_PRESETS)}, got {preset!r}")
        self.config = replace(DB_PRESETS[preset], **changes)
        self._build(DbSamEncoder(self.config))

    def forward(self, images: Tensor, boxes: Tensor, *, multimask: bool = False) -> Prediction:
        """Masks of one box per image, as in training.

        Args:
            images: (B, rows, columns, 3), 0..255, at most the configured size.
            boxes: Pixels (x0, y0, x1, y1), ends included, (B, 4).
            multimask: Three masks per box instead of one.

        Returns:
            Logits (B, masks, 4 H, 4 W) of the padded square, and estimated overlaps.
        """
        embedding = self.encode(self.preprocess(images.permute(0, 3, 1, 2)))
        return self.decode(embedding, boxes=boxes, multimask=multimask)


def box_loss(
    logits: Tensor, target: Tensor, *, dice: float = 1.0, entropy: float = 1.0, smooth: float = 1e-5
) -> Tensor:
    """What training minimises: soft Dice with squared sizes, and binary cross entropy, both on low-resolution logits.

    Args:
        logits: (B, 1, rows, columns).
        target: 1 inside, 0 outside, alike.
        dice: Weight of the Dice part.
        entropy: Weight of the cross entropy.
        smooth: Added above and below the Dice fraction.

    Returns:
        Scalar.
    """
    target = target.to(logits.dtype)
    crossed = F.binary_cross_entropy_with_logits(logits, target)
    return dice * squared_dice_loss(logits, target, smooth=smooth) + entropy * crossed


def squared_dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """1 - (2 sum p t + smooth) / (sum p^2 + sum t^2 + smooth), p the sigmoid, averaged over images and channels."""
    p, axes = logits.sigmoid(), tuple(range(2, logits.ndim))
    common, size = (p * target).sum(axes), (p.square() + target.square()).sum(axes)
    return (1 - (2 * common + smooth) / (size + smooth)).mean()


def box_overlap(logits: Tensor, target: Tensor) -> Tensor:
    """Intersection over union of what is drawn with the truth, 0 where nothing is to be drawn; alike to (B,)."""
    drawn, true = (logits > 0).flatten(1), (target > 0.5).flatten(1)
    return (drawn & true).sum(1) / (drawn | true).sum(1).clamp(min=1)
