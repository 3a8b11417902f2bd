"""Segment what a support set outlines, in volumes and in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.errors import InputRefused, ModelMissing, UsageError
from medseg.geometry import Chain
from medseg.networks.sam2 import preset_of, unwrapped
from medseg.networks.sam2_sgp import Sam2Sgp, load_published
from medseg.picture import Picture
from medseg.volume import Volume
from medseg_pipelines import nets
from medseg_pipelines.case import Case
from medseg_pipelines.either_kind import EitherKind
from medseg_pipelines.events import Reporter
from medseg_pipelines.picture_case import PictureCase, hash_pixels, picture_facts
from medseg_pipelines.picture_results import PictureResult
from medseg_pipelines.picture_statistics import measure_picture
from medseg_pipelines.pipeline import RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import SupportRecipe
from medseg_pipelines.results import LabelResult, Outcome, Result, write_json
from medseg_pipelines.statistics import measure
from medseg_pipelines.support import modality_of, prepared_picture, prepared_volume, usual_plane
from medseg_pipelines.support_pools import pools_of
from medseg_pipelines.support_store import PLANES, SupportSet, load_support_set
from medseg_pipelines.support_walk import SliceFrame, Walk, labelled, planes_of, runs_without, slices_along

AGREEMENT_FILE = "agreement.json"
SURE = 0.8  # mean Dice between runs from which on nothing is said
_MEANING = (
    "mean Dice between runs of which each left out another case of the support set; it tells whether the result hangs "
    "on single examples, not whether it is right"
)
_BYTES_PER_VOXEL = 14  # of a volume beside itself: prepared, turned, and twice the labels


@dataclass(frozen=True)
class Agreement:
    """How far runs agree on one structure."""

    id: int
    name: str
    dice: float | None  # None: there was one run only

    @property
    def sure(self) -> bool | None:
        """Whether the runs agree; None where nothing can be said."""
        return None if self.dice is None else self.dice >= SURE

    @property
    def words(self) -> str:
        """Two decimals, or why there are none."""
        return "not assessed" if self.dice is None else f"{self.dice:.2f}"

    def as_json(self) -> dict[str, Any]:
        """For manifest and file."""
        told = None if self.dice is None else round(self.dice, 4)
        return {"id": self.id, "name": self.name, "agreement": told, "sure": self.sure}


@dataclass(frozen=True, eq=False, kw_only=True)
class SupportResult(LabelResult):
    """A volume segmented by example.

    Attributes:
        agreement: Of the runs, per label.
        doubt: On the grid of the image, uint8: 0 where all runs agree, 100 where they are halved; None if not wanted.
    """

    agreement: tuple[Agreement, ...]
    doubt: Volume | None = None

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        _write_agreement(folder, self.agreement)


@dataclass(frozen=True, eq=False, kw_only=True)
class SupportPictureResult(PictureResult):
    """A picture segmented by example.

    Attributes:
        agreement: Of the runs, per label.
    """

    agreement: tuple[Agreement, ...]

    def _write(self, folder: Path) -> None:
        super()._write(folder)
        _write_agreement(folder, self.agreement)


class SupportSegmentation(EitherKind[SupportRecipe]):
    """A network that segments by example, ready to run; `support` names the set."""

    @torch.inference_mode()
    def plan(self, case: Case | PictureCase) -> RunPlan:
        """What segmenting one structure will take; one slice is run to know the time."""
        side, volume = self.recipe.inference.side, case.volume if isinstance(case, Case) else None
        slices = 1 if volume is None else _slices(volume)
        started = monotonic()
        pixels = torch.full((1, 3, side, side), 0.5, device=self.device)
        features = self._net.features(pixels)
        support = self._net.support_of(features, pixels[:, :1])
        self._net.segment(features, support.chosen(torch.zeros((1, 1), dtype=torch.long, device=self.device)))
        runs = 1 + self.recipe.inference.resamples
        return RunPlan(
            grid=(side, side, slices),
            spacing=(0.0, 0.0, 0.0) if volume is None else volume.spacing,
            tiles=slices,
            peak_bytes=self._network_bytes() + (0 if volume is None else _volume_bytes(volume)),
            seconds=round((monotonic() - started) * slices * runs, 1),
        )

    def _take(self, state: dict[str, Tensor]) -> list[str]:
        preset = preset_of(unwrapped(state))
        if preset is not None:
            self._network = nets.build("sam2-sgp", {**self.recipe.network.options, "preset": preset})
        return load_published(self._net, state)

    @property
    def _net(self) -> Sam2Sgp:
        return cast(Sam2Sgp, self._network)

    def _check_options(self, options: RunOptions) -> None:
        if options.support is None:
            raise UsageError(
                f"model {self.recipe.name} needs a support set: add --support NAME (`medseg support list` names them)"
            )
        restores = options.noise is not None or options.regions is not None or options.keep_regions
        if restores or options.enforce_consistency:
            raise UsageError(f"model {self.recipe.name} segments: it takes no noise level and no regions; drop them")

    def _run(self, case: Case, options: RunOptions, warnings: list[str], report: Reporter) -> Result:
        support = self._support(options, case.volume)
        warnings += self._doubts(support, case.volume, options)
        require_memory(self._network_bytes() + _volume_bytes(case.volume), options.memory_limit)
        report.start("preparing")
        prepared, chain = prepared_volume(case.volume, support.card.modality)
        axis = PLANES.index(support.card.plane)
        stack, frame = slices_along(axis, prepared, self.recipe.inference.side, support.extent)
        walk = self._walk(support, resamples=self.recipe.inference.resamples)
        report.start("segmenting")
        found = np.zeros(stack.shape, np.uint8)
        doubt = np.zeros(stack.shape, np.uint8) if options.keep_doubt else None
        for number, plane in enumerate(stack):
            found[number] = self._labelled(walk.step(planes_of(plane[..., None], frame)), frame, support)[0]
            if doubt is not None:
                doubt[number] = (100 * frame.leave(walk.doubt).clip(0, 1)).round()
            report.advance(number + 1, len(stack))
        labels = _restacked(found, axis, prepared, chain)
        report.start("measuring")
        structures = measure(labels.voxels, labels.affine, support.card.labels)
        agreed = self._agreed(support, walk)
        warnings += _remarks(agreed, [structure.voxels > 0 for structure in structures])
        manifest = self._manifest(case, labels, warnings, report, self._told_options(options, support))
        return SupportResult(
            volume=labels,
            image=case.volume,
            labels=support.card.labels,
            statistics=structures,
            agreement=agreed,
            doubt=None if doubt is None else _restacked(doubt, axis, prepared, chain),
            manifest={**manifest, "support": _origin(support, agreed)},
            recipe=self.recipe.model_copy(update={"labels": support.card.labels}),
        )

    def _run_picture(self, case: PictureCase, options: RunOptions, warnings: list[str], report: Reporter) -> Outcome:
        support = self._support(options, case.picture)
        warnings += self._doubts(support, case.picture, options)
        require_memory(self._network_bytes(), options.memory_limit)
        report.start("segmenting")
        image = prepared_picture(case.picture)
        frame = SliceFrame.of(case.picture.size, (1.0, 1.0), self.recipe.inference.side, 0.0)
        walk = self._walk(support, resamples=self.recipe.inference.resamples)
        labels, probability = self._labelled(walk.step(planes_of(image, frame)), frame, support)
        report.start("measuring")
        recipe = self.recipe.model_copy(update={"labels": support.card.labels})
        field = np.ones(case.picture.size, bool)
        agreed = self._agreed(support, walk)
        warnings += _remarks(agreed, [bool((labels == label.id).any()) for label in support.card.labels])
        report.finish()
        output = {"voxels_sha256": hash_pixels(labels), "dtype": "uint8"}
        seconds = {**report.seconds, "reading": round(case.seconds, 3)}
        told = self._told_options(options, support)
        manifest = self._told(picture_facts(case), output, told, seconds, warnings)
        return SupportPictureResult(
            picture=case.picture,
            labels=labels,
            probability=probability,
            field=field,
            figures=measure_picture(labels, field, case.picture.spacing, recipe),
            agreement=agreed,
            manifest={**manifest, "support": _origin(support, agreed)},
            recipe=recipe,
        )

    def _support(self, options: RunOptions, image: Volume | Picture) -> SupportSet:
        """The set that was asked for, if it is for images of this kind."""
        given = options.support
        support = given if isinstance(given, SupportSet) else load_support_set(str(given))
        if options.support_sha256 not in (None, support.card.sha256):
            raise ModelMissing(
                f"support set '{support.card.name}' is not what it was in that run; bring the old one back"
            )
        kind = "pictures" if isinstance(image, Picture) else "volumes"
        if support.card.kind != kind:
            raise InputRefused(
                f"support set '{support.card.name}' is of {support.card.kind}, the input is one of {kind}"
            )
        return support

    def _doubts(self, support: SupportSet, image: Volume | Picture, options: RunOptions) -> list[str]:
        """What speaks against the image, beside the scope of the model."""
        known, here = support.card.modality, modality_of(image)
        told = known is not None and here is not None and known != here
        if (told or (here == "CT") != (known == "CT")) and not options.force_scope:
            raise InputRefused(
                f"image is {here or 'not CT'}, support set '{support.card.name}' is {known or 'not CT'}; "
                "choose another set, or --force-scope runs it all the same"
            )
        if isinstance(image, Volume) and usual_plane(image) != support.card.plane and len(set(image.spacing)) > 1:
            return [
                f"slices are {usual_plane(image)}, those of the support set {support.card.plane}: the result is coarse"
            ]
        return []

    def _told_options(self, options: RunOptions, support: SupportSet) -> dict[str, Any]:
        named = {"support": support.card.name, "support_sha256": support.card.sha256}
        return {"force_scope": options.force_scope, **named, **self._told_brought()}

    def _walk(self, support: SupportSet, *, resamples: int) -> Walk:
        inference, device = self.recipe.inference, self.device
        pools = pools_of(support, self._net, weights=self.recipe.weights.sha256, side=inference.side, device=device)
        return Walk(self._net, pools, runs_without(len(support.cases), resamples), inference.examples, device)

    def _labelled(
        self, found: NDArray[np.float32], frame: SliceFrame, support: SupportSet
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Label ids on the pixels of a slice and their probabilities there, of (structures, side, side)."""
        return labelled(found, frame, support.ids, self.recipe.inference.threshold)

    def _agreed(self, support: SupportSet, walk: Walk) -> tuple[Agreement, ...]:
        pairs = zip(support.card.labels, walk.agreement(), strict=True)
        return tuple(Agreement(label.id, label.name, dice) for label, dice in pairs)

    def _network_bytes(self) -> int:
        inference = self.recipe.inference
        return inference.bytes_per_pixel * inference.side**2 * (1 + inference.resamples)


