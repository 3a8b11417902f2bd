"""Recipe: the frozen, checked description of one model; plain data that is read without torch or MONAI.

A model is a folder with `recipe.yaml` and, beside it, the weights and a card. The folders that ship lie in
`medseg_configs`; any other folder of the same shape is a model too.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from medseg.errors import ModelMissing, UsageError
from medseg_pipelines.home import home
from medseg_pipelines.recipe_faults import explain, guess
from medseg_pipelines.sections import (
    Body,
    Inference,
    PictureInference,
    PictureInstances,
    PicturePreparation,
    PictureScope,
    Preparation,
    PromptOptions,
    SupportInference,
    Triple,
)
from medseg_pipelines.sections import Section as _Section

RECIPE_FILE = "recipe.yaml"


class Network(_Section):
    """Which network to build and with which options; `medseg.networks.build_network` judges the options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Label(_Section):
    """One value of the label map."""

    id: int = Field(ge=1, le=65535)
    name: str
    color: tuple[int, int, int]  # sRGB, 0 to 255
    side: Literal["left", "right"] | None = None  # of the patient

    @property
    def structure(self) -> str:
        """The name without its side: what left and right have in common."""
        return self.name.removeprefix(f"{self.side} ") if self.side else self.name


class Decode(_Section):
    """How class scores become label ids: class c with its side looks up `table[c]`.

    `table` holds one pair [right, left] of label ids per class, in the order of the network's outputs; both are equal
    where a structure has no side. With a pair that differs, the network gives one more output after the classes: the
    side, positive for the left of the patient.
    """

    table: tuple[tuple[int, int], ...] = Field(min_length=2)
    body: Body | None = None

    @property
    def sided(self) -> bool:
        """Whether any class is told apart by side."""
        return any(right != left for right, left in self.table)

    @property
    def outputs(self) -> int:
        """Scores that the network gives per voxel."""
        return len(self.table) + int(self.sided)


class Scope(_Section):
    """The images the model was made for; anything else is refused or needs an explicit word."""

    modalities: tuple[str, ...]
    anatomy: str
    spacing: tuple[PositiveFloat, PositiveFloat]  # mm, smallest and largest along any axis
    field_of_view: Triple  # mm, the least extent along each RAS axis
    field_of_view_limit: Triple  # mm, more than this is not an image of this anatomy alone
    plausible_volume: tuple[PositiveFloat, PositiveFloat] | None = None  # ml, of all structures together


class Weights(_Section):
    """The file with the parameters, and what it must be."""

    file: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    dtype: Literal["float32", "float16"] = "float32"
    trained: bool
    parameters: int = Field(ge=0)


class Partition(_Section):
    """How the image is cut into the regions inside which RAT attends (`medseg.partition`)."""

    kind: Literal["intensity", "superpixels", "automatic-masks"] = "intensity"
    options: dict[str, Any] = Field(default_factory=dict)


class Slices(_Section):
    """What a network that restores slice by slice sees of a volume, and how its grey values are scaled.

    Slices are taken across the axis with the largest spacing; of equal ones across the one nearest to foot-head.
    """

    context: PositiveInt = 1  # slices that the network sees at once, an odd number; it restores the middle one
    noise_map: bool = False  # one more channel: the noise level at every pixel, estimated unless it is given
    guide: bool = False  # one more channel: the volume by non-local means in 3D, which the network then starts from
    # Noise levels within which voxels of the result look alike: what those have in common in the residual is no noise
    # and is given back; at 0 nothing is.
    alike: float = Field(default=0.0, ge=0)
    source: tuple[float, float] | None = None  # grey values that become 0 and 1; None: 0 and the percentile below
    percentile: float = Field(default=99.5, gt=0, le=100)
    limits: tuple[float, float] = (-0.2, 2.0)  # scaled values that the network sees and gives are cut off here
    batch: PositiveInt = 4  # slices at once
    bytes_per_pixel: int = Field(default=2000, ge=0)  # memory of the network for each pixel of a slice, measured

    @model_validator(mode="after")
    def _odd(self) -> Self:
        if self.context % 2 == 0:
            raise ValueError(f"context must be odd, the slice in the middle is restored, got {self.context}")
        return self


class _CommonRecipe(_Section):
    """What every recipe says."""

    name: str
    title: str
    summary: str
    intended_use: str
    licence: str
    network: Network
    weights: Weights
    training: dict[str, Any] = Field(default_factory=dict)  # checked by the training pipeline, which owns it


