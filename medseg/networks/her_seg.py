"""HER-Seg, segmentation of large images with attention in linear time (2504.06205).

The encoder keeps one grid of 16 x 16 pixel cells from end to end and mixes it at a cost that grows with the number of
pixels: inverted-residual convolutions first, then attention in linear time between two gates. A small two-way decoder
draws the masks.

B batch, S image sides, h w grid sides, N = h * w tokens, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import ModelMissing
from medseg.networks.blocks import ChannelNorm, Pointwise, folded, interpolate_to, linear, linear_add, pointwise
from medseg.networks.her_seg_decoder import MaskDecoder
from medseg.networks.sam_decoder import PromptEncoder
from medseg.weights import fill
from medseg_kernels import linear_attention
from medseg_kernels.dense import Activation, activate

PATCH = 16  # pixels per side of a cell


def rotations(grid: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Cosine and sine by which each token turns its channel pairs; half of the pairs by row, then half by column.

    They span all channels, not those of one head, so all layers share them.

    Args:
        grid: Rows and columns of tokens.
        channels: C; a multiple of 4.
        device: Where they are needed.

    Returns:
        (N, C / 2, 2), float32.

    Raises:
        ValueError: The channels cannot be halved twice.
    """
    if channels % 4:
        raise ValueError(f"channels must be a multiple of 4, half for rows and half for columns, got {channels}")
    pairs = channels // 4  # per axis
    speed = 10_000 ** -(torch.arange(pairs, dtype=torch.float64, device=device) / pairs)
    angles = [torch.arange(side, dtype=torch.float64, device=device)[:, None] * speed for side in grid]
    rows, columns = (torch.stack((angle.cos(), angle.sin()), dim=-1).float() for angle in angles)  # (side, pairs, 2)
    shape = (*grid, pairs, 2)
    return torch.cat((rows[:, None].expand(shape), columns[None].expand(shape)), dim=2).flatten(0, 1)


