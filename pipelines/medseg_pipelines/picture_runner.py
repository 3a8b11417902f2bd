"""What every model of pictures shares: read, judge, run, and tell how it came about."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from medseg.errors import InputRefused
from medseg.io.picture_frames import pages_to
from medseg_pipelines.events import Callback, Reporter
from medseg_pipelines.picture_case import PictureCase, judge_picture, picture_facts, read_picture_case
from medseg_pipelines.picture_frames import FramesCase, read_frames_case
from medseg_pipelines.picture_frames_results import TABLE, FramesResult, FramesTaken
from medseg_pipelines.picture_restored import RestoredPicture
from medseg_pipelines.picture_results import PictureResult
from medseg_pipelines.pipeline import Runner, RunOptions, RunPlan
from medseg_pipelines.recipe import PictureRecipe, PictureRestorationRecipe
from medseg_pipelines.scope import require_in_scope

FlatRecipe = TypeVar("FlatRecipe", PictureRecipe, PictureRestorationRecipe)
Found = TypeVar("Found", bound=PictureResult | RestoredPicture)


class PictureRunner(Runner[FlatRecipe], Generic[FlatRecipe, Found]):
    """A model of pictures, ready to run."""

    _pages: ClassVar[str]  # name of the file with a page per frame

    def __call__(self, image: Any, *, progress: Callback | None = None, **options: Any) -> Found:
        """Run on one picture.

        Args:
            image: A path, a `Picture`, pixels (H, W) or (H, W, 3), or a `PictureCase`.
            progress: Gets every `Event`; returning False or raising `Cancelled` stops the run.
            options: Fields of `RunOptions`.

        Raises:
            InputRefused: The picture cannot be used, or is not what the model was made for.
            UsageError: The model knows nothing of an option.
            Cancelled: The callback said so.
        """
        wanted, report = self._begin(options, progress)
        case = read_picture_case(image, memory_limit=wanted.memory_limit)
        findings = judge_picture(case.picture, self.recipe.scope)
        scope = require_in_scope(findings, self.recipe.name, force=wanted.force_scope)
        return self._run(case, wanted, [*self._weight_doubts(), *case.picture.notes, *scope], report)

    def frames(
        self, file: str | Path | FramesCase, wanted: str = "all", *, progress: Callback | None = None, **options: Any
    ) -> FramesResult:
        """Run on frames of a file, such as a video, one after the other; memory holds one of them.

        Args:
            file: A TIFF of several pages, an animated PNG or GIF; of one frame, or a case.
            wanted: "all", or numbers from 0, "7" or "10-19".
            progress: Gets an `Event` per frame; returning False or raising `Cancelled` stops the run.
            options: Fields of `RunOptions`.

        Raises:
            InputRefused: A frame cannot be used, or is not what the model was made for.
            UsageError: There are no such frames, or the model knows nothing of an option.
            Cancelled: The callback said so.
        """
        case = file if isinstance(file, FramesCase) else read_frames_case(Path(file), wanted)
        report, taken = Reporter(progress), FramesTaken(total=len(case.chosen), main=self._pages)
        report.start("frames")
        folder, size = tempfile.TemporaryDirectory(prefix="medseg-frames-"), (0, 0)
        with pages_to(Path(folder.name) / taken.main) as pages:
            for number, frame in case.cases(options.get("memory_limit")):
                size = frame.picture.size
                try:
                    result = self(frame, **options)
                except InputRefused as refusal:
                    raise InputRefused(f"frame {number}: {refusal}") from None
                pages.add(result.page())
                taken.add(number, result)
                report.advance(taken.done, taken.total)
        taken.write_table(Path(folder.name) / TABLE)
        report.finish()
        output = {"voxels_sha256": taken.digest, "frames": taken.done}
        asked = {"force_scope": RunOptions(**options).force_scope}
        manifest = self._told(case.facts(size), output, asked, report.seconds, taken.warnings())
        return FramesResult(
            manifest=manifest,
            recipe=self.recipe,
            folder=folder,
            main=taken.main,
            sheet=tuple(taken.sheet),
            names=taken.names,
        )

    @abstractmethod
    def plan(self, case: PictureCase) -> RunPlan:
        """What running on the case will take; one window is run to know the time."""

    @abstractmethod
    def _run(self, case: PictureCase, options: RunOptions, warnings: list[str], report: Reporter) -> Found:
        """Prepare, predict, undo and measure."""

    def _manifest(
        self, case: PictureCase, output: dict[str, Any], options: RunOptions, warnings: list[str], report: Reporter
    ) -> dict[str, Any]:
        report.finish()
        seconds = {**report.seconds, "reading": round(case.seconds, 3)}
        return self._told(picture_facts(case), output, {"force_scope": options.force_scope}, seconds, warnings)
