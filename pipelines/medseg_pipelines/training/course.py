"""What one kind of training adds to the loop: its options, its files, its images and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.data import Dataset

from medseg.errors import UsageError
from medseg.networks import build_network
from medseg_pipelines.recipe import Recipe
from medseg_pipelines.training.loop import Optimisation, Trainer

Options = TypeVar("Options", bound=Optimisation)


class Course(ABC, Generic[Options]):
    """A kind of training, for one recipe.

    Args:
        recipe: Its `training` section names this kind.

    Raises:
        UsageError: A field of that section is wrong.
    """

    OPTIONS: ClassVar[type[Optimisation]]
    TOGETHER: ClassVar[bool] = False  # whether processes of one `torchrun` learn from images of their own

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        try:
            content = {key: value for key, value in recipe.training.items() if key != "kind"}
            self.options: Options = self.OPTIONS.model_validate(content)  # pyright: ignore[reportAttributeAccessIssue] # the subclass names it
        except ValidationError as error:
            fault = error.errors()[0]
            at = ".".join(str(part) for part in ("training", *fault["loc"]))
            raise UsageError(f"recipe '{recipe.name}': {at}: {fault['msg']}") from None
        self.check()

    def check(self) -> None:
        """Find what the types of the options cannot tell.

        Raises:
            UsageError: The options do not fit each other or the recipe.
        """

    @abstractmethod
    def files(self, data: Path) -> list[Path]:
        """The files to learn from.

        Raises:
            UsageError: There are none.
        """

    @abstractmethod
    def trainer(self, device: str) -> Trainer:
        """A run at its first step, with weights drawn from the seed of the recipe.

        Raises:
            UsageError: The network of the recipe cannot be trained this way.
        """

    @abstractmethod
    def images(self, files: list[Path]) -> Dataset[Any]:
        """Image number n of the run, drawn from the seed and n alone, so that a resumed run sees what it would have.

        Raises:
            InputRefused: A file cannot be used.
        """

    def network(self) -> nn.Module:
        """The network of the recipe with weights drawn from the seed; the caller's randomness stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            return build_network(self.recipe.network.name, **self.recipe.network.options)