class DualGatedLinearAttention(nn.Module):
    """Linear attention between a gate on the values and a gate on the output (section 3.2).

    The names of the bottleneck are the published ones, although `up_proj` narrows and `down_proj` widens.

    Args:
        dim: C; a multiple of 4.
        num_heads: H; must divide C.
        bias: Whether the projection to queries and keys has one.
    """

    def __init__(self, dim: int, num_heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qk = nn.Linear(dim, 2 * dim, bias=bias)
        self.up_proj = nn.Linear(dim, dim // 4)
        self.down_proj = nn.Linear(dim // 4, dim)
        self.lepe = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int], turns: Tensor, gate: Tensor | None = None) -> Tensor:
        """Attend among all tokens.

        Args:
            x: Normalised tokens, (B, N, C), row by row.
            grid: Rows and columns of tokens.
            turns: What `rotations` gives for that grid, (N, C / 2, 2).
            gate: Gate on the output before its SiLU, (B, N, C).

        Returns:
            (B, N, C).
        """
        q, k = linear(self.qk, x).chunk(2, dim=2)
        v = self.values(x)
        local = self.lepe(v.unflatten(1, grid).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2)
        return linear_attention(q, k, v, self.num_heads, rope=turns, add=local, gate=gate)

    def values(self, x: Tensor) -> Tensor:
        """Values (B, N, C), passed through the gated bottleneck."""
        return linear(self.down_proj, linear(self.up_proj, x, "silu"))


class Mlp(nn.Module):
    """Two linear maps around an exact GELU, and the sum with what they were branched from.

    Args:
        dim: C.
        inner: Channels between the maps.
    """

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        """(B, N, C) to (B, N, C), added to `to`."""
        inner = linear(self.fc1, x, "gelu")
        return linear(self.fc2, inner) if to is None else linear_add(self.fc2, inner, to)


class Block(nn.Module):
    """Encoder block: gated attention and MLP, each added to what it read normalised (fig. 3).

    Args:
        dim: C.
        num_heads: H.
        mlp_ratio: Inner channels of the MLP per channel.
        drop_path: Share of samples that skip a branch in training.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 2.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.act_proj = nn.Linear(dim, dim)
        self.attn = DualGatedLinearAttention(dim, num_heads)
        self.out_proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor, grid: tuple[int, int], turns: Tensor) -> Tensor:
        """(B, N, C), rows and columns, and their turns to (B, N, C); the gate reads the normalised tokens."""
        tokens = self.norm1(x)
        mixed = self.attn(tokens, grid, turns, gate=linear(self.act_proj, tokens))
        if self.training and self.drop_path:
            x = x + self._some(linear(self.out_proj, mixed))
            return x + self._some(self.mlp(self.norm2(x)))
        x = linear_add(self.out_proj, mixed, x)
        return self.mlp(self.norm2(x), to=x)

    def _some(self, branch: Tensor) -> Tensor:
        """The branch of some samples at zero and of the others grown to keep the mean."""
        return branch * F.dropout(branch.new_ones(branch.shape[0], 1, 1), self.drop_path)


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm; one convolution in evaluation.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: Odd; the grid is kept.
        groups: Of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 1, groups: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.c = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """(B, C_in, h, w) to (B, C_out, h, w), bent in the end."""
        if self.training:
            return activate(self.bn(self.c(x)), activation)
        weight, bias = folded(self.c, self.bn)
        if weight.shape[2] == 1 and self.c.groups == 1:
            return pointwise(x, weight, bias, activation)
        return activate(F.conv2d(x, weight, bias, padding=self.c.padding, groups=self.c.groups), activation)


class InvertedResidual(nn.Module):
    """Widen, mix neighbours channel by channel, narrow, add; GELU after the sum as well.

    Args:
        dim: C.
        ratio: Inner channels per channel.
    """

    def __init__(self, dim: int, ratio: float = 2.0) -> None:
        super().__init__()
        wide = int(ratio * dim)
        self.conv1 = ConvNorm(dim, wide)
        self.conv2 = ConvNorm(wide, wide, kernel_size=3, groups=wide)
        self.conv3 = ConvNorm(wide, dim)
        nn.init.zeros_(self.conv3.bn.weight)  # the block starts as a bare GELU

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        return F.gelu(x + self.conv3(self.conv2(self.conv1(x, "gelu"), "gelu")))


class PatchEmbedding(nn.Module):
    """Each cell of 16 x 16 pixels to a vector.

    Args:
        in_channels: Channels of the image.
        dim: C.
    """

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, 16 h, 16 w) to (B, C, h, w)."""
        return self.proj(image)


class Stage(nn.Module):
    """The blocks of one stage, under the published name.

    Args:
        blocks: One after the other.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, *place: object) -> Tensor:
        """What the blocks take, the feature first, to what they give."""
        for block in self.blocks:
            x = block(x, *place)
        return x


class Encoder(nn.Module):
    """CE-Encoder: one stage of convolutions and further ones of attention, all on one grid and of one width (fig. 2).

    Args:
        in_channels: Channels of the image.
        dim: C; a multiple of 4.
        depths: Blocks of each stage, the convolutions first.
        num_heads: H of each stage; the first is not used.
        mlp_ratio: Inner channels per channel of all blocks.
        drop_path: Of the last block; it grows evenly from 0 at the first.
    """

    def __init__(
        self,
        in_channels: int = 3,
        dim: int = 96,
        *,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratio: float = 2.0,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(f"depths and num_heads must name the same stages, got {len(depths)} and {len(num_heads)}")
        self.patch_embed = PatchEmbedding(in_channels, dim)
        self.layers = nn.ModuleList([Stage([InvertedResidual(dim, mlp_ratio) for _ in range(depths[0])])])
        drops = torch.linspace(0, drop_path, sum(depths)).tolist()[depths[0] :]
        for depth, heads in zip(depths[1:], num_heads[1:], strict=True):
            now, drops = drops[:depth], drops[depth:]
            self.layers.append(Stage([Block(dim, heads, mlp_ratio=mlp_ratio, drop_path=drop) for drop in now]))

    def forward(self, image: Tensor) -> Tensor:
        """(B, C_in, 16 h, 16 w) to (B, C, h, w)."""
        convolutions, *attentions = self.layers
        # Channels last is how tokens lie in memory: from here to the masks nothing is copied into another order.
        x = convolutions(self.patch_embed(image).contiguous(memory_format=torch.channels_last))
        grid = (x.shape[2], x.shape[3])
        turns, tokens = rotations(grid, x.shape[1], x.device), x.flatten(2).mT
        for stage in attentions:
            tokens = stage(tokens, grid, turns)
        return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class DecoderSize:
    """Widths of HER-Seg's decoder and prompt encoder; as published if not given.

    Args:
        dim: C of the decoder; a multiple of 8.
        heads: H of its attentions; must divide half of `dim`.
        mlp_dim: Inner channels of its MLPs.
        mask_channels: Channels of the prompt encoder's branch for masks; a multiple of 4.
    """

    dim: int = 256
    heads: int = 8
    mlp_dim: int = 256
    mask_channels: int = 16


class HERSeg(nn.Module):
    """Masks of a large image, several classes in one pass, with or without boxes.

    Args:
        in_channels: Channels of the image.
        out_channels: Masks to draw. One keeps the published decoder with its three mask tokens; more give every class
            a mask token and a hypernetwork of its own over one shared pass.
        dim: C of the encoder; a multiple of 4.
        depths: Blocks of its stages.
        num_heads: Heads of its stages.
        drop_path: Share of samples that skip a branch of the last block in training.
        decoder: Widths behind the encoder, or fields of `DecoderSize` by name.
        meta_pool: Pool the decoder's values as the paper draws it; no published weights were trained so.
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 1,
        *,
        dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        drop_path: float = 0.1,
        decoder: DecoderSize | Mapping[str, int] | None = None,
        meta_pool: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels, self.multiple = out_channels, PATCH
        size = decoder if isinstance(decoder, DecoderSize) else DecoderSize(**(decoder or {}))
        self.image_encoder = Encoder(in_channels, dim, depths=depths, num_heads=num_heads, drop_path=drop_path)
        self.neck = nn.Sequential(
            Pointwise(dim, size.dim, bias=False),
            ChannelNorm(size.dim),
            nn.Conv2d(size.dim, size.dim, kernel_size=3, padding=1, bias=False),
            ChannelNorm(size.dim),
        )
        self.prompt_encoder = PromptEncoder(size.dim, PATCH, size.mask_channels)
        masks = out_channels if out_channels > 1 else 3
        self.mask_decoder = MaskDecoder(size.dim, size.heads, size.mlp_dim, num_masks=masks, meta_pool=meta_pool)

    def features(self, image: Tensor) -> Tensor:
        """(B, C_in, 16 h, 16 w) to the image feature (B, decoder_dim, h, w), which distillation learns from SAM.

        Raises:
            ValueError: A side is no multiple of 16 pixels.
        """
        if image.shape[2] % PATCH or image.shape[3] % PATCH:
            raise ValueError(f"height and width must be multiples of {PATCH} pixels, got {tuple(image.shape[2:])}")
        return self.neck(self.image_encoder(image))

    def forward(self, image: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Logits at the size of the image.

        Args:
            image: (B, C_in, H, W), normalised; sides are multiples of 16 pixels, and need not be equal.
            boxes: What to segment, (B, n, 4), each x0, y0, x1, y1 in pixels of the image.

        Returns:
            (B, out_channels, H, W); sigmoid or softmax is left to the caller.
        """
        feature = self.features(image)
        grid = (feature.shape[2], feature.shape[3])
        prompts, dense = self.prompt_encoder(grid, boxes=boxes)
        places = self.prompt_encoder.dense_pe(grid)
        masks = self.mask_decoder(feature + dense, places, prompts, masks=self.out_channels)
        return interpolate_to(masks, (image.shape[2], image.shape[3]))


def load_published(network: HERSeg, state: Mapping[str, Tensor]) -> list[str]:
    """Fill a network with a published checkpoint, or with one of the pre-training that knows no decoder.

    Args:
        network: Its parameters keep their dtype.
        state: Parameters by their published names, with or without the `module.` of multi-GPU runs. Position tables
            are passed over: the network makes its own, for any size.

    Returns:
        Names that a pre-training checkpoint leaves as they were: all of the prompt encoder and the decoder, or none.

    Raises:
        ModelMissing: The names or shapes are not the network's, or the decoder is that of Segment Anything.
    """
    named = {name.removeprefix("module."): x for name, x in state.items() if not name.endswith("rope.rotations")}
    if any(name.startswith("mask_decoder.iou_prediction_head") for name in named):
        raise ModelMissing(
            "this is a decoder of Segment Anything; HER-Seg's has MLPs of 256 channels instead of 2048, 3 mask tokens "
            "instead of 4 and no head for the predicted IoU: train it, or load a HER-Seg checkpoint"
        )
    wanted = network.state_dict()
    pretrained = {name for name in wanted if name.startswith(("image_encoder.", "neck."))}
    kept = sorted(wanted.keys() - pretrained) if named.keys() <= pretrained else []
    fill(network, named | {name: wanted[name] for name in kept})
    return kept
