"""What every model that is ready to run shares: read, judge, prepare, predict, and tell how it came about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from medseg.errors import InputRefused, UsageError
from medseg.partition import Partitioner
from medseg.prompts import Prompts
from medseg.volume import Volume
from medseg.weights import load_weights, sha256_of
from medseg_pipelines import engines, nets
from medseg_pipelines.case import Case, hash_volume, read_case
from medseg_pipelines.events import Callback, Reporter
from medseg_pipelines.manifest import Machine, build_manifest
from medseg_pipelines.recipe import (
    RECIPE_FILE,
    PictureRecipe,
    PictureRestorationRecipe,
    PromptRecipe,
    Recipe,
    RestorationRecipe,
    SegmentationRecipe,
    SuperResolutionRecipe,
    SupportRecipe,
)
from medseg_pipelines.results import Result
from medseg_pipelines.scope import judge, require_in_scope
from medseg_pipelines.support_store import SupportSet
from medseg_pipelines.words import UNTRAINED

VolumeRecipe = TypeVar(
    "VolumeRecipe", SegmentationRecipe, RestorationRecipe, SuperResolutionRecipe, PromptRecipe, SupportRecipe
)
AnyRecipe = TypeVar(
    "AnyRecipe",
    SegmentationRecipe,
    RestorationRecipe,
    PictureRecipe,
    PictureRestorationRecipe,
    SuperResolutionRecipe,
    PromptRecipe,
    SupportRecipe,
)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run will take, found out without running it."""

    grid: tuple[int, int, int]  # voxels of the prepared image
    spacing: tuple[float, float, float]  # mm
    tiles: int
    peak_bytes: int
    seconds: float  # measured on one tile


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the user may ask of a run.

    Attributes:
        force_scope: Run on an image that the model was not made for.
        memory_limit: Bytes that the run may take.
        noise: Noise level in grey values of the image, for models that remove it; None to estimate it.
        regions: Region map on the grid of the image, for models that attend inside regions; None to find one.
        keep_regions: Whether the result holds the region map as a volume too.
        enforce_consistency: Change a result with finer voxels until it reproduces the image, noise and all.
        partition: How to find the regions, in place of the way that the recipe names.
        prompts: What to segment, for models that follow prompts.
        propagate: Go on to the slices beside those that were prompted.
        consensus: Prompt along all three axes, and keep what two of them say.
        window: Grey values that a model with prompts sees as black and white.
        support: The support set or its name, for models that segment by example.
        support_sha256: What the set must be, where a run is repeated.
        keep_doubt: Whether a result by example tells voxel by voxel where runs without one of the cases differ.
    """

    force_scope: bool = False
    memory_limit: int | None = None
    noise: float | None = None
    regions: Volume | None = None
    keep_regions: bool = False
    enforce_consistency: bool = False
    partition: Partitioner | None = None
    prompts: Prompts | None = None
    propagate: bool = True
    consensus: bool = False
    window: tuple[float, float] | None = None
    support: str | SupportSet | None = None
    support_sha256: str | None = None
    keep_doubt: bool = False

    def require_for(self, recipe: Recipe) -> None:
        """Refuse prompts, support sets and partitions where the model knows nothing of them.

        Raises:
            UsageError: Says which.
        """
        prompted = self.prompts is not None or self.consensus or self.window is not None or not self.propagate
        if prompted and recipe.task != "prompting":
            raise UsageError(f"model {recipe.name} follows no prompts: drop them, or choose another (`medseg models`)")
        if self.support is not None and recipe.task != "support-segmentation":
            raise UsageError(f"model {recipe.name} follows no examples: drop the support set, or add -m support-set")
        if self.partition is not None and recipe.task != "restoration":
            raise UsageError(f"model {recipe.name} finds no regions in volumes: drop the partition")


class Runner(ABC, Generic[AnyRecipe]):
    """A model with its weights on its device, whatever kind of image it runs on.

    Args:
        recipe: What to do.
        folder: Where the recipe and the weights lie.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        engine: "auto", or a name from `engines.available()`.

    Raises:
        ModelMissing: The weights are absent or are not the ones the recipe names.
        UsageError: There is no such device or engine.
    """

    def __init__(self, recipe: AnyRecipe, folder: Path, *, device: str = "auto", engine: str = "auto") -> None:
        self.recipe: AnyRecipe = recipe
        self.device = find_device(device)
        self._recipe_sha256 = sha256_of(folder / RECIPE_FILE)
        if engine not in ("auto", *engines.available()):
            raise UsageError(f"engine must be one of auto, {', '.join(engines.available())}, got '{engine}'")
        self._network = nets.build(recipe.network.name, recipe.network.options, folder=folder)
        self._fill(folder)
        self._multiple = int(getattr(self._network, "multiple", 1))
        self.engine = engines.default_engine(str(self.device)) if engine == "auto" else engine
        self._predict = engines.prepare(self._network.eval(), engine=self.engine, device=str(self.device))

    def _fill(self, folder: Path) -> None:
        """Give the network its weights."""
        load_weights(self._network, folder / self.recipe.weights.file, sha256=self.recipe.weights.sha256)

    @abstractmethod
    def _check_options(self, options: RunOptions) -> None:
        """Refuse what this kind of model knows nothing of.

        Raises:
            UsageError: Says which.
        """

    def _begin(self, options: dict[str, Any], progress: Callback | None) -> tuple[RunOptions, Reporter]:
        """What every run starts with: its options, checked, and a report that says that it reads."""
        wanted = RunOptions(**options)
        wanted.require_for(self.recipe)
        self._check_options(wanted)
        report = Reporter(progress)
        report.start("reading")
        return wanted, report

    def _weight_doubts(self) -> list[str]:
        """What has to be said of the weights before everything else."""
        return [] if self.recipe.weights.trained else [UNTRAINED]

    def _told(
        self,
        image: dict[str, Any],
        output: dict[str, Any],
        options: dict[str, Any],
        seconds: dict[str, float],
        warnings: list[str],
    ) -> dict[str, Any]:
        """The manifest of a run; see `build_manifest`."""
        return build_manifest(
            recipe=self.recipe,
            recipe_sha256=self._recipe_sha256,
            image=image,
            output=output,
            machine=self._machine(),
            options=options,
            seconds=seconds,
            warnings=tuple(warnings),
        )

    def _machine(self) -> Machine:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return Machine(device=str(self.device), device_name=name, engine=self.engine, threads=torch.get_num_threads())


class Pipeline(Runner[VolumeRecipe], Generic[VolumeRecipe]):
    """A model of volumes, ready to run."""

    def __call__(
        self,
        image: Any,
        *,
        progress: Callback | None = None,
        time_point: int | None = None,
        **options: Any,
    ) -> Result:
        """Run on one image.

        Args:
            image: A path, a Volume, a nibabel or a SimpleITK image, or a Case.
            progress: Gets every `Event`; returning False or raising `Cancelled` stops the run.
            time_point: Index from 0 into the fourth axis, where there is one.
            options: Fields of `RunOptions`.

        Raises:
            InputRefused: The image cannot be used, or is not what the model was made for.
            UsageError: The model knows nothing of an option.
            Cancelled: The callback said so.
        """
        wanted, report = self._begin(options, progress)
        case = read_case(image, time_point=time_point, memory_limit=wanted.memory_limit)
        findings = judge(case.volume, self.recipe.scope)
        scope = require_in_scope(findings, self.recipe.name, force=wanted.force_scope)
        warnings = [*self._weight_doubts(), *case.volume.notes, *scope]
        return self._run(case, wanted, warnings, report)

    @abstractmethod
    def plan(self, case: Case) -> RunPlan:
        """What running on the case will take; one tile is run to know the time."""

    @abstractmethod
    def _run(self, case: Case, options: RunOptions, warnings: list[str], report: Reporter) -> Result:
        """Prepare, predict, undo and measure."""

    def _manifest(
        self, case: Case, volume: Volume, warnings: list[str], report: Reporter, options: dict[str, Any]
    ) -> dict[str, Any]:
        report.finish()
        facts = {
            **asdict(case.record),
            "shape": list(case.volume.shape),
            "spacing_mm": [round(step, 6) for step in case.volume.spacing],
            "orientation": case.volume.orientation,
        }
        output = {"voxels_sha256": hash_volume(volume), "dtype": str(volume.voxels.dtype)}
        return self._told(facts, output, options, {**report.seconds, "reading": round(case.seconds, 3)}, warnings)


def find_device(name: str) -> torch.device:
    """The device behind a name; "auto" takes a GPU where there is one.

    Raises:
        UsageError: There is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        here = "cpu" + ", cuda" * torch.cuda.is_available() + ", mps" * torch.backends.mps.is_available()
        raise UsageError(f"device must be auto or one of {here}, got '{name}'; `medseg doctor` lists them") from None
    return device


def require_memory(needed: int, limit: int | None) -> None:
    """Refuse a run that would take more than it may.

    Raises:
        InputRefused: Says how much it needs.
    """
    if limit is not None and needed > limit:
        raise InputRefused(
            f"run needs about {needed / 1e9:.1f} GB, --memory-limit allows {limit / 1e9:.1f} GB; "
            "raise the limit or crop the image"
        )