class SegmentationRecipe(_CommonRecipe):
    """Everything that turns an image into a label map, but for the weights themselves."""

    task: Literal["segmentation"]
    scope: Scope
    labels: tuple[Label, ...]
    decode: Decode
    preparation: Preparation = Preparation()
    inference: Inference

    @model_validator(mode="after")
    def _labels_and_table_agree(self) -> Self:
        ids = [label.id for label in self.labels]
        if len(set(ids)) != len(ids):
            raise ValueError(f"label ids must differ, got {ids}")
        named = {entry for pair in self.decode.table for entry in pair if entry}
        if named != set(ids):
            raise ValueError(
                f"decode.table and labels must name the same ids, they differ in {sorted(named ^ set(ids))}"
            )
        return self


class RestorationRecipe(_CommonRecipe):
    """Everything that turns an image into a cleaner one on the same grid, but for the weights themselves."""

    task: Literal["restoration"]
    scope: Scope
    unit: str  # of the grey values: "HU", or "grey values"
    slices: Slices = Slices()
    partition: Partition = Partition()


class PictureRecipe(_CommonRecipe):
    """Everything that turns a picture into a mask of the same size, but for the weights themselves."""

    task: Literal["picture-segmentation"]
    scope: PictureScope
    labels: tuple[Label, ...] = Field(min_length=1)  # one output of the network each, in this order
    preparation: PicturePreparation = PicturePreparation()
    inference: PictureInference
    statistics: Literal["areas", "vessels"] = "areas"  # "vessels": length, width and tortuosity too
    instances: PictureInstances | None = None  # the network gives things and their cores, and things are told apart

    @model_validator(mode="after")
    def _one_kind_of_thing(self) -> Self:
        if self.instances is not None and len(self.labels) != 1:
            raise ValueError(f"labels must be one where instances are told apart, got {len(self.labels)}")
        return self


class PictureRestorationRecipe(_CommonRecipe):
    """Everything that turns a picture into a better or larger one, but for the weights themselves."""

    task: Literal["picture-restoration"]
    scope: PictureScope
    scale: int = Field(default=1, ge=1, le=8)  # pixels of the result per pixel of the picture, along both sides
    colour: bool = True  # the network sees red, green and blue at once; else each channel for itself
    partition: Partition = Partition()
    window: PositiveInt = 512  # px of the picture, both sides
    overlap: float = Field(default=0.125, ge=0, lt=1)  # share of the window
    bytes_per_pixel: int = Field(default=4000, ge=0)  # memory of the network for each pixel of a window, measured


class Upscaling(_Section):
    """Which voxels become finer, and how the coarse ones are taken to have been acquired.

    "all" doubles every axis. "slices" cuts the coarsest axis into whole parts until voxels are as near to isotropic as
    that allows; the network then sees the interpolated volume and each voxel's distance from an acquired slice.
    """

    axes: Literal["all", "slices"]
    acquisition: Literal["kspace", "profile"]  # middle of k-space, or Gaussian slices (`medseg.acquisition`)
    largest_factor: int = Field(default=8, ge=2)  # finer voxels per acquired one
    percentile: float = Field(default=99.5, gt=0, le=100)  # of all voxels; it becomes 1, and 0 stays 0
    guide: bool = False  # the network sees the volume by non-local means too, and starts from that
    window: tuple[PositiveInt, PositiveInt, PositiveInt]  # voxels that the network sees; the last along the slices
    overlap: float = Field(default=0.25, ge=0, lt=1)  # share of the window
    bytes_per_voxel: int = Field(default=1000, ge=0)  # memory of the network for each voxel of the window, measured


class SuperResolutionRecipe(_CommonRecipe):
    """Everything that turns an image into one with finer voxels, but for the weights themselves."""

    task: Literal["super-resolution"]
    scope: Scope
    unit: str  # of the grey values
    upscaling: Upscaling


class SupportRecipe(_CommonRecipe):
    """Everything that segments what a support set outlines, but for the set and the weights themselves."""

    task: Literal["support-segmentation"]
    scope: Scope  # of volumes; pictures are judged by their support set alone
    checkpoint: str | None = None  # in `medseg weights`, where no weights lie beside the recipe
    inference: SupportInference
    labels: tuple[Label, ...] = ()  # of a run: what the support set outlines
    statistics: Literal["areas"] = "areas"

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.inference.side % 32:
            raise ValueError(f"inference.side must be a multiple of 32 pixels, got {self.inference.side}")
        return self


class PretrainingRecipe(_CommonRecipe):
    """What an encoder learns before it is trained to segment; of itself it turns no image into anything."""

    task: Literal["pretraining"]
    scope: PictureScope


