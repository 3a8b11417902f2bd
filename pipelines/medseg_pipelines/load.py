"""The one door to a model: a name or a folder becomes something that restores or segments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medseg.errors import ModelMissing, UsageError
from medseg_pipelines.recipe import load_recipe, recipe_folder, recipe_names, template_names

if TYPE_CHECKING:
    from medseg_pipelines.picture_restoration import PictureRestoration
    from medseg_pipelines.picture_segmentation import PictureSegmentation
    from medseg_pipelines.pipeline import Pipeline


def load_model(
    model: str | Path | None = None, *, device: str = "auto", engine: str = "auto", weights: str | None = None
) -> Pipeline | PictureSegmentation | PictureRestoration:
    """A model, ready to be called with an image: of pictures with a path, a Picture or pixels, else with a path, a
    Volume, a nibabel or a SimpleITK image.

    Args:
        model: A name from `medseg models`, or a model folder (recipe and weights); None for the only one that ships.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        engine: "auto" for the fastest one installed, or its name.
        weights: Name in `medseg weights`, for models whose weights users bring.

    Raises:
        UsageError: There is no such model, device or engine.
        ModelMissing: The weights are absent or are not the ones the recipe names.
    """
    model = _only_model() if model is None else model
    recipe = load_recipe(model)  # before torch: a wrong name must be told at once
    if recipe.task == "pretraining":
        raise UsageError(f"model '{recipe.name}' {PRETRAINED}")
    if str(model) in template_names():
        raise ModelMissing(no_weights(str(model), "use -m RUN"))
    folder = recipe_folder(model)
    if recipe.task == "prompting":
        from medseg_pipelines.prompting.model import Prompting

        return Prompting(recipe, folder, device=device, engine=engine, weights=weights)
    if recipe.task == "support-segmentation":
        from medseg_pipelines.support_segmentation import SupportSegmentation

        return SupportSegmentation(recipe, folder, device=device, engine=engine, weights=weights)
    if weights is not None:
        raise UsageError(f"model '{recipe.name}' has weights of its own: drop the name of others")
    if recipe.task == "restoration":
        from medseg_pipelines.restoration import Restoration

        return Restoration(recipe, folder, device=device, engine=engine)
    if recipe.task == "super-resolution":
        from medseg_pipelines.superresolution import SuperResolution

        return SuperResolution(recipe, folder, device=device, engine=engine)
    if recipe.task == "picture-segmentation":
        from medseg_pipelines.picture_instances import picture_model

        return picture_model(recipe, folder, device=device, engine=engine)
    if recipe.task == "picture-restoration":
        from medseg_pipelines.picture_restoration import PictureRestoration

        return PictureRestoration(recipe, folder, device=device, engine=engine)
    if recipe.task == "segmentation":
        from medseg_pipelines.segmentation import Segmentation

        return Segmentation(recipe, folder, device=device, engine=engine)
    raise UsageError(f"model '{recipe.name}' must have a task that can be run here, got {recipe.task}")


PRETRAINED = (
    "teaches an encoder and segments nothing: train it with `medseg train her-seg-pretrain --data FOLDER --out RUN`, "
    "go on with `medseg train her-seg --data FOLDER --from RUN`, and use what comes of that"
)


def no_weights(name: str, then: str) -> str:
    """The sentence that refuses a recipe without weights; `then` is what to do with what training gives."""
    return (
        f"model '{name}' ships as a recipe without weights; train it with `medseg train {name} --data FOLDER "
        f"--out RUN`, then {then}"
    )


def _only_model() -> str:
    names = recipe_names()
    if len(names) != 1:
        raise UsageError(f"model must be named where there is more than one, there are {', '.join(names)}")
    return names[0]
