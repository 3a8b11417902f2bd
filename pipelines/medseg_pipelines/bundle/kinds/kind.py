"""What every task has to say of its bundles; export, check and configurations ask for nothing else."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from torch import Tensor, nn

from medseg.volume import Volume
from medseg.weights import load_weights
from medseg_pipelines import nets
from medseg_pipelines.bundle.torchscript import recorded
from medseg_pipelines.bundle.vendor import target_of
from medseg_pipelines.recipe import Recipe
from medseg_pipelines.words import UNTRAINED

Part = dict[str, Any]
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The parts of an inference configuration, each with its `_target_`."""

    preprocessing: list[Part]
    inferer: Part
    postprocessing: list[Part]


@dataclass(frozen=True, kw_only=True)
class Training:
    """The parts of a training configuration.

    Attributes:
        preprocessing: From the two paths `image` and `label` to tensors of these names.
        loss: Of what the network gives and `label`.
        options: Further ids at the top, which the parts refer to and a user may set.
        code: The classes that it needs beside those of the inference.
        folders: Below the data folder, of the images and of what is to be learned.
        content: What lies in the second folder, for the documentation.
    """

    preprocessing: list[Part]
    loss: Part
    options: dict[str, Any]
    code: list[type]
    folders: tuple[str, str]
    content: str


@dataclass(frozen=True, kw_only=True)
class Words:
    """Sentences of the bundle's documentation.

    Attributes:
        result: What the run writes, and how it compares with `medseg infer`.
        script: What `models/model.ts` takes and gives, and how close the stock configuration comes.
        no_training: Why there is no `train.json`, where there is none.
        classes: `image_classes`, `label_classes` and `pred_classes` of the metadata.
    """

    result: str
    script: str
    classes: tuple[str, str, str]
    no_training: str = field(default="")


class Kind(ABC, Generic[AnyRecipe]):
    """One task.

    Args:
        recipe: Of the model.
    """

    POSTFIX: ClassVar[str]  # of the files that a run writes, and the name of their folder
    SPECIMEN: ClassVar[str] = "specimen.nii.gz"
    SUFFIXES: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")  # of the files that a run looks for, small letters
    PACKAGES: ClassVar[tuple[str, ...]] = ("nibabel", "scipy", "pytorch-ignite")  # beside MONAI, torch and numpy
    DATA_TYPE: ClassVar[str] = "nibabel"

    def __init__(self, recipe: AnyRecipe) -> None:
        self.recipe = recipe

    @property
    def packages(self) -> tuple[str, ...]:
        """What a run needs beside MONAI, torch and numpy."""
        return self.PACKAGES

    @property
    def own_network(self) -> bool:
        """Whether the code of the network travels."""
        return not self.recipe.network.name.startswith(nets.MONAI_PREFIX)

    def build_network(self) -> nn.Module:
        """The network as it stands in the bundle, with random weights and the parameter names of the recipe's."""
        return nets.build(self.recipe.network.name, self.recipe.network.options)

    def loaded(self, home: Path) -> nn.Module:
        """The network as it stands in the bundle with the weights of a model folder, in evaluation mode.

        Raises:
            ModelMissing: The weights are absent or altered.
        """
        network = self.build_network().eval()
        load_weights(network, home / self.recipe.weights.file, sha256=self.recipe.weights.sha256)
        return network

    def network_def(self, network: nn.Module) -> Part:
        """Class and options of the network."""
        own, name = self.own_network, self.recipe.network.name
        target = target_of(type(network)) if own else name.removeprefix(nets.MONAI_PREFIX)
        return {"_target_": target, **self.recipe.network.options}

    def left_out(self) -> frozenset[str]:
        """Modules that the code names but this model never reaches."""
        return frozenset()

    def notice(self) -> str | None:
        """What must be said of the bundle beside what holds for its model."""
        return None

    def remarks(self) -> list[str]:
        """Sentences that stand wherever the bundle is described."""
        said = (None if self.recipe.weights.trained else UNTRAINED, self.notice())
        return [each for each in said if each]

    def origin(self) -> dict[str, str]:
        """Further entries of the metadata: what the bundle was made from beside the model."""
        return {}

    def training(self) -> Training | None:
        """How a user trains the network further, where that needs no more than a bundle can carry."""
        return None

    @abstractmethod
    def code(self) -> list[type]:
        """The classes that travel beside the network."""

    @abstractmethod
    def steps(self, network: nn.Module) -> Steps:
        """Our own steps."""

    @abstractmethod
    def stock_steps(self) -> Steps | None:
        """Stock transforms around `models/model.ts`; None where they cannot do it."""

    @abstractmethod
    def data_format(self, *, script: bool) -> Part:
        """`network_data_format` of the network, or of `models/model.ts`."""

    @abstractmethod
    def words(self) -> Words:
        """What the documentation says."""

    @abstractmethod
    def served(self, network: nn.Module) -> nn.Module:
        """What `models/model.ts` must give, around a network in evaluation mode."""

    @abstractmethod
    def sample(self, seed: int) -> Tensor:
        """An input for `served`."""

    def recorded(self, network: nn.Module) -> nn.Module:
        """`models/model.ts`."""
        return recorded(self.served(network), self.sample(0))

    @abstractmethod
    def write_specimen(self, path: Path) -> None:
        """Write an image that the model can be tried on, named `SPECIMEN`."""

    @abstractmethod
    def fault(self, model: str | Path, scan: Path, folder: Path) -> str | None:
        """How what a run wrote into a folder differs from what `medseg infer` makes of the same image."""


def plain(content: Any) -> Any:
    """Tuples as lists, as they come back from a file."""
    return json.loads(json.dumps(content))


def saving(postfix: str, dtype: str) -> Part:
    """A transform that writes volumes beside each other."""
    return {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": postfix,
        "output_dtype": dtype,
        "separate_folder": False,
        "resample": False,
    }


def plain_tensors(keys: list[str]) -> Part:
    """A transform that takes the meta data of MONAI from tensors; with it, kernels of ours cannot make new ones."""
    return {"_target_": "ToTensord", "keys": keys, "track_meta": False}


def undoing() -> Part:
    """A transform that brings a prediction back to the grid of its image."""
    return {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": True,
    }


def volume_fault(found: Volume, expected: Volume, tolerance: float) -> str | None:
    """How two volumes differ, where their voxels do by more than a share of the range of the expected ones."""
    if not found.grid.equals(expected.grid, tolerance=1e-4):  # mm; the file holds the affine in float32
        return f"grid {found.shape} at {found.spacing} mm, expected {expected.shape} at {expected.spacing} mm"
    worst = float(np.abs(found.voxels - expected.voxels).max()) / (float(np.ptp(expected.voxels)) or 1.0)
    return None if worst <= tolerance else f"voxels differ by up to {worst:.2g} of their range, expected {tolerance:g}"