def _remarks(agreed: Sequence[Agreement], found: Sequence[bool]) -> list[str]:
    """What has to be said where runs differ or nothing was found."""
    said = []
    for each, there in zip(agreed, found, strict=True):
        if not there:
            together = (
                "all runs agree" if each.sure else "some runs found something" if each.sure is False else "one run"
            )
            said.append(f"{each.name}: nothing was found ({together})")
        elif each.sure is False:
            said.append(
                f"the model is unsure of {each.name}: runs without one of the cases agree to a Dice of {each.dice:.2f}"
            )
    return said


def _origin(support: SupportSet, agreed: Sequence[Agreement]) -> dict[str, Any]:
    card = support.card
    return {
        "name": card.name,
        "sha256": card.sha256,
        "cases": card.cases,
        "slices": card.slices,
        "plane": card.plane,
        "agreement": [each.as_json() for each in agreed],
    }


def _write_agreement(folder: Path, agreed: Sequence[Agreement]) -> None:
    content = {"meaning": _MEANING, "sure_from": SURE, "structures": [each.as_json() for each in agreed]}
    write_json(folder / AGREEMENT_FILE, content)


def _restacked(stack: NDArray[np.uint8], axis: int, prepared: Volume, chain: Chain) -> Volume:
    """Slices along an axis of a prepared volume, on the grid of the image."""
    voxels = np.ascontiguousarray(np.moveaxis(stack, 0, axis))
    return chain.undo(prepared.with_voxels(voxels, kind="labels"))


def _slices(volume: Volume) -> int:
    world = volume.grid.axes[0]
    return volume.shape[world.index(PLANES.index(usual_plane(volume)))]


def _volume_bytes(volume: Volume) -> int:
    return volume.voxels.nbytes + _BYTES_PER_VOXEL * volume.voxels.size
