"""What models of volumes share that take pictures too: those that follow prompts or examples."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from medseg.picture import Picture
from medseg_pipelines.events import Callback, Reporter
from medseg_pipelines.picture_case import PictureCase, read_picture_case
from medseg_pipelines.pipeline import Pipeline, RunOptions, VolumeRecipe
from medseg_pipelines.results import Outcome


class EitherKind(Pipeline[VolumeRecipe]):
    """A model of volumes and pictures, ready to run."""

    def __call__(
        self, image: Any, *, progress: Callback | None = None, time_point: int | None = None, **options: Any
    ) -> Any:
        """Segment a volume or, from a `PictureCase` or a `Picture`, a picture.

        Args:
            image: As any model takes it.
            progress: Gets every `Event`; returning False or raising `Cancelled` stops the run.
            time_point: Index from 0 into the fourth axis, where there is one.
            options: Fields of `RunOptions`; what the model follows must be there.
        """
        if not isinstance(image, PictureCase | Picture):
            return super().__call__(image, progress=progress, time_point=time_point, **options)
        wanted, report = self._begin(options, progress)
        case = read_picture_case(image, memory_limit=wanted.memory_limit)
        return self._run_picture(case, wanted, [*self._weight_doubts(), *case.picture.notes], report)

    @abstractmethod
    def _run_picture(self, case: PictureCase, options: RunOptions, warnings: list[str], report: Reporter) -> Outcome:
        """Segment a picture that has been read."""