class PromptRecipe(_CommonRecipe):
    """Everything that turns an image and prompts into a label map, but for the weights, which users may bring."""

    task: Literal["prompting"]
    scope: Scope
    checkpoint: str | None = None  # in `medseg weights`, where no weights lie beside the recipe
    prompting: PromptOptions = PromptOptions()
    labels: tuple[Label, ...] = ()  # of a run: what was prompted
    statistics: Literal["areas"] = "areas"


Recipe = (
    SegmentationRecipe
    | RestorationRecipe
    | PictureRecipe
    | PictureRestorationRecipe
    | SuperResolutionRecipe
    | SupportRecipe
    | PromptRecipe
    | PretrainingRecipe
)
_TASKS: dict[str, type[Recipe]] = {
    "segmentation": SegmentationRecipe,
    "restoration": RestorationRecipe,
    "picture-segmentation": PictureRecipe,
    "picture-restoration": PictureRestorationRecipe,
    "super-resolution": SuperResolutionRecipe,
    "support-segmentation": SupportRecipe,
    "prompting": PromptRecipe,
    "pretraining": PretrainingRecipe,
}


def recipe_names() -> list[str]:
    """The models that ship with the package, by name."""
    return sorted(_shipped().keys() - _without_weights().keys())


def template_names() -> list[str]:
    """The recipes that ship without weights, to be trained on data of one's own, by name."""
    return sorted(name for name, checkpoint in _without_weights().items() if checkpoint is None)


def brought_names() -> list[str]:
    """The recipes whose weights users bring (`medseg weights`), by name."""
    return sorted(name for name, checkpoint in _without_weights().items() if checkpoint is not None)


def _without_weights() -> dict[str, str | None]:
    """The shipped recipes with no weights beside them, and which checkpoint each asks for."""
    bare = {name: folder / RECIPE_FILE for name, folder in _shipped().items() if not any(folder.glob("*.safetensors"))}
    return {name: yaml.safe_load(path.read_text(encoding="utf-8")).get("checkpoint") for name, path in bare.items()}


def _shipped() -> dict[str, Path]:
    root = Path(str(files("medseg_configs")))
    return {entry.name: entry for entry in root.iterdir() if (entry / RECIPE_FILE).is_file()}


def imported_models() -> Path:
    """The folder of models that were imported, one folder each."""
    return home() / "models"


def imported_names() -> list[str]:
    """The models that were imported, by name."""
    root = imported_models()
    return sorted(entry.name for entry in root.glob("*") if (entry / RECIPE_FILE).is_file())


def recipe_folder(model: str | Path) -> Path:
    """The folder of a model.

    Args:
        model: A name from `recipe_names()` or `imported_names()`, or the path of a folder that holds a recipe.

    Raises:
        UsageError: There is no such model.
    """
    if Path(model).is_dir():
        return Path(model)
    shipped = _shipped()
    if str(model) in shipped:
        return shipped[str(model)]
    if str(model) in (imported := imported_names()):
        return imported_models() / str(model)
    names = [*shipped, *imported]
    raise UsageError(f"model '{model}' is not known{guess(str(model), names)} (`medseg models` lists them)")


def load_recipe(model: str | Path) -> Recipe:
    """The recipe of a model, checked.

    Raises:
        UsageError: There is no such model, or its recipe says something wrong; the message names the field.
        ModelMissing: The folder holds no recipe.
    """
    path = recipe_folder(model) / RECIPE_FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelMissing(
            f"model folder '{path.parent.name}' must hold {RECIPE_FILE}, found none; check the path"
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"recipe '{path.parent.name}' is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UsageError(f"recipe '{path.parent.name}' must be a table of sections, got {type(content).__name__}")
    kind = _TASKS.get(str(content.get("task")))
    if kind is None:
        raise UsageError(
            f"recipe '{path.parent.name}': task must be one of {', '.join(_TASKS)}, got {content.get('task')}"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"recipe '{path.parent.name}': {explain(error, kind)}") from None


def load_segmentation_recipe(model: str | Path) -> SegmentationRecipe:
    """The recipe of a model that segments, checked.

    Raises:
        UsageError: As `load_recipe`, or the model has another task.
        ModelMissing: The folder holds no recipe.
    """
    recipe = load_recipe(model)
    if not isinstance(recipe, SegmentationRecipe):
        raise UsageError(f"model '{recipe.name}' must be one that segments, its task is {recipe.task}")
    return recipe
