"""A model that segments what prompts point at, on volumes and on pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, cast

import torch
from torch import Tensor

from medseg.errors import UsageError
from medseg.networks.sam import Sam, load_published, preset_of
from medseg.picture import Picture
from medseg.prompts import Box, Mask, Point, Prompts
from medseg.volume import Volume
from medseg_pipelines import nets
from medseg_pipelines.case import Case
from medseg_pipelines.either_kind import EitherKind
from medseg_pipelines.events import Reporter
from medseg_pipelines.picture_case import PictureCase, hash_pixels, picture_facts
from medseg_pipelines.picture_statistics import measure_picture
from medseg_pipelines.pipeline import RunOptions, RunPlan, require_memory
from medseg_pipelines.prompting.embeddings import Embeddings
from medseg_pipelines.prompting.results import PromptedPictureResult, PromptedResult, digest_of, labels_of
from medseg_pipelines.prompting.session import PromptedNetwork, Segmented, Session
from medseg_pipelines.recipe import PromptRecipe
from medseg_pipelines.results import Outcome, Result
from medseg_pipelines.statistics import measure

_KINDS: dict[str, type] = {"points": Point, "boxes": Box, "masks": Mask}


class Prompting(EitherKind[PromptRecipe]):
    """A network that follows prompts, ready to run; arguments as in `EitherKind`, and only PyTorch's own engines."""

    def __init__(
        self,
        recipe: PromptRecipe,
        folder: Path,
        *,
        device: str = "auto",
        engine: str = "auto",
        weights: str | None = None,
    ) -> None:
        if engine not in ("auto", "eager", "channels-last"):
            raise UsageError(f"engine of a model with prompts must be auto, eager or channels-last, got '{engine}'")
        super().__init__(recipe, folder, device=device, engine=engine, weights=weights)
        self.prompted = PromptedNetwork(
            network=cast("Sam", self._network),
            options=recipe.prompting,
            embeddings=Embeddings(),
            identity=self.recipe.weights.sha256,
            device=self.device,
        )

    def keep_embeddings(self, folder: Path) -> None:
        """Keep encoded slices in a folder too, for later processes; it needs the protection of the images."""
        self.prompted = replace(self.prompted, embeddings=Embeddings(folder))

    def session(self, image: Volume | Picture, *, window: tuple[float, float] | None = None) -> Session:
        """An image to prompt again and again."""
        return Session(self.prompted, image, window=window)

    def plan(self, case: Case | PictureCase, prompts: Prompts | None = None) -> RunPlan:
        """What segmenting the case may take at most; one slice is encoded to know the time."""
        image = case.volume if isinstance(case, Case) else case.picture
        session = self.session(image)
        tiles = session.slices_of(prompts) if prompts else 1
        started = monotonic()
        session.encode(0)
        seconds = (monotonic() - started) * tiles
        grid = case.volume.grid if isinstance(case, Case) else None
        return RunPlan(
            grid=grid.shape if grid else (image.size[1], image.size[0], 1),  # pyright: ignore[reportAttributeAccessIssue]
            spacing=grid.spacing if grid else (0.0, 0.0, 0.0),
            tiles=tiles,
            peak_bytes=self._peak_bytes(image),
            seconds=round(seconds, 1),
        )

    def _take(self, state: dict[str, Tensor]) -> list[str]:
        if self.recipe.network.name == "sam":
            self._network = nets.build("sam", {**self.recipe.network.options, "preset": preset_of(state)})
        return load_published(cast("Sam", self._network), state)

    def _check_options(self, options: RunOptions) -> None:
        name, accepts = self.recipe.name, self.recipe.prompting.accepts
        if options.prompts is None or not options.prompts.items:
            raise UsageError(f"model {name} needs prompts, got none; add --box, --points or --prompts")
        restores = options.noise is not None or options.regions is not None or options.keep_regions
        if restores or options.enforce_consistency:
            raise UsageError(f"model {name} follows prompts: it takes no noise level and no regions; drop them")
        known = tuple(_KINDS[kind] for kind in accepts)
        if not all(isinstance(item, known) for item in options.prompts.items):
            raise UsageError(f"model {name} has learned to follow {', '.join(accepts)}, got other prompts as well")

    def _run(self, case: Case, options: RunOptions, warnings: list[str], report: Reporter) -> Result:
        volume, prompts = case.volume, _in_space(options.prompts, "mm")
        require_memory(self._peak_bytes(volume) + volume.voxels.nbytes, options.memory_limit)
        session = self.session(volume, window=options.window)
        report.start("segmenting")
        found = session.segment(
            prompts, propagate=options.propagate, consensus=options.consensus, progress=report.advance
        )
        report.start("measuring")
        labels = volume.with_voxels(found.labels, kind="labels")
        names = labels_of(prompts)
        structures = measure(labels.voxels, labels.affine, names)
        empty = [structure.name for structure in structures if not structure.voxels]
        warnings += [f"{name}: nothing was found at its prompts" for name in empty]
        manifest = self._manifest(case, labels, warnings, report, self._told_options(options, session))
        return PromptedResult(
            volume=labels,
            image=volume,
            labels=names,
            statistics=structures,
            prompts=prompts,
            scores=found.scores,
            manifest={**manifest, "prompting": _told(found)},
            recipe=self.recipe.model_copy(update={"labels": names}),
        )

    def _run_picture(self, case: PictureCase, options: RunOptions, warnings: list[str], report: Reporter) -> Outcome:
        prompts = _in_space(options.prompts, "px")
        if options.consensus or options.window is not None:
            raise UsageError("a picture has one plane and its own colours: drop --consensus and --window")
        require_memory(self._peak_bytes(case.picture), options.memory_limit)
        session = self.session(case.picture)
        report.start("segmenting")
        found = session.segment(prompts, progress=report.advance)
        report.start("measuring")
        names = labels_of(prompts)
        recipe = self.recipe.model_copy(update={"labels": names})
        field = found.labels >= 0  # a picture that is prompted counts as a whole
        assert found.logits is not None, "a picture has logits"
        report.finish()
        facts, output = picture_facts(case), {"voxels_sha256": hash_pixels(found.labels), "dtype": "uint8"}
        seconds = {**report.seconds, "reading": round(case.seconds, 3)}
        manifest = self._told(facts, output, self._told_options(options, session), seconds, warnings)
        return PromptedPictureResult(
            picture=case.picture,
            labels=found.labels,
            probability=torch.from_numpy(found.logits).sigmoid().numpy(),
            field=field,
            figures=measure_picture(found.labels, field, case.picture.spacing, recipe),
            prompts=prompts,
            manifest={**manifest, "prompting": _told(found)},
            recipe=recipe,
        )

    def _told_options(self, options: RunOptions, session: Session) -> dict[str, Any]:
        assert options.prompts is not None, "checked before"
        followed = {"propagate": options.propagate, "consensus": options.consensus, "window": options.window}
        told = {"force_scope": options.force_scope, "prompts_sha256": digest_of(options.prompts)}
        return {**told, **self._told_brought(), **followed}

    def _peak_bytes(self, image: Volume | Picture) -> int:
        pixels = image.voxels.size if isinstance(image, Volume) else image.size[0] * image.size[1]
        return self.recipe.prompting.bytes + 8 * pixels


def _in_space(prompts: Prompts | None, space: str) -> Prompts:
    """The prompts, if they are of this kind of image.

    Raises:
        UsageError: They are of the other.
    """
    assert prompts is not None, "checked before"
    if prompts.space != space:
        wanted = {"mm": "millimetres of a volume", "px": "pixels of a picture"}[space]
        raise UsageError(f"prompts must be in {wanted}, got '{prompts.space}'; say so as space in their file")
    return prompts


def _told(found: Segmented) -> dict[str, Any]:
    """What the manifest says of the way it went."""
    scores = {str(label): {str(at): score for at, score in by.items()} for label, by in found.scores.items()}
    return {"encoded": found.encoded, "decoded": found.decoded, "seconds": found.seconds, "presence": scores}
