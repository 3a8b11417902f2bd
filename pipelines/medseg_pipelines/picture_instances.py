"""Tell apart the things on one picture of any size: window by window to masks, square by square to things."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import numpy as np
import torch

from medseg.errors import UsageError
from medseg.instance_measures import measure_things
from medseg.instances import OUTPUTS, Separation, separate
from medseg_pipelines.events import Reporter
from medseg_pipelines.picture_case import PictureCase
from medseg_pipelines.picture_instance_results import InstanceResult, figures_of
from medseg_pipelines.picture_segmentation import PictureSegmentation, label_facts
from medseg_pipelines.picture_windows import probabilities_by_window, windows
from medseg_pipelines.pipeline import RunOptions, RunPlan, require_memory
from medseg_pipelines.recipe import PictureRecipe

_BYTES_PER_PIXEL = 40  # of the picture at its full size: its values, probabilities, numbers, and what is drawn
_BYTES_PER_CUT = 80  # for each pixel of a square while it is cut apart


def picture_model(
    recipe: PictureRecipe, folder: Path, *, device: str = "auto", engine: str = "auto"
) -> PictureSegmentation:
    """The model of pictures behind a recipe, of the kind that it asks for; errors as of `load_model`."""
    kind = PictureSegmentation if recipe.instances is None else PictureInstanceSegmentation
    return kind(recipe, folder, device=device, engine=engine)


def separation_of(recipe: PictureRecipe) -> Separation:
    """How masks become separate things.

    Raises:
        UsageError: The recipe does not say.
    """
    instances = recipe.instances
    if instances is None:
        raise UsageError(f"recipe '{recipe.name}': expected a section 'instances', it has none")
    threshold = recipe.inference.threshold
    return Separation(threshold=threshold, core=instances.core, smallest=instances.smallest, halo=instances.reach)


class PictureInstanceSegmentation(PictureSegmentation):
    """A model that tells apart things of one kind, such as nuclei."""

    def __init__(self, recipe: PictureRecipe, folder: Path, *, device: str = "auto", engine: str = "auto") -> None:
        super().__init__(recipe, folder, device=device, engine=engine)
        self._separation = separation_of(recipe)

    def plan(self, case: PictureCase) -> RunPlan:
        """What running on the case will take; one window is run to know the time."""
        options = self.recipe.inference
        count = len(windows(case.picture.size, self.recipe.preparation, options))
        tile = torch.zeros((1, len(self.recipe.preparation.mix), options.window, options.window), device=self.device)
        started = monotonic()
        with torch.inference_mode():
            self._predict(tile)
        height, width = case.picture.size
        return RunPlan(
            grid=(width, height, 1),
            spacing=(0.0, 0.0, 0.0),
            tiles=count,
            peak_bytes=self._bytes(case),
            seconds=round((monotonic() - started) * count * (4 if options.flips else 1), 1),
        )

    def _run(self, case: PictureCase, options: RunOptions, warnings: list[str], report: Reporter) -> InstanceResult:
        require_memory(self._bytes(case), options.memory_limit)
        report.start("segmenting")
        found = probabilities_by_window(
            self._predict,
            case.picture,
            self.recipe.preparation,
            self.recipe.inference,
            outputs=OUTPUTS,
            device=self.device,
            progress=report.advance,
        )
        report.start("separating")
        ids = separate(found, self._separation)
        report.start("measuring")
        things = measure_things(ids)
        field = np.ones(case.picture.size, bool)
        figures = figures_of(things, case.picture, self.recipe.labels[0].name)
        warnings += self._doubts(figures)
        return InstanceResult(
            picture=case.picture,
            labels=ids,
            probability=found[:1],
            field=field,
            figures=figures,
            things=things,
            manifest=self._manifest(case, label_facts(ids), options, warnings, report),
            recipe=self.recipe,
        )

    def _bytes(self, case: PictureCase) -> int:
        height, width = case.picture.size
        cut = self._separation.block + 2 * self._separation.halo
        window = self.recipe.inference.window**2 * self.recipe.inference.bytes_per_pixel
        return window + _BYTES_PER_PIXEL * height * width + _BYTES_PER_CUT * min(cut**2, height * width)
