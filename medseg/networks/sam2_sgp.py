"""SAM2-SGP, segmentation guided by a support set instead of prompts (2506.19658), on SAM 2.

Support images with their masks become memories. A query image reads the memories most like it; the first decoder then
draws a pseudo mask without any prompt, its bounding box prompts the second decoder, which draws the result. A volume is
a sequence of slices, each of which also reads the slices that were segmented before it.

B images, S support images (the pool), K of them chosen per query, side in pixels, g = side / 16, N = g * g, C channels,
m memory channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.networks.sam2 import MEAN, PATCH, STD, Features, Sam2Parts, unwrapped
from medseg.networks.sam2_decoder import Drawing
from medseg.networks.sam2_memory import Memories
from medseg.networks.sam2_sgp_decoder import FinalMasks, Guidance, SecondDecoder
from medseg.networks.sam2_sgp_lora import LoraProjection, add_lora
from medseg.networks.sam2_sgp_matching import Marks, Matcher
from medseg.weights import fill

EMPTY_BOX = 1023.0  # far corner that the released code gives an empty pseudo mask, whatever its size
# Modules of the second decoder without any influence on the published result, and norms that are never applied.
DEAD = (
    *(f"mask_decoder2.{part}." for part in ("self_attn", "self_attn2", "norm1", "norm2", "mlp", "med_sel")),
    *(
        f"mask_decoder2.transformer2.layers.{layer}.cross_attn_{way}.norm{number}."
        for layer in (0, 1)
        for way in ("token_to_image", "image_to_token")
        for number in (1, 2, 3)
    ),
)
LATER = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias")  # in SAM 2.1 only


class Support(NamedTuple):
    """A support set, encoded; once is enough for any number of queries.

    Args:
        deep: Embeddings, (S, C, g, g).
        memory: (S, m, g, g).
        memories: The same as tokens, with their keys.
        marks: Descriptors of their places; None in a network without a matcher.
    """

    deep: Tensor
    memory: Tensor
    memories: Memories
    marks: Marks | None

    def chosen(self, which: Tensor) -> Recalled:
        """The K images that each query reads, `which` (B, K)."""
        return Recalled(self.memories.chosen(which), None if self.marks is None else self.marks.chosen(which))


class Recalled(NamedTuple):
    """What queries read.

    Args:
        memories: Of their examples and, behind them, of slices segmented before.
        marks: Of their examples.
    """

    memories: Memories
    marks: Marks | None

    def behind(self, bank: Sequence[Memories]) -> Recalled:
        """With slices that were segmented before."""
        return Recalled(Memories.joined([self.memories, *bank]), self.marks)


class Segmented(NamedTuple):
    """What the network says of a batch of images, and how it came to it.

    Args:
        logits: (B, 1, side, side).
        pseudo: The first decoder's choice, (B, 1, 4 g, 4 g).
        box: What it prompted with, pixels (x0, y0, x1, y1), (B, 4).
        embedding: What had read the memories, (B, C, g, g).
        first: All that the first decoder drew.
        final: All that the second decoder drew.
    """

    logits: Tensor
    pseudo: Tensor
    box: Tensor
    embedding: Tensor
    first: Drawing
    final: FinalMasks


class Sam2Sgp(Sam2Parts):
    """Segmentation of one structure by examples.

    With a matcher and the gate the second decoder corrects the pseudo mask (`corrects`), else it replaces it.

    Args:
        preset: Size of SAM 2: `tiny`, `small`, `base_plus` or `large`.
        guidance: `gated`, or `released` for the published weights.
        lora_rank: Of the adaptation of queries and values in the image encoder; 0 leaves it out.
        normalise: `imagenet` colours, as SAM 2 was trained with, or `none`, as SAM2-SGP was.
        support_logits: `released` sends the 0/1 mask through the sigmoid as if it were logits; `binary` makes it as
            certain as a mask can be.
        bank_size: Segmented slices that are kept in memory.
        box_threshold: Logit above which the pseudo mask counts for its box.
        matching: Width of the descriptors by which places of a query are matched to those of the support set, ours; 0
            leaves it out, as published.
        changes: Fields of `Sam2Config` that differ from the preset.

    Raises:
        ValueError: An option has no such value.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        preset: str = "small",
        *,
        guidance: Guidance = "gated",
        lora_rank: int = 16,
        normalise: Literal["imagenet", "none"] = "imagenet",
        support_logits: Literal["released", "binary"] = "released",
        bank_size: int = 16,
        box_threshold: float = 0.5,
        matching: int = 0,
        **changes: Any,
    ) -> None:
        super().__init__(preset, **{"version": "2.0", **changes})
        for name, value, known in (
            ("normalise", normalise, ("imagenet", "none")),
            ("support_logits", support_logits, ("released", "binary")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {value!r}")
        self.binary_support, self.bank_size, self.box_threshold = support_logits == "binary", bank_size, box_threshold
        config = self.config
        self.mask_decoder2 = SecondDecoder(
            config.channels,
            guidance=guidance,
            num_heads=config.decoder_heads,
            mlp_dim=config.decoder_mlp_dim,
            iou_hidden=config.iou_hidden,
        )
        self.matcher = Matcher(config.channels, matching) if matching else None
        self.corrects = self.matcher is not None and guidance == "gated"
        if lora_rank:
            add_lora(self.image_encoder.trunk, lora_rank)
        mean, std = (MEAN, STD) if normalise == "imagenet" else ((0.0,) * 3, (1.0,) * 3)
        for name, colour in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(colour)[:, None, None], persistent=False)

    def encoding(self) -> list[nn.Parameter]:
        """What the features of an image depend on."""
        parts = (self.image_encoder, self.sam_mask_decoder.conv_s0, self.sam_mask_decoder.conv_s1)
        return [parameter for part in parts for parameter in part.parameters()]

    def features(self, images: Tensor) -> Features:
        """Features of images, (B, 3, side, side), 0..1, side a multiple of 32."""
        return self.encode((images - self.mean) / self.std)

    def support(self, images: Tensor, masks: Tensor) -> Support:
        """Encode a support set: images (S, 3, side, side), 0..1, and masks (S, 1, side, side), 0 or 1."""
        return self.support_of(self.features(images), masks)

    def support_of(self, features: Features, masks: Tensor) -> Support:
        """The same from features that are known, and masks (S, 1, side, side)."""
        memory = self.outlined(features.deep, masks)
        marks = None if self.matcher is None else Marks.of(self.matcher(features), masks)
        return Support(features.deep, memory, self.remember(memory), marks)

    def outlined(self, deep: Tensor, masks: Tensor) -> Tensor:
        """Memory of embeddings (S, C, g, g) with masks (S, 1, side, side), 0 or 1, to (S, m, g, g)."""
        logits = masks.to(deep.dtype)
        if self.binary_support:
            logits = 40 * logits - 20  # beyond these, the sigmoid is 0 and 1 in float32
        return self.memory(deep, logits)

    def similarity(self, deep: Tensor, support: Support) -> Tensor:
        """Share of each support image in the likeness to a query, (B, C, g, g) to (B, S), each row adding up to 1.

        Cosines of whole embeddings lie close together, so the shares are nearly even; their order still tells.
        """
        queries, pool = (F.normalize(x.float().flatten(1), dim=1) for x in (deep, support.deep))
        return (queries @ pool.mT).softmax(1)

    def nearest(self, deep: Tensor, support: Support, count: int) -> Tensor:
        """Numbers of the `count` support images most like each query, (B, count)."""
        return self.similarity(deep, support).topk(min(count, len(support.deep)), dim=1).indices

    def forward(self, images: Tensor, support: Support, *, count: int = 4, chosen: Tensor | None = None) -> Segmented:
        """Segment images.

        Args:
            images: (B, 3, side, side), 0..1.
            support: What `support` gave.
            count: K.
            chosen: Which support images each query reads, (B, K); the most similar ones if not given.
        """
        features = self.features(images)
        if chosen is None:
            chosen = self.nearest(features.deep, support, count)
        return self.segment(features, support.chosen(chosen))

    def segment(self, features: Features, recalled: Recalled) -> Segmented:
        """Both decoders on features that read memories: pseudo mask, its box, result."""
        embedding = self.condition(features.deep, recalled.memories)
        grid = (embedding.shape[2], embedding.shape[3])
        places = self.sam_prompt_encoder.dense_pe(grid)
        matched = self._matched(features, recalled.marks)
        sparse, dense = self.sam_prompt_encoder(grid, masks=matched)
        finer = (features.fine, features.middle)
        first = self.sam_mask_decoder.drawing(embedding, places, sparse, dense, finer)
        # Training draws the first mask only; the others are SAM 2's, and a network with a matcher starts without them.
        pseudo, _ = first.single(training=self.training or matched is not None)
        if matched is not None:
            pseudo = pseudo + matched
        return self.finished(embedding, first, pseudo, self.box(pseudo.detach(), PATCH * grid[0]))

    def finished(self, embedding: Tensor, first: Drawing, pseudo: Tensor, box: Tensor) -> Segmented:
        """What the second decoder makes of all before it; arguments as of `Segmented`."""
        grid = (embedding.shape[2], embedding.shape[3])
        places = self.sam_prompt_encoder.dense_pe(grid)
        prompts = self.sam_prompt_encoder(grid, boxes=box)
        final = self.mask_decoder2(embedding, places, prompts, pseudo, first.feature)
        return Segmented(self._corrected(pseudo, final.logits), pseudo, box, embedding, first, final)

    def _matched(self, features: Features, marks: Marks | None) -> Tensor | None:
        """Logits of the match, (B, 1, 4 g, 4 g); None in a network without a matcher."""
        if self.matcher is None:
            return None
        if marks is None:
            raise ValueError("a network with a matcher needs the marks of its support set")
        return self.matcher.match(self.matcher(features), marks)

    def _corrected(self, pseudo: Tensor, final: Tensor) -> Tensor:
        """The result: the second decoder corrects the pseudo mask, or replaces it."""
        if self.matcher is None or not self.corrects:
            return final
        size = (final.shape[2], final.shape[3])
        return final + self.matcher.kept * F.interpolate(pseudo, size, mode="bilinear", align_corners=False)

    def box(self, pseudo: Tensor, side: int) -> Tensor:
        """Box around the pseudo mask (B, 1, 4 g, 4 g) in pixels of an image of `side`; the image if it is empty."""
        released = self.mask_decoder2.mask_slope is None
        far, cell = EMPTY_BOX if released else side - 1.0, side // pseudo.shape[-1]
        return mask_boxes(pseudo, self.box_threshold, far, cell=cell)

    def slices(
        self, volume: Tensor, support: Support, *, count: int = 4, chosen: Tensor | None = None
    ) -> Iterator[Segmented]:
        """Segment a volume slice by slice, each reading the support set and the slices before it.

        Args:
            volume: (D, 3, side, side), 0..1; slices in order, so that neighbours follow each other.
            support: What `support` gave.
            count: K.
            chosen: Which support images each slice reads, (D, K); the most similar ones if not given.

        Yields:
            One result per slice, of batch one. At most `bank_size` slices are remembered.
        """
        bank: list[Memories] = []
        for number in range(len(volume)):
            features = self.features(volume[number : number + 1])
            which = self.nearest(features.deep, support, count) if chosen is None else chosen[number : number + 1]
            found = self.segment(features, support.chosen(which).behind(bank))
            if self.bank_size:
                bank = [*bank, self.remember(self.memory(found.embedding, found.logits))][-self.bank_size :]
            yield found


def mask_boxes(logits: Tensor, threshold: float, far: float, *, cell: int = 1) -> Tensor:
    """First and last column and row above a threshold, without a loop over images.

    Args:
        logits: (B, 1, H, W).
        threshold: What a pixel must exceed.
        far: Last column and row of the box of an empty mask, whose first ones are 0.
        cell: Pixels per side of a cell of the logits.

    Returns:
        Pixels (x0, y0, x1, y1), (B, 4), in the dtype of the logits.
    """
    inside = logits[:, 0] > threshold
    corners = []
    for axis in (1, 2):  # columns, then rows
        line = inside.any(dim=axis)
        at = torch.arange(line.shape[1], device=line.device)
        first = torch.where(line, at, line.shape[1]).amin(1)
        corners.append((cell * first, cell * torch.where(line, at, -1).amax(1) + cell - 1))
    (x0, x1), (y0, y1) = corners
    box = torch.stack((x0, y0, x1, y1), dim=1).to(logits.dtype)
    empty = box.new_tensor((0.0, 0.0, far, far))
    return torch.where((x1 < 0)[:, None], empty, box)


def load_published(network: Sam2Sgp, checkpoint: Mapping[str, Any]) -> list[str]:
    """Fill a network with a checkpoint of SAM2-SGP, or of SAM 2 to start training from; every name must fit.

    Args:
        network: Its parameters keep their dtype.
        checkpoint: What the file holds, read with `weights_only`. Parameters that have no influence are passed over.

    Returns:
        Names that keep their first values: those that SAM 2 or the released code does not have.

    Raises:
        ModelMissing: Names are missing or unknown, or shapes differ; it names the first.
    """
    wanted = network.state_dict()
    state = {key: x for key, x in unwrapped(checkpoint).items() if not key.startswith(DEAD)}
    state = {key: x for key, x in state.items() if key not in LATER or key in wanted}
    if any(isinstance(module, LoraProjection) for module in network.modules()):
        state = {_wrapped(key): x for key, x in state.items()}
    adapted = any(key.startswith("mask_decoder2.") for key in state)
    ours = ("mask_decoder2.mask_slope", "matcher.")
    added = {key for key in wanted if key in LATER or key.startswith(ours)}
    if not adapted:
        added |= {key for key in wanted if key.startswith("mask_decoder2.") or ".qkv.linear_" in key}
    kept = sorted(added - state.keys())
    fill(network, state | {key: wanted[key] for key in kept}, "the checkpoint's weights")
    return kept


def _wrapped(key: str) -> str:
    """Name of a fused projection once it is adapted."""
    for ending in ("weight", "bias"):
        if key.endswith(f".attn.qkv.{ending}"):
            return key.removesuffix(ending) + f"qkv.{ending}"
    return key


def adapted_parameters(network: Sam2Sgp) -> list[nn.Parameter]:
    """What training changes: everything but the encoder's trunk, of which only the adaptation."""
    network.requires_grad_(True)
    trunk = network.image_encoder.trunk
    for name, parameter in trunk.named_parameters():
        parameter.requires_grad_(".qkv.linear_" in name)
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
