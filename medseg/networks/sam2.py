"""SAM 2 behind one face, under the key names of its published checkpoints, 2.0 and 2.1 (2408.00714).

An image is encoded once. Memories of other frames, an image with its mask each, can then be read into its embedding,
and prompts turned to masks. B images, g = side / 16, N = g * g, C channels, m memory channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam2_decoder import Sam2MaskDecoder
from medseg.networks.sam2_hiera import HieraConfig, ImageEncoder
from medseg.networks.sam2_memory import Memories, MemoryAttention, MemoryEncoder, sine_places
from medseg.networks.sam_decoder import PromptEncoder
from medseg.networks.sam_transformer import Head
from medseg.weights import fill
from medseg_kernels.dense import dense

PATCH = 16  # pixels per side of a cell of the embedding
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue in 0..1


@dataclass(frozen=True, kw_only=True)
class Sam2Config:
    """Sizes of a SAM 2.

    Args:
        hiera: Of the image encoder.
        channels: C of embedding, prompts and decoder.
        memory_channels: m.
        memory_layers: Of the memory attention.
        memory_inner: Inner channels of its MLPs.
        decoder_heads: Heads of the two-way transformer.
        decoder_mlp_dim: Inner channels of its MLPs.
        iou_hidden: Inner channels of the heads that estimate overlap.
        image_size: Side in pixels that the published weights were trained at.
        version: `2.1`, or `2.0` without the three tensors that came later.
    """

    hiera: HieraConfig = field(default_factory=HieraConfig)
    channels: int = 256
    memory_channels: int = 64
    memory_layers: int = 4
    memory_inner: int = 2048
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden: int = 256
    image_size: int = 1024
    version: str = "2.1"


PRESETS = {
    "tiny": Sam2Config(),
    "small": Sam2Config(hiera=HieraConfig(stages=(1, 2, 11, 2), global_blocks=(7, 10, 13))),
    "base_plus": Sam2Config(
        hiera=HieraConfig(
            embed_dim=112, num_heads=2, stages=(2, 3, 16, 3), global_blocks=(12, 16, 20), pos_grid=(14, 14)
        )
    ),
    "large": Sam2Config(
        hiera=HieraConfig(
            embed_dim=144, num_heads=2, stages=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8)
        )
    ),
}


class Features(NamedTuple):
    """What the encoder says of images.

    Args:
        fine: (B, C / 8, 4 g, 4 g).
        middle: (B, C / 4, 2 g, 2 g).
        deep: The embedding, (B, C, g, g).
    """

    fine: Tensor
    middle: Tensor
    deep: Tensor

    def of(self, which: slice) -> Features:
        """Those of some of the images."""
        return Features(self.fine[which], self.middle[which], self.deep[which])


def preset_of(state: Mapping[str, Tensor]) -> str | None:
    """The size of SAM 2 that weights belong to, by the number of blocks of their encoder; None where it is none."""
    stem = "image_encoder.trunk.blocks."
    blocks = {name.removeprefix(stem).split(".")[0] for name in state if name.startswith(stem)}
    return next((name for name, config in PRESETS.items() if sum(config.hiera.stages) == len(blocks)), None)


class Sam2Parts(nn.Module):
    """Image encoder, memory, prompt encoder and mask decoder.

    Args:
        preset: `tiny`, `small`, `base_plus` or `large`.
        changes: Fields of `Sam2Config` that differ from the preset.

    Raises:
        ValueError: No preset has that name, or no version.
    """

    def __init__(self, preset: str = "small", **changes: Any) -> None:
        super().__init__()
        self.config = configured(preset, changes)
        config = self.config
        self.image_encoder = ImageEncoder(config.hiera, config.channels)
        self.memory_attention = MemoryAttention(
            config.channels, config.memory_channels, layers=config.memory_layers, inner=config.memory_inner
        )
        self.memory_encoder = MemoryEncoder(config.channels, config.memory_channels)
        self.sam_prompt_encoder = PromptEncoder(config.channels, PATCH)
        self.sam_mask_decoder = Sam2MaskDecoder(
            config.channels,
            num_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp_dim,
            iou_hidden=config.iou_hidden,
        )
        self._add_tracking()

    def _add_tracking(self) -> None:
        """Weights of video tracking: of no use for images, but published files load whole and travel out whole."""
        channels, narrow = self.config.channels, self.config.memory_channels
        self.maskmem_tpos_enc = nn.Parameter(torch.zeros(7, 1, 1, narrow))
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, channels))
        self.no_mem_pos_enc = nn.Parameter(torch.zeros(1, 1, channels))
        self.no_obj_ptr = nn.Parameter(torch.zeros(1, channels))
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.obj_ptr_proj = Head(channels, channels, channels, channels)
        if self.config.version == "2.1":
            self.no_obj_embed_spatial = nn.Parameter(torch.zeros(1, narrow))
            self.obj_ptr_tpos_proj = nn.Linear(channels, narrow)

    def encode(self, pixels: Tensor) -> Features:
        """Features of images (B, 3, rows, columns), sides equal and multiples of 32; once per image is enough."""
        stages, neck, decoder = self.image_encoder.stages(pixels), self.image_encoder.neck, self.sam_mask_decoder
        fine, middle = (
            pointwise_pair(stages[level], neck.lateral(level).conv, narrow)
            for level, narrow in enumerate((decoder.conv_s0, decoder.conv_s1))
        )
        return Features(fine, middle, neck.deep(stages))

    def memory(self, deep: Tensor, logits: Tensor) -> Tensor:
        """Memory of a frame: its embedding (B, C, g, g) and mask logits (B, 1, 16 g, 16 g) to (B, m, g, g)."""
        return self.memory_encoder(deep, logits)

    def remember(self, memory: Tensor) -> Memories:
        """Memories (B, m, g, g) as tokens with their keys, for any number of frames."""
        places = sine_places((memory.shape[2], memory.shape[3]), memory.shape[1]).to(memory.device)
        tokens = memory.flatten(2).mT
        return self.memory_attention.remember(tokens, places.flatten(2).mT.to(memory.dtype), tokens.shape[1])

    def condition(self, deep: Tensor, memories: Memories) -> Tensor:
        """The embedding (B, C, g, g) after it read the memories, alike."""
        grid = (deep.shape[2], deep.shape[3])
        places = sine_places(grid, deep.shape[1]).to(deep.device, deep.dtype)
        return self.memory_attention(deep.flatten(2).mT, places.flatten(2).mT, memories).mT.unflatten(2, grid)


class Sam2(Sam2Parts):
    """Segmentation of images by prompts; arguments as in `Sam2Parts`."""

    def forward(
        self, pixels: Tensor, *, points: tuple[Tensor, Tensor] | None = None, boxes: Tensor | None = None
    ) -> Tensor:
        """Segment one thing per image, without memories.

        Args:
            pixels: (B, 3, side, side), 0..1 less the mean, over the deviation.
            points: Pixels (x, y), (B, n, 2), and 1 inside, 0 outside, -1 no point, (B, n).
            boxes: Pixels (x0, y0, x1, y1), (B, 4).

        Returns:
            Logits, (B, 1, side, side).
        """
        features = self.encode(pixels)
        embedding = features.deep + self.no_mem_embed.mT[..., None]
        grid = (embedding.shape[2], embedding.shape[3])
        sparse, dense = self.sam_prompt_encoder(grid, points=points, boxes=boxes)
        places = self.sam_prompt_encoder.dense_pe(grid)
        drawing = self.sam_mask_decoder.drawing(embedding, places, sparse, dense, (features.fine, features.middle))
        mask, _ = drawing.single(training=self.training)
        return F.interpolate(mask, (pixels.shape[2], pixels.shape[3]), mode="bilinear", align_corners=False)


def configured(preset: str, changes: Mapping[str, Any]) -> Sam2Config:
    """A preset with some fields changed; `hiera` may be a mapping of its own fields.

    Raises:
        ValueError: No preset has that name, or no version.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    hiera = changes.get("hiera")
    if isinstance(hiera, Mapping):
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in hiera.items()}
        changes = {**changes, "hiera": replace(PRESETS[preset].hiera, **lists)}
    config = replace(PRESETS[preset], **changes)
    if config.version not in ("2.0", "2.1"):
        raise ValueError(f"version must be 2.0 or 2.1, got {config.version!r}")
    return config


