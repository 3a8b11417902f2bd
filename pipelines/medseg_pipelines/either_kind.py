"""What models of volumes share that take pictures too: those that follow prompts or examples."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor

from medseg.errors import ModelMissing
from medseg.picture import Picture
from medseg_pipelines.events import Callback, Reporter
from medseg_pipelines.picture_case import PictureCase, read_picture_case
from medseg_pipelines.pipeline import Pipeline, RunOptions
from medseg_pipelines.recipe import PromptRecipe, SupportRecipe
from medseg_pipelines.results import Outcome
from medseg_pipelines.weights.cache import load_brought
from medseg_pipelines.words import UNKNOWN_ORIGIN

BroughtRecipe = TypeVar("BroughtRecipe", PromptRecipe, SupportRecipe)


class EitherKind(Pipeline[BroughtRecipe], Generic[BroughtRecipe]):
    """A model of volumes and pictures whose weights users may bring, ready to run.

    Args:
        recipe: What to do.
        folder: Where the recipe lies, and the weights where it needs none from users.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        engine: As of any model.
        weights: Name in `medseg weights`, in place of the one that the recipe asks for.

    Raises:
        ModelMissing: The weights are absent, or not those of the network; the message says what to fetch.
        UsageError: There is no such device or engine.
    """

    def __init__(
        self,
        recipe: BroughtRecipe,
        folder: Path,
        *,
        device: str = "auto",
        engine: str = "auto",
        weights: str | None = None,
    ) -> None:
        self.brought = weights or recipe.checkpoint
        self._unknown = False
        super().__init__(recipe, folder, device=device, engine=engine)

    def _fill(self, folder: Path) -> None:
        """Weights from beside the recipe or from the user's folder, and what is known of them."""
        if self.brought is None:
            super()._fill(folder)
            return
        brought, state = load_brought(self.brought)
        try:
            fresh = self._take(state)
        except ModelMissing as error:
            raise ModelMissing(f"weights '{self.brought}' are not of {self.recipe.network.name}: {error}") from None
        told = {
            "file": brought.source,
            "sha256": brought.sha256,
            "trained": brought.trained is not False and not fresh,
            "parameters": brought.parameters,
        }
        self._unknown = brought.trained is None
        weights = self.recipe.weights.model_copy(update=told)
        self.recipe = self.recipe.model_copy(update={"weights": weights, "licence": brought.licence or "unknown"})

    @abstractmethod
    def _take(self, state: dict[str, Tensor]) -> list[str]:
        """Make the network one of the size that the weights have, and fill it; names that keep their first values.

        Raises:
            ModelMissing: They do not fit.
        """

    def _weight_doubts(self) -> list[str]:
        return [UNKNOWN_ORIGIN] if self._unknown and self.recipe.weights.trained else super()._weight_doubts()

    def _told_brought(self) -> dict[str, Any]:
        """What the manifest says of them, so that the run can be repeated."""
        return {} if self.brought is None else {"weights": self.brought}

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
