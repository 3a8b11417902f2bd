"""One image that is prompted again and again: each slice is encoded once, whatever is asked of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from medseg.networks.sam import Sam
from medseg.picture import Picture
from medseg.prompts import Prompts
from medseg.volume import Volume
from medseg_pipelines.prompting.embeddings import Embeddings, key_of
from medseg_pipelines.prompting.follow import Drawn, Manner, follow
from medseg_pipelines.prompting.frame import Frame, decode, network_pixels
from medseg_pipelines.prompting.given import Given, Target, around, target_on
from medseg_pipelines.prompting.grey import grey_range, to_eight_bit
from medseg_pipelines.prompting.stack import Stack
from medseg_pipelines.sections import PromptOptions
from medseg_pipelines.slices import slice_axis

Advance = Callable[[int, int], None]
_MAJORITY = 2  # of three planes


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptedNetwork:
    """A network that follows prompts, with what it has seen.

    Attributes:
        network: In evaluation mode, on its device.
        options: How it sees slices.
        embeddings: What it has encoded.
        identity: The sha256 of its weights.
        device: Where it is.
    """

    network: Sam
    options: PromptOptions
    embeddings: Embeddings
    identity: str
    device: torch.device


@dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    """What prompts made of an image.

    Attributes:
        labels: Label ids on the voxels of the volume, (X, Y, Z), or on the pixels of the picture, (H, W), uint8.
        logits: Of each label of a picture, (K, H, W), in the order of the labels; None of a volume.
        scores: Of each label the presence score by slice.
        encoded: Slices that were encoded for this.
        decoded: Masks that were drawn.
        seconds: Spent on "encoding" and on "decoding".
    """

    labels: np.ndarray
    logits: np.ndarray | None
    scores: dict[int, dict[int, float]]
    encoded: int
    decoded: int
    seconds: dict[str, float]


class Session:
    """An image ready to be prompted.

    Args:
        prompted: The network.
        image: A volume, or a picture.
        window: Grey values of a volume that become black and white; chosen by the recipe if not given.
    """

    def __init__(
        self, prompted: PromptedNetwork, image: Volume | Picture, *, window: tuple[float, float] | None = None
    ) -> None:
        self._prompted, self._image = prompted, image
        self._window = (0.0, 255.0)
        if isinstance(image, Volume):
            low, high = window or grey_range(image.voxels, prompted.options)
            self._window = (float(low), float(high))
        self._stacks: dict[int, Stack] = {}
        self._advance: Advance | None = None
        self._decoded = 0
        self._seconds = {"encoding": 0.0, "decoding": 0.0}

    @property
    def axis(self) -> int:
        """The array axis whose slices are prompted; 2 for a picture."""
        return slice_axis(self._image) if isinstance(self._image, Volume) else 2

    @property
    def window(self) -> tuple[float, float]:
        """Grey values that become black and white."""
        return self._window

    @torch.inference_mode()
    def segment(
        self, prompts: Prompts, *, propagate: bool = True, consensus: bool = False, progress: Advance | None = None
    ) -> Segmented:
        """Label map of all prompted structures; where two claim a voxel, the one that is surer gets it.

        Args:
            prompts: At least one, on this image.
            propagate: Go on to slices without prompts.
            consensus: Ask along all three axes, and keep what two of them say; volumes only.
            progress: Called with the masks drawn and how many there may be; may raise to stop.

        Raises:
            InputRefused: A prompt lies outside the image, or says nowhere where a structure is.
        """
        made, self._decoded, self._advance = self._prompted.embeddings.made, 0, progress
        self._seconds = {"encoding": 0.0, "decoding": 0.0}
        stack = self._stack(self.axis)
        targets = {label: target_on(stack, prompts.of(label)) for label in prompts.labels}
        labels = np.zeros((stack.count, *stack.size), np.uint8)
        best = np.zeros(labels.shape, np.float16)
        flat = np.full((len(targets), *stack.size), -np.inf, np.float32) if isinstance(self._image, Picture) else None
        scores = {}
        for number, (label, target) in enumerate(targets.items()):
            drawn = np.full(labels.shape, -np.inf, np.float16)
            scores[label] = self._walk(stack, target, drawn, propagate=propagate)
            if consensus and (drawn > 0).any():
                self._agree(stack, drawn)
            if flat is not None:
                flat[number] = drawn[0]
            better = drawn > best
            labels[better] = label
            best[better] = drawn[better]
        return Segmented(
            labels=stack.restored(labels) if flat is None else labels[0],
            logits=flat,
            scores=scores,
            encoded=self._prompted.embeddings.made - made,
            decoded=self._decoded,
            seconds={name: round(spent, 3) for name, spent in self._seconds.items()},
        )

    def encode(self, index: int) -> None:
        """Encode a slice before it is prompted, so that the first prompt is as quick as the others."""
        with torch.inference_mode():
            self._embedding(self._stack(self.axis), index)

    @torch.inference_mode()
    def outline(self, index: int, given: Given) -> np.ndarray:
        """What was said about one slice drawn on it alone, (rows, columns), boolean, as it is looked at."""
        return self._draw(self._stack(self.axis), index, given, None).mask

    def slices_of(self, prompts: Prompts) -> int:
        """How many slices the prompts may reach; what a run takes is proportional to it."""
        stack = self._stack(self.axis)
        targets = [target_on(stack, prompts.of(label)) for label in prompts.labels]
        return len({at for target in targets for at in range(target.first, target.last + 1)})

    def _walk(self, stack: Stack, target: Target, into: np.ndarray, *, propagate: bool) -> dict[int, float]:
        """Draw a structure slice by slice; its logits go into (S, rows, columns)."""
        options = self._prompted.options
        manner = Manner(margin=self._margin(stack), presence=options.presence) if propagate else None
        expected = target.last - target.first + 1 if propagate else len(target.given)

        def draw(at: int, given: Given, memory: object) -> Drawn:
            if self._advance:
                self._advance(self._decoded, max(self._decoded + 1, expected))
            return self._draw(stack, at, given, memory if options.carry_mask else None)

        def keep(at: int, logits: np.ndarray) -> None:
            into[at] = np.where(_inside(logits.shape, target), logits, -np.inf)

        return follow(stack, lambda at: self._grey(stack, at), target, draw, keep, manner=manner)

    def _agree(self, stack: Stack, drawn: np.ndarray) -> None:
        """Drop and add voxels where two planes outvote the third; (S, rows, columns), in place."""
        first = stack.restored(drawn > 0)
        votes = first.astype(np.uint8)
        for axis in {0, 1, 2} - {self.axis}:
            across = self._stack(axis)
            view, counted = across.arranged(first), across.arranged(votes)
            for at in np.flatnonzero(view.any((1, 2))).tolist():
                if self._advance:
                    self._advance(self._decoded, self._decoded + 1)
                given = Given(box=around(view[at], across, self._margin(across)))
                counted[at] += self._draw(across, at, given, None).mask
        agreed = stack.arranged(votes) >= _MAJORITY
        drawn[agreed & (drawn <= 0)] = np.finfo(np.float16).tiny
        drawn[~agreed] = -np.inf

    def _draw(self, stack: Stack, at: int, given: Given, memory: object) -> Drawn:
        """What the network says of a slice."""
        embedding = self._embedding(stack, at)
        started = monotonic()
        prompted = self._prompted
        found = decode(
            prompted.network, embedding.to(prompted.device), self._frame(stack), given, cast("Tensor | None", memory)
        )
        self._seconds["decoding"] += monotonic() - started
        self._decoded += 1
        estimate = found.estimate if prompted.options.estimates else None
        return Drawn(found.logits.float().cpu().numpy(), found.memory, estimate)

    def _embedding(self, stack: Stack, at: int) -> Tensor:
        prompted, frame = self._prompted, self._frame(stack)
        started = monotonic()
        slice_ = self._eight_bit(stack, at)
        options = prompted.options

        def make() -> Tensor:
            pixels = network_pixels(prompted.network, slice_, frame, options)
            return prompted.network.encode(pixels).cpu()

        key = key_of(slice_, prompted.identity, frame, options.colours, options.fit, options.smoothing)
        embedding = prompted.embeddings.get(key, make)
        self._seconds["encoding"] += monotonic() - started
        return embedding

    def _stack(self, axis: int) -> Stack:
        if axis not in self._stacks:
            image: Any = self._image
            volume = isinstance(image, Volume)
            self._stacks[axis] = Stack.of_volume(image, axis) if volume else Stack.of_picture(image)
        return self._stacks[axis]

    def _frame(self, stack: Stack) -> Frame:
        side = self._prompted.network.config.img_size
        return Frame.of(stack.size, stack.spacing, side, fit=self._prompted.options.fit)

    def _eight_bit(self, stack: Stack, at: int) -> np.ndarray:
        return to_eight_bit(stack.slices[at], self._window)

    def _grey(self, stack: Stack, at: int) -> np.ndarray:
        slice_ = self._eight_bit(stack, at)
        return slice_ if slice_.ndim == 2 else slice_.mean(2)

    def _margin(self, stack: Stack) -> float:
        return self._prompted.options.margin * max(stack.size)


def _inside(size: tuple[int, ...], target: Target) -> np.ndarray:
    """Where a structure may lie, (rows, columns): within a cuboid that was drawn around it."""
    allowed = np.ones(size, bool)
    if target.frame is not None:
        x0, y0, x1, y1 = target.frame
        allowed[:] = False
        allowed[int(np.floor(y0)) : int(np.ceil(y1)) + 1, int(np.floor(x0)) : int(np.ceil(x1)) + 1] = True
    return allowed
