"""Segment Anything behind one face, under the key names of its published checkpoints (2304.02643).

An image is encoded once; any number of prompts on it are then decoded, each in a fraction of that time. Prompt encoder
and mask decoder are in `sam_decoder.py`. B images, H W sides of the token grid, C channels, h heads, D = C / h head
width, P prompts on an image, n points of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.checkpoints import unwrapped
from medseg.errors import ModelMissing
from medseg.networks.blocks import ChannelNorm
from medseg.networks.sam_decoder import MaskDecoder, PromptEncoder
from medseg.networks.sam_transformer import Mlp
from medseg_kernels import relative_attention

PIXEL_MEAN = (123.675, 116.28, 103.53)  # of red, green and blue in 0..255; not part of any checkpoint
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Sizes of a SAM.

    Args:
        embed_dim: C of the image encoder.
        depth: Its blocks.
        num_heads: h of its attention.
        global_attn_indexes: Blocks that attend over the whole grid instead of windows.
        img_size: Side in pixels of the square that images are padded to, and that position tables are made for.
        patch_size: Pixels per token.
        window_size: Side of a window in tokens.
        mlp_ratio: Inner channels of the blocks' MLPs per channel.
        norm_eps: Of the blocks' norms: 1e-6 in SAM and MedSAM, 1e-5 in DB-SAM, on the same weights.
        out_chans: Channels of embedding, prompts and decoder.
        mask_in_chans: Inner channels of the mask prompt's encoder.
        decoder_depth: Layers of the two-way transformer.
        decoder_heads: Its heads.
        decoder_mlp_dim: Inner channels of its MLPs.
        iou_head_depth: Linear maps of the head that estimates overlap.
        iou_head_hidden_dim: Its inner channels.
        place_scale: Spread of the frequencies by which places are told at first; less learns boxes sooner.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    img_size: int = 1024
    patch_size: int = 16
    window_size: int = 14
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    out_chans: int = 256
    mask_in_chans: int = 16
    decoder_depth: int = 2
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    place_scale: float = 1.0


PRESETS = {
    "vit_b": SamConfig(),
    "vit_l": SamConfig(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23)),
    "vit_h": SamConfig(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31)),
}


def preset_of(state: Mapping[str, Tensor]) -> str:
    """The size of SAM that weights belong to, by the width of their encoder.

    Raises:
        ModelMissing: They are of none.
    """
    places = state.get("image_encoder.pos_embed")
    width = 0 if places is None else places.shape[-1]
    found = [name for name, config in PRESETS.items() if config.embed_dim == width]
    if not found:
        raise ModelMissing(f"weights must be of {', '.join(PRESETS)}, their encoder has {width or 'no'} channels")
    return found[0]


class Attention(nn.Module):
    """Multi-head attention over a grid, or its windows, with a learned bias by row and column offset.

    Args:
        dim: C.
        num_heads: h; must divide C.
        grid: Rows and columns of keys that the tables are made for; they are resized for others.
        qkv_bias: Whether the fused projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int], *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, dim // num_heads))

    def forward(self, x: Tensor, window: int | None = None) -> Tensor:
        """(B, H, W, C) to (B, H, W, C); `window` is the side of the windows, None attends over the whole grid."""
        q, k, v = self.qkv(x).unflatten(3, (3, self.num_heads, -1)).unbind(3)  # (B, H, W, h, D) each
        pad_k, pad_v = self._padding(k)
        out = relative_attention(q, k, v, self.rel_pos_h, self.rel_pos_w, window=window, pad_k=pad_k, pad_v=pad_v)
        return self.proj(out.flatten(3))

    def _padding(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value, (h, D), of zeros that SAM puts behind the grid before it projects: the bias alone."""
        if self.qkv.bias is None:
            nothing = k.new_zeros(k.shape[3:])
            return nothing, nothing
        _, pad_k, pad_v = self.qkv.bias.unflatten(0, (3, self.num_heads, -1)).unbind()
        return pad_k, pad_v


class Block(nn.Module):
    """Attention and MLP, each added to what it read normalised.

    Args:
        dim: C.
        num_heads: h.
        grid: What the tables of the attention are made for: the window, or the whole grid.
        window: Side of the windows; 0 attends over the whole grid.
        mlp_ratio: Inner channels of the MLP per channel.
        norm_eps: 1e-6 in SAM and MedSAM, 1e-5 in DB-SAM, on the same weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        *,
        window: int = 0,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.window = window or None
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, grid)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self.attn(self.norm1(x), self.window)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """One token per square patch of pixels.

    Args:
        dim: C of the tokens.
        patch: Side of a patch in pixels.
    """

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, pixel rows, pixel columns) to (B, H, W, C)."""
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Plain vision transformer with windows, and a neck to the width of the decoder (section A, "image encoder").

    Args:
        config: Sizes; `img_size` is what the tables are made for, other images interpolate them.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        side, dim, out = config.img_size // config.patch_size, config.embed_dim, config.out_chans
        self.patch_embed = PatchEmbed(dim, config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, dim))
        self.blocks = nn.ModuleList()
        for index in range(config.depth):
            window = 0 if index in config.global_attn_indexes else config.window_size
            grid = (window or side, window or side)
            options = {"window": window, "mlp_ratio": config.mlp_ratio, "norm_eps": config.norm_eps}
            self.blocks.append(Block(dim, config.num_heads, grid, **options))
        self.neck = nn.Sequential(
            nn.Conv2d(dim, out, kernel_size=1, bias=False),
            ChannelNorm(out),
            nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
            ChannelNorm(out),
        )
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pixels, sides multiples of the patch, (B, 3, rows, columns) to (B, out, H, W)."""
        tokens = self.tokens(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.neck(tokens.permute(0, 3, 1, 2))

    def tokens(self, x: Tensor) -> Tensor:
        """What the first block reads: patches with their places, (B, 3, rows, columns) to (B, H, W, C)."""
        tokens = self.patch_embed(x)
        places = self.pos_embed
        if tokens.shape[1:3] != places.shape[1:3]:
            grid = (tokens.shape[1], tokens.shape[2])
            places = F.interpolate(places.permute(0, 3, 1, 2), grid, mode="bicubic").permute(0, 2, 3, 1)
        return tokens + places


class Prediction(NamedTuple):
    """What the decoder says about each prompt.

    Args:
        logits: (P, masks, 4 H, 4 W), positive inside the mask.
        iou: Estimated overlap of each mask with the truth, (P, masks).
    """

    logits: Tensor
    iou: Tensor


class Sam(nn.Module):
    """Promptable segmentation of images.

    Args:
        preset: `vit_b`, `vit_l` or `vit_h`.
        changes: Fields of `SamConfig` that differ from the preset.

    Raises:
        ValueError: No preset has that name.
    """

    image_encoder: nn.Module
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, preset: str = "vit_b", **changes: Any) -> None:
        super().__init__()
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
        self.config = replace(PRESETS[preset], **changes)
        self._build(ImageEncoder(self.config))

    def _build(self, image_encoder: nn.Module) -> None:
        """Put prompt encoder and mask decoder behind an image encoder, sizes from `self.config`."""
        config = self.config
        self.image_encoder = image_encoder
        self.prompt_encoder = PromptEncoder(config.out_chans, config.patch_size, config.mask_in_chans)
        self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix *= config.place_scale
        self.mask_decoder = MaskDecoder(
            config.out_chans,
            depth=config.decoder_depth,
            num_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp_dim,
            iou_head_depth=config.iou_head_depth,
            iou_head_hidden_dim=config.iou_head_hidden_dim,
        )
        for name, colour in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(colour)[:, None, None], persistent=False)

    def preprocess(self, image: Tensor, side: int | None = None) -> Tensor:
        """Normalise colours, then pad with zeros at the bottom and on the right to a square.

        Args:
            image: (B, 3, rows, columns) or (3, rows, columns), 0..255, its longer side at most `side`.
            side: Of the square in pixels; the configured size if not given.

        Raises:
            ValueError: The image is larger than the square.
        """
        side = side or self.config.img_size
        rows, columns = image.shape[-2:]
        if max(rows, columns) > side:
            raise ValueError(f"image must fit into {side} x {side} pixels, got {rows} x {columns}; resize it first")
        return F.pad((image - self.pixel_mean) / self.pixel_std, (0, side - columns, 0, side - rows))

    def encode(self, pixels: Tensor) -> Tensor:
        """Embedding of preprocessed images, (B, 3, side, side) to (B, out, H, W); once per image is enough."""
        return self.image_encoder(pixels)

    def decode(
        self,
        embedding: Tensor,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = False,
    ) -> Prediction:
        """Masks for the prompts on one image, or for one prompt on each of several images.

        Args:
            embedding: Of one image, (1, out, H, W), or one per prompt, (P, out, H, W).
            points: Pixels (x, y) of the padded image, (P, n, 2), and 1 inside, 0 outside, -1 no point, (P, n).
            boxes: Pixels (x0, y0, x1, y1), (P, 4).
            masks: Logits of an earlier answer, (P, 1, 4 H, 4 W).
            multimask: Three masks per prompt, for prompts that can mean several things, instead of one.
        """
        grid = (embedding.shape[2], embedding.shape[3])
        sparse, dense = self.prompt_encoder(grid, points=points, boxes=boxes, masks=masks)
        places = self.prompt_encoder.dense_pe(grid)
        return Prediction(*self.mask_decoder(embedding, places, sparse, dense, multimask=multimask))

    def decode_above(self, embedding: Tensor, points: Tensor, least: float) -> Prediction:
        """Masks for single points inside something, as far as the decoder trusts them; the others are never drawn.

        Args:
            embedding: Of one image, (1, out, H, W).
            points: Pixels (x, y) of the padded image, (P, 2).
            least: Masks stay whose estimated overlap is above this; each point offers three.

        Returns:
            Logits (K, 4 H, 4 W) and estimated overlaps (K,), in the order of the points.
        """
        grid = (embedding.shape[2], embedding.shape[3])
        inside = torch.ones(len(points), 1, dtype=torch.int64, device=points.device)
        sparse, dense = self.prompt_encoder(grid, points=(points[:, None], inside))
        places = self.prompt_encoder.dense_pe(grid)
        return Prediction(*self.mask_decoder.above(embedding, places, sparse, dense, least))

    def enlarge(self, logits: Tensor, padded: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Low-resolution logits on the pixels of the image, by linear steps: to the padded square, then to the image.

        Rows and columns are resampled on their own by one product each, so that the square never stands in memory.

        Args:
            logits: (P, masks, 4 H, 4 W) or (masks, 4 H, 4 W), finite.
            padded: Rows and columns that the image filled of the square.
            original: Rows and columns before it was resized to that.

        Returns:
            (P, masks, *original) or (masks, *original).
        """
        rows, columns = (
            _resampling(logits.shape[axis], logits.shape[axis] * self.config.patch_size // 4, inside, size).to(logits)
            for axis, inside, size in zip((-2, -1), padded, original, strict=True)
        )
        return rows @ logits @ columns.mT


def _resampling(cells: int, side: int, inside: int, size: int) -> Tensor:
    """What turns `cells` values into `size`: linearly to `side`, of which the first `inside` linearly to `size`."""
    line = F.interpolate(torch.eye(cells, dtype=torch.float64)[None], side, mode="linear", align_corners=False)[
        ..., :inside
    ]
    return F.interpolate(line, size, mode="linear", align_corners=False)[0].mT


def load_published(network: Sam, checkpoint: Mapping[str, Any]) -> list[str]:
    """Fill a network with published weights; every name and shape must fit, except that adapters may be absent.

    Args:
        network: A `Sam`, or a `DbSam` that starts from SAM's weights or from its own.
        checkpoint: What the file holds, read with `weights_only`.

    Returns:
        Names that keep their first, random values: none, or all of the adapter.

    Raises:
        ModelMissing: Names are missing or unknown, or shapes differ; it lists them.
    """
    state, wanted = unwrapped(checkpoint), network.state_dict()
    adapter = "image_encoder.adapter."
    kept = [] if any(key.startswith(adapter) for key in state) else [key for key in wanted if key.startswith(adapter)]
    missing, unknown = sorted(wanted.keys() - state.keys() - set(kept)), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        raise ModelMissing(f"checkpoint does not fit the network: missing {missing}, unknown {unknown}")
    wrong = [f"{key} {tuple(x.shape)}" for key, x in state.items() if x.shape != wanted[key].shape]
    if wrong:
        raise ModelMissing(f"checkpoint does not fit the network: other shapes in {wrong}")
    network.load_state_dict(state, strict=False)  # what may be missing has been checked above
    return kept