def pointwise_pair(x: Tensor, first: nn.Conv2d, second: nn.Conv2d) -> Tensor:
    """Two 1 x 1 convolutions as one, without the wide feature between them: (B, H, W, C) to (B, D, H, W)."""
    weight = second.weight.flatten(1) @ first.weight.flatten(1)
    bias = None
    if first.bias is not None and second.bias is not None:
        bias = second.weight.flatten(1) @ first.bias + second.bias
    return dense(x, weight, bias).permute(0, 3, 1, 2)


def unwrapped(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights in a checkpoint: plain, below `model` or `state_dict`, with or without `module.` and `sam.`."""
    inner = next((checkpoint[name] for name in ("model", "state_dict") if name in checkpoint), checkpoint)
    return {key.removeprefix("module.").removeprefix("sam."): x for key, x in inner.items()}


def load_published(network: Sam2Parts, checkpoint: Mapping[str, Any]) -> None:
    """Fill a network with published weights of SAM 2; every name and shape must fit.

    Args:
        network: Its parameters keep their dtype.
        checkpoint: What the file holds, read with `weights_only`.

    Raises:
        ModelMissing: Names are missing or unknown, or shapes differ; it names the first.
    """
    fill(network, unwrapped(checkpoint), "the checkpoint's weights")
